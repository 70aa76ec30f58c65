"""One training step and one evaluation step, as pure functions of arrays."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

import zosam_jax as zs
from zosam_jax import models
from zosam_jax.data import Dataset, augment
from zosam_jax.train import criteria, gradients, methods, optimizer
from zosam_jax.train.config import TrainConfig

# Streams of random numbers apart from that of the gradient, whose key is
# fold_in(key(seed), step): no step reaches these numbers.
_INIT, _ORDER, _AUGMENT = (np.uint32(0xFFFFFFF0 + i) for i in range(3))


class Totals(NamedTuple):
    """Sums over the steps of the present epoch; part of the state, so resumed with it.

    Attributes:
      steps: Steps so far. int32.
      loss: Sum of the losses, clean ones where the method has them. float32.
      correct: Training images classified right; the count of a pass that saw part of
        the batch, scaled to all of it. float32.
      perturbation_norm: Sum of the norms of the perturbation. float32.
      perturbation_cosine: Sum of its cosines to the gradient there. float32.
      unperturbed: Steps that fell back to the plain gradient. int32.
      bad_step: The first step of the run whose loss was not finite, or -1. int32.
    """

    steps: jax.Array
    loss: jax.Array
    correct: jax.Array
    perturbation_norm: jax.Array
    perturbation_cosine: jax.Array
    unperturbed: jax.Array
    bad_step: jax.Array


class TrainState(NamedTuple):
    """All that training changes, and all that a checkpoint holds.

    Attributes:
      step: Optimizer steps done. int32.
      params: Parameters, pruned ones exactly zero (but for straight-through methods).
      model_state: BatchNorm statistics, or {}.
      opt_state: State of the optimizer, with the masks.
      totals: Sums of the present epoch.
    """

    step: jax.Array
    params: Any
    model_state: Any
    opt_state: Any
    totals: Totals


class EvalTotals(NamedTuple):
    """Sums over test images: loss (float32) and correct ones (int32)."""

    loss: jax.Array
    correct: jax.Array


@dataclasses.dataclass(frozen=True)
class Task:
    """What a run computes with: all that is fixed before it starts.

    Attributes:
      config: The configuration.
      dataset: Its images stay in host memory here; steps take them as arguments.
      model: A Linen module called with `(images, train=...)`.
      mesh: Local devices along one axis, "data".
    """

    config: TrainConfig
    dataset: Dataset
    model: Any
    mesh: jax.sharding.Mesh

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches of the training set."""
        return len(self.dataset.train_labels) // self.config.batch_size

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.steps_per_epoch * self.config.epochs

    @property
    def dtype(self) -> Any:
        """Type that the model computes in."""
        return jnp.dtype(self.config.dtype)

    def key(self, stream: np.uint32, count: Any = 0) -> jax.Array:
        """Returns the key of a stream of random numbers at a count."""
        key = jax.random.fold_in(jax.random.key(self.config.seed), stream)
        return jax.random.fold_in(key, count)

    def replicated(self) -> NamedSharding:
        """Returns the sharding of all but the batch."""
        return NamedSharding(self.mesh, PartitionSpec())

    def split(self, batch: Any) -> Any:
        """Lays the first axis of every array over the devices."""
        sharding = NamedSharding(self.mesh, PartitionSpec("data"))
        return jax.lax.with_sharding_constraint(batch, sharding)

    def optimizer(self, aux_like: Any, value_fn: Any) -> Any:
        """Returns the optimizer; see `zosam_jax.train.optimizer.make`."""
        patterns = (*_model_patterns(self.config.model), *self.config.dense)
        return optimizer.make(
            self.config,
            self.total_steps,
            dense=patterns,
            aux_like=aux_like,
            value_fn=value_fn,
        )


def _model_patterns(name: str) -> tuple[str, ...]:
    return models.dense_paths(name) if name in models.names() else ()


def epoch_order(task: Task, epoch: jax.Array) -> jax.Array:
    """Returns the training images' indices in the order of an epoch, from the seed.

    Args:
      task: The task.
      epoch: From 0. int32.
    """
    return jax.random.permutation(
        task.key(_ORDER, epoch), len(task.dataset.train_labels)
    )


def init(task: Task, images: jax.Array, labels: jax.Array) -> TrainState:
    """Returns the state before the first step, masks applied.

    Args:
      task: The task.
      images: The training set, uint8; criteria score by the first batch of it.
      labels: Its labels.
    """
    config = task.config
    shape = task.dataset.image_shape
    params, model_state = models.initialize(task.model, task.key(_INIT), shape)
    zero = jnp.zeros((), jnp.int32)

    def score(params: Any) -> jax.Array:
        batch = _batch(task, zero, epoch_order(task, zero), images, labels)
        name = methods.scores_by(config)
        return criteria.value_fn(name, task.model, model_state, *batch)(params)

    tx = task.optimizer((model_state, jnp.zeros((), jnp.float32)), score)
    opt_state = tx.init(params)
    if not methods.trains_pruned(config):
        params = methods.live_params(config, params, opt_state)
    return TrainState(zero, params, model_state, opt_state, _no_totals(zero - 1))


def _no_totals(bad_step: jax.Array) -> Totals:
    none, zero = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32)
    return Totals(none, zero, zero, zero, zero, none, bad_step)


def _batch(
    task: Task, step: jax.Array, order: jax.Array, images: jax.Array, labels: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns the augmented, normalised images and the labels of a step."""
    size = task.config.batch_size
    start = step % task.steps_per_epoch * size
    chosen = task.split(jax.lax.dynamic_slice(order, (start,), (size,)))
    data = task.dataset
    batch = augment.random_crop_flip(
        task.key(_AUGMENT, step), images[chosen], data.crop_padding, data.flip
    )
    batch = augment.normalize(batch, data.mean, data.std, task.dtype)
    return task.split(batch), labels[chosen]


def _losses(
    task: Task,
    params: Any,
    model_state: Any,
    images: jax.Array,
    labels: jax.Array,
    dtype: str = "same",
) -> tuple[jax.Array, Any]:
    """Returns the cross-entropies, and the new model state and correct answers."""
    model = task.model if dtype == "same" else task.model.clone(dtype=dtype)
    logits, changed = model.apply(
        {"params": params, **model_state},
        images,
        train=True,
        mutable=list(model_state),
    )
    losses = optax.softmax_cross_entropy_with_integer_labels(
        logits.astype(jnp.float32), labels
    )
    correct = jnp.sum(logits.argmax(-1) == labels, dtype=jnp.float32)
    return losses, (dict(changed), correct * (task.config.batch_size / len(labels)))


def _value_fn(
    task: Task, model_state: Any, batch: Any, *, probe: bool = False
) -> Callable[..., Any]:
    """Returns `(params, examples=None) -> (loss, aux)` on a batch, or on part of it.

    The loss is the mean, or one for each example where the gradient wants those. A
    probe sees the front of the examples, and the network in its own dtype.
    """
    config = task.config
    by_example = gradients.by_example(config)
    same = not probe or config.probe_dtype == config.dtype
    dtype = "same" if same else config.probe_dtype

    def value_fn(params: Any, examples: jax.Array | None = None) -> Any:
        images, labels = batch
        if examples is not None:
            images, labels = images[examples], labels[examples]
        if probe and config.probe_fraction < 1:
            count = max(1, round(config.probe_fraction * len(labels)))
            images, labels = images[:count], labels[:count]
        if len(labels) % task.mesh.size == 0:
            images, labels = task.split((images, labels))
        losses, aux = _losses(task, params, model_state, images, labels, dtype)
        return (losses if by_example else jnp.mean(losses)), aux

    return value_fn


def train_step(
    task: Task,
    state: TrainState,
    order: jax.Array,
    images: jax.Array,
    labels: jax.Array,
) -> TrainState:
    """Returns the state after one more optimizer step.

    All that is random in it comes from the seed and `state.step`.

    Args:
      task: The task.
      state: The state.
      order: `epoch_order` of the step's epoch.
      images: The training set, uint8 `[N, H, W, C]`.
      labels: Its labels, int32 `[N]`.
    """
    batch = _batch(task, state.step, order, images, labels)
    value_fn = _value_fn(task, state.model_state, batch)
    probe = None
    if task.config.probes:
        probe = _value_fn(task, state.model_state, batch, probe=True)
    like = jax.eval_shape(value_fn, state.params)[1]
    tx = task.optimizer(like, value_fn)
    updates, opt_state = tx.update(
        None, state.opt_state, state.params, value_fn=value_fn, ascent_value_fn=probe
    )
    estimate = zs.estimate(opt_state)
    model_state, correct = estimate.aux
    totals = _add(task, state, estimate, correct)
    params = optax.apply_updates(state.params, updates)
    return TrainState(state.step + 1, params, model_state, opt_state, totals)


def _add(task: Task, state: TrainState, estimate: Any, correct: jax.Array) -> Totals:
    """Returns the totals with a step added, begun anew where an epoch begins."""
    old, info = state.totals, estimate.info
    begins = state.step % task.steps_per_epoch == 0
    old = jax.tree.map(
        lambda zero, value: jnp.where(begins, zero, value),
        _no_totals(old.bad_step),
        old,
    )
    # A cheaper look's loss is not that of the batch.
    value = info.descent_value if task.config.probes else estimate.value
    # The probes may be finite where the descent pass, and so the gradient, is not.
    finite = jnp.isfinite(value) & jnp.isfinite(info.descent_value)
    is_bad = ~finite & (old.bad_step < 0)
    return Totals(
        steps=old.steps + 1,
        loss=old.loss + value,
        correct=old.correct + correct,
        perturbation_norm=old.perturbation_norm + info.perturbation_norm,
        perturbation_cosine=old.perturbation_cosine + info.cosine,
        unperturbed=old.unperturbed + info.unperturbed,
        bad_step=jnp.where(is_bad, state.step + 1, old.bad_step),
    )


def train_until(
    task: Task,
    state: TrainState,
    order: jax.Array,
    images: jax.Array,
    labels: jax.Array,
    stop: jax.Array,
) -> TrainState:
    """Returns the state at step `stop`, in one compiled loop; see `train_step`.

    The number of steps is an argument, not part of the program: an epoch, the rest of
    one after a resume, and a shorter block all run the same code.
    """
    return jax.lax.while_loop(
        lambda state: state.step < stop,
        lambda state: train_step(task, state, order, images, labels),
        state,
    )


def eval_batch_size(task: Task) -> int:
    """Returns the images of an evaluation step: 512 at most, a multiple of devices."""
    devices = task.mesh.size
    return -(-min(len(task.dataset.test_labels), 512) // devices) * devices


def eval_step(
    task: Task,
    variables: Any,
    images: jax.Array,
    labels: jax.Array,
    start: jax.Array,
    totals: EvalTotals,
) -> EvalTotals:
    """Returns the totals with a batch of test images added.

    Args:
      task: The task.
      variables: `(methods.live_params(...), model_state)`.
      images: The test set, uint8.
      labels: Its labels.
      start: Index of the batch's first image; those behind the last do not count.
      totals: Sums of the batches before.
    """
    params, model_state = variables
    index = task.split(start + jnp.arange(eval_batch_size(task)))
    counts = index < labels.shape[0]
    index = jnp.minimum(index, labels.shape[0] - 1)
    data = task.dataset
    batch = augment.normalize(images[index], data.mean, data.std, task.dtype)
    logits = task.model.apply({"params": params, **model_state}, batch, train=False)
    losses = optax.softmax_cross_entropy_with_integer_labels(
        logits.astype(jnp.float32), labels[index]
    )
    right = (logits.argmax(-1) == labels[index]) & counts
    return EvalTotals(
        totals.loss + jnp.sum(jnp.where(counts, losses, 0.0)),
        totals.correct + jnp.sum(right, dtype=jnp.int32),
    )


def count_weights(state: TrainState, method: str) -> dict[str, Any]:
    """Returns the counts of parameters, of live ones, and both sparsities.

    `sparsity` is the share of zeros among the sparsified leaves; `sparsity_all` that
    among all parameters, the dense ones included.

    Args:
      state: A state.
      method: "dense" where it has no masks.
    """
    params = [np.asarray(x) for x in jax.tree.leaves(state.params)]
    masks = [np.ones((), bool)] * len(params)
    if method != "dense":
        tree = zs.sparsity.masks(state.opt_state)
        masks = [np.asarray(m) for m in jax.tree.leaves(tree)]
    sparse = [m for m in masks if m.ndim]
    total = sum(x.size for x in params)
    sparsified = sum(m.size for m in sparse)
    pruned = sum(int((~m).sum()) for m in sparse)
    return {
        "parameters": total,
        "parameters_sparsified": sparsified,
        "parameters_live": total - pruned,
        "sparsity": pruned / max(sparsified, 1),
        "sparsity_all": pruned / total,
    }
