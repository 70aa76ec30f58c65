"""The loss of examples, and of a batch as a function of the parameters."""

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import optax

from zosam_jax._calls import of_value
from zosam_jax._streams import DROPOUT
from zosam_jax._types import Aux, Key, Params, ValueFn
from zosam_jax.data.augment import one_hot
from zosam_jax.gradients.pieces import Examples
from zosam_jax.runs.errors import RunError
from zosam_jax.train import scores
from zosam_jax.train.experiment import Experiment, Loss, Model, ModelState

if TYPE_CHECKING:
    from zosam_jax.train.batch import Batch

# Weight of the teacher's classes in the loss (DeiT, arXiv:2012.12877, equation 3).
_TAUGHT = 0.5


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns the cross-entropy of every example, float32 `[N]`.

    Args:
      logits: `[N, K]`, or `[N, T, K]`, averaged over T.
      targets: Classes, integers of the shape of `logits` without its last axis, or
        probabilities of its whole shape.
    """
    logits = logits.astype(jnp.float32)
    if jnp.issubdtype(targets.dtype, jnp.integer):
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    else:
        losses = optax.softmax_cross_entropy(logits, targets)
    return _by_example(losses)


def binary_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns the mean binary cross-entropy of the classes of each example, `[N]`.

    Args:
      logits: `[N, K]`; their sigmoids are the probabilities.
      targets: 1 where an example has a class, else 0, float32 `[N, K]`.
    """
    logits = logits.astype(jnp.float32)
    return _by_example(optax.sigmoid_binary_cross_entropy(logits, targets))


def squared_error(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns the mean squared error of the values of each example, float32 `[N]`.

    Args:
      outputs: `[N, K]`.
      targets: float32 `[N, K]`.
    """
    return _by_example(jnp.square(outputs.astype(jnp.float32) - targets))


def pixel_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns the mean cross-entropy of the pixels of each example, float32 `[N]`.

    Pixels that are ignored do not count; an example of such pixels alone has loss 0.

    Args:
      logits: `[N, H, W, K]`.
      targets: Class of each pixel, integers `[N, H, W]`, where a number from K on is no
        class and is ignored; or probabilities `[N, H, W, K]`, zeros where ignored.
    """
    logits = logits.astype(jnp.float32)
    targets = one_hot(targets, logits.shape[-1])
    losses = optax.softmax_cross_entropy(logits, targets)
    pixels = jnp.sum(targets.any(-1), (1, 2))
    return jnp.sum(losses, (1, 2)) / jnp.maximum(pixels, 1)


LOSSES: dict[str, Loss] = {
    "classification": cross_entropy,
    "multilabel": binary_cross_entropy,
    "regression": squared_error,
    "segmentation": pixel_cross_entropy,
}
"""By the task of the labels."""


def _by_example(losses: jax.Array) -> jax.Array:
    return losses if losses.ndim == 1 else jnp.mean(losses, range(1, losses.ndim))


def checked(function: Loss, name: str) -> Loss:
    """Returns a user's loss with outputs and losses in float32, and its result checked.

    Args:
      function: `(outputs, labels) -> losses`, of the shape `[N]`, of that of the
        labels, or one for each token: these are averaged over all axes but the first.
      name: Its name, for messages.

    Raises:
      RunError: In the call: the function raises an error, or returns another shape.
    """

    def losses(outputs: jax.Array, targets: jax.Array) -> jax.Array:
        of = f"for outputs {of_value(outputs)} and labels {of_value(targets)}"
        try:
            found = jnp.asarray(function(outputs.astype(jnp.float32), targets))
        except Exception as error:
            said = (str(error).strip().splitlines() or [""])[0].rstrip(".")
            raise RunError(
                f"loss={name} raised {type(error).__name__} {of}: {said}. It must be a "
                "function (outputs, labels) -> losses of arrays that jax.jit can trace."
            ) from error
        of_tokens = outputs.shape[:-1]
        if found.shape not in (targets.shape[:1], targets.shape, of_tokens):
            raise RunError(
                f"loss={name} returned {of_value(found)} {of}. It must return one loss "
                f"for each example, [{len(targets)}]: the trainer averages them."
            )
        return _by_example(found.astype(jnp.float32))

    return losses


def _losses(
    experiment: Experiment,
    model: Model,
    params: Params,
    model_state: ModelState,
    batch: "Batch",
    key: Key,
    train: bool,
) -> tuple[jax.Array, Aux]:
    """Returns the losses `[N]`, and the new model state with the sums of the scores."""
    outputs, changed = model.apply(
        {"params": params, **model_state},
        batch.inputs,
        train=train,
        rngs={"dropout": key},
        mutable=list(model_state) if train else [],
    )
    logits, distilled = outputs if isinstance(outputs, tuple) else (outputs, outputs)
    losses = experiment.loss(logits, batch.targets)
    if batch.taught is not None:
        taught = experiment.loss(distilled, batch.taught)
        losses = (1 - _TAUGHT) * losses + _TAUGHT * taught
    parts = scores.parts(experiment, logits, batch.targets)
    correct = scores.summed(experiment.facts, parts, jnp.float32)
    # A pass over part of the batch is scaled to the whole batch.
    correct *= experiment.batch_size / (len(parts) if correct.ndim else parts.size)
    return losses, (dict(changed) if train else model_state, correct)


def value_fn(
    experiment: Experiment,
    model_state: ModelState,
    step: jax.Array,
    batch: "Batch",
    *,
    probe: bool = False,
) -> ValueFn:
    """Returns `(params, examples=None, key=None) -> (loss, aux)` on a batch.

    The loss is the mean over the examples, or one loss per example for gradients that
    are `by_example`. aux is the new model state and the sums of the scores.

    All passes of a step share one dropout key. There are two exceptions: a gradient may
    give each pass a key, and for gradients that are `by_example` each part of the batch
    has a key of its own.

    Args:
      experiment: The experiment.
      model_state: BatchNorm statistics, or {}.
      step: The step, from which the dropout key comes. int32.
      batch: The batch.
      probe: Return the loss of the ascent step, with `experiment.probe_model`; in
        evaluation mode unless `experiment.probe_trains`.
    """
    by_example = experiment.gradient.by_example
    model = experiment.probe_model if probe else experiment.model
    train = experiment.probe_trains or not probe
    shared = experiment.key(DROPOUT, step)

    def value(
        params: Params, examples: Examples | None = None, key: Key | None = None
    ) -> tuple[jax.Array, Aux]:
        part, draws = batch, shared
        if by_example:
            first = 0 if examples is None else examples[0]
            draws = jax.random.fold_in(shared, first)
        if examples is not None:
            part = jax.tree.map(lambda x: x[examples], part)
        if len(part.inputs) % experiment.mesh.size == 0:
            part = experiment.split(part)
        draws = draws if key is None else key
        whole = experiment.gathered(params)
        losses, aux = _losses(experiment, model, whole, model_state, part, draws, train)
        return (losses if by_example else jnp.mean(losses)), aux

    return value
