"""The state of a training and one step of it, as pure functions of arrays."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from zosam_jax import sparsity
from zosam_jax._streams import DROPOUT, INIT
from zosam_jax._types import Estimate, OptState, Params, PyTree
from zosam_jax.gradients.transformation import estimate
from zosam_jax.train import loss, processes, scores, transfer
from zosam_jax.train.batch import prepare, scored
from zosam_jax.train.experiment import Experiment, ModelState
from zosam_jax.train.successive import SuccessiveCosine
from zosam_jax.train.transfer import Arrays
from zosam_jax.tree import nodes


class Cosines(NamedTuple):
    """Sums over the optimizer steps of an epoch that have one before them.

    Attributes:
      sum: Of the cosines of `successive.successive_cosine`. float32.
      steps: Number of the steps. int32.
    """

    sum: jax.Array
    steps: jax.Array


class Totals(NamedTuple):
    """Sums over the steps of the current epoch; part of the state, so resumed with it.

    Attributes:
      steps: Number of steps so far. int32.
      loss: Sum of the losses, at the unperturbed weights if the gradient knows them.
        float32.
      correct: Number of correct training examples, or the sums of another score, see
        `scores.no_sums`. A pass over part of the batch is scaled to the whole batch.
        float32.
      perturbation_norm: Sum of the norms of the perturbations. float32.
      perturbation_cosine: Sum of the cosines between perturbation and gradient.
        float32.
      unperturbed: Number of steps that fell back to the plain gradient. int32.
      bad_step: The first step of the run with a loss that is not finite, or -1. int32.
      cosines: Of successive gradients, a `Cosines`; () if they are not recorded.
    """

    steps: jax.Array
    loss: jax.Array
    correct: jax.Array
    perturbation_norm: jax.Array
    perturbation_cosine: jax.Array
    unperturbed: jax.Array
    bad_step: jax.Array
    cosines: Cosines | tuple[()] = ()


class TrainState(NamedTuple):
    """Everything that training changes and that a checkpoint holds.

    Attributes:
      step: Number of batches done. int32.
      params: Parameters. Pruned ones are exactly zero, except with straight-through
        methods and `chex`.
      model_state: BatchNorm statistics, or {}.
      opt_state: State of the optimizer, with the masks.
      totals: Sums over the current epoch.
      average: Exponential moving average of `(params, model_state)`, or ().
    """

    step: jax.Array
    params: Params
    model_state: ModelState
    opt_state: OptState
    totals: Totals
    average: PyTree = ()


def init(
    experiment: Experiment,
    images: jax.Array,
    labels: jax.Array,
    start: Arrays | None = None,
) -> TrainState:
    """Returns the state before the first step, with the masks applied.

    Args:
      experiment: The experiment.
      images: The raw examples which criteria score by; see `batch.scored`.
      labels: Their labels.
      start: Trained weights, and perhaps masks, to start from.
    """
    params, model_state = experiment.initialize(experiment.key(INIT))
    if start is not None:
        params = transfer.replaced(params, start.params)
        model_state = transfer.replaced(model_state, start.model_state)
    zero = jnp.zeros((), jnp.int32)
    optimizer, criterion = experiment.optimizer, experiment.criterion
    if criterion is not None:

        def score(params: Params) -> jax.Array:
            inputs, targets = scored(experiment, images, labels)
            key = experiment.key(DROPOUT, zero)
            network = experiment.model, model_state
            value = criterion.score(experiment.loss, *network, inputs, targets, key)
            return value(experiment.gathered(params))

        optimizer = criterion.optimizer(score)
    if start is not None and start.masks is not None:
        assert experiment.method is not None
        begun = sparsity.start_from(experiment.method, start.masks)
        optimizer = experiment.optimizer_of(begun, experiment.gradient)
    opt_state = optimizer.init(params)
    if not experiment.holds_pruned:
        params = live_params(experiment, params, opt_state)
    # Copies: a donated state may not hold an array twice.
    average = jax.tree.map(jnp.copy, (params, model_state)) if experiment.ema else ()
    totals = _no_totals(experiment, zero - 1, opt_state)
    return TrainState(zero, params, model_state, opt_state, totals, average)


def live_params(experiment: Experiment, params: Params, opt_state: OptState) -> Params:
    """Returns the parameters of the network that is used: zero where pruned.

    Args:
      experiment: The experiment.
      params: Parameters of a state. With some methods, pruned ones are not zero.
      opt_state: The optimizer state of the same state.
    """
    if experiment.method is None:
        return params
    return sparsity.apply_masks(params, sparsity.masks(opt_state))


def _no_totals(
    experiment: Experiment, bad_step: jax.Array, opt_state: OptState
) -> Totals:
    none, zero = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32)
    cosines = Cosines(zero, none) if nodes(opt_state, SuccessiveCosine) else ()
    correct = scores.no_sums(experiment.facts, jnp.float32)
    return Totals(none, zero, correct, zero, zero, none, bad_step, cosines)


def train_step(
    experiment: Experiment,
    state: TrainState,
    images: jax.Array,
    labels: jax.Array,
    teacher: PyTree,
) -> TrainState:
    """Returns the state after one more batch.

    All random numbers come from the seed and `state.step`.

    Args:
      experiment: The experiment.
      state: The state.
      images: The raw examples of the step, uint8 `[N, H, W, C]`, or tokens `[N, T]`.
      labels: Their labels, int32 `[N]`, or `[N, T]`.
      teacher: The teacher's variables, or None.
    """
    batch = prepare(experiment, state.step, images, labels, teacher)
    arguments = experiment, state.model_state, state.step, batch
    probe = loss.value_fn(*arguments, probe=True) if experiment.probes else None
    no_gradient: PyTree = None
    updates, opt_state = experiment.optimizer.update(
        *(no_gradient, state.opt_state, state.params),
        value_fn=loss.value_fn(*arguments),
        ascent_value_fn=probe,
        # For a dense run; `sparsify` counts its own steps.
        optimizer_step=state.step // experiment.accumulate_steps,
    )
    found = estimate(opt_state)
    model_state, correct = found.aux
    totals = _add(experiment, state, found, correct, opt_state)
    params = optax.apply_updates(state.params, updates)
    new = TrainState(state.step + 1, params, model_state, opt_state, totals)
    return new._replace(average=_average(experiment, state, new))


def _average(experiment: Experiment, old: TrainState, new: TrainState) -> PyTree:
    """Returns the moving average with the new network added, on the new masks.

    The decay is smaller in the first steps, so that the initial weights are forgotten.
    """
    if not experiment.ema:
        return ()
    count = new.step // experiment.accumulate_steps
    decay = jnp.minimum(experiment.ema, (1 + count) / (10 + count)).astype(jnp.float32)
    # Nothing moves between two optimizer steps.
    is_step = new.step % experiment.accumulate_steps == 0
    decay = jnp.where(is_step, decay, 1.0)

    def leaf(a: jax.Array, x: jax.Array) -> jax.Array:
        # Rounding would move what does not move.
        return jnp.where(a == x, a, (decay * a + (1 - decay) * x).astype(a.dtype))

    params, model_state = jax.tree.map(leaf, old.average, (new.params, new.model_state))
    if not experiment.holds_pruned:
        params = live_params(experiment, params, new.opt_state)
    return params, model_state


def evaluated(state: TrainState) -> tuple[Params, ModelState]:
    """Returns `(params, model_state)` to evaluate: the moving averages, if there are.

    With straight-through methods and `chex`, the pruned parameters are not zero.
    """
    return state.average or (state.params, state.model_state)


def _add(
    experiment: Experiment,
    state: TrainState,
    found: Estimate,
    correct: jax.Array,
    opt_state: OptState,
) -> Totals:
    """Returns the totals with a step added; the first step of an epoch resets them."""
    old, info = state.totals, found.info
    begins = state.step % experiment.steps_per_epoch == 0
    old = jax.tree.map(
        lambda zero, value: jnp.where(begins, zero, value),
        _no_totals(experiment, old.bad_step, opt_state),
        old,
    )
    # The loss of a cheaper ascent step is not the loss of the batch.
    value = info.descent_value if experiment.probes else found.value
    # The ascent step may be finite where the descent, and so the gradient, is not.
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
        cosines=_add_cosine(old.cosines, state.opt_state, opt_state),
    )


def _add_cosine(
    old: Cosines | tuple[()], before: OptState, after: OptState
) -> Cosines | tuple[()]:
    """Returns the sums with the cosine of an optimizer step added, if one was made."""
    if not isinstance(old, Cosines):
        return ()
    (was,), (now,) = (nodes(state, SuccessiveCosine) for state in (before, after))
    # A batch may be accumulated without a step, and the first step has none before it.
    counts = (now.steps > was.steps) & (now.steps > 1)
    return Cosines(old.sum + jnp.where(counts, now.cosine, 0), old.steps + counts)


def count_weights(experiment: Experiment, state: TrainState) -> dict[str, int | float]:
    """Returns the numbers of parameters and of live ones, and two sparsities.

    `sparsity` is the fraction of zeros in the sparse layers, `sparsity_all` the one
    among all parameters, dense ones included. They are those of the network that the
    run began with: what was cut out is zero. Collective, see
    `zosam_jax.train.processes`.
    """
    whole = state.params
    if experiment.whole is not None:
        whole, _ = experiment.whole.shapes
    sizes = [x.size for x in jax.tree.leaves(whole)]
    sparsified = live = 0
    if experiment.method is not None:
        masks = jax.tree.leaves(sparsity.masks(state.opt_state))
        for size, mask in zip(sizes, masks, strict=True):
            if mask.ndim:
                sparsified += size
                live += int(processes.whole(mask).sum())
    total, pruned = sum(sizes), sparsified - live
    return {
        "parameters": total,
        "parameters_sparsified": sparsified,
        "parameters_live": total - pruned,
        "sparsity": pruned / max(sparsified, 1),
        "sparsity_all": pruned / total,
    }
