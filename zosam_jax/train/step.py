"""The state of a training, and one step of it, as pure functions of arrays."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import zosam_jax as zs
from zosam_jax import models
from zosam_jax._streams import DROPOUT, INIT
from zosam_jax.train import criteria, methods, objective
from zosam_jax.train.batch import prepare
from zosam_jax.train.task import Task


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
      step: Batches done. int32.
      params: Parameters, pruned ones exactly zero (but for straight-through methods).
      model_state: BatchNorm statistics, or {}.
      opt_state: State of the optimizer, with the masks.
      totals: Sums of the present epoch.
      average: Exponential moving average of `(params, model_state)`, or ().
    """

    step: jax.Array
    params: Any
    model_state: Any
    opt_state: Any
    totals: Totals
    average: Any = ()


def init(task: Task, images: jax.Array, labels: jax.Array) -> TrainState:
    """Returns the state before the first step, masks applied.

    Args:
      task: The task.
      images: The raw examples of the first batch, which criteria score by.
      labels: Their labels.
    """
    config = task.config
    params, model_state = models.initialize(
        task.model, task.key(INIT), task.dataset.image_shape
    )
    zero = jnp.zeros((), jnp.int32)

    def score(params: Any) -> jax.Array:
        batch = prepare(task, zero, images, labels, None)
        loss = criteria.value_fn(
            methods.scores_by(config),
            task.model,
            model_state,
            batch.inputs,
            batch.targets,
            task.key(DROPOUT, zero),
        )
        return loss(params)

    tx = task.optimizer((model_state, jnp.zeros((), jnp.float32)), score)
    opt_state = tx.init(params)
    if not methods.trains_pruned(config):
        params = methods.live_params(config, params, opt_state)
    # Copies: a donated state may not hold an array twice.
    average = jax.tree.map(jnp.copy, (params, model_state)) if config.ema else ()
    totals = _no_totals(zero - 1)
    return TrainState(zero, params, model_state, opt_state, totals, average)


def _no_totals(bad_step: jax.Array) -> Totals:
    none, zero = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32)
    return Totals(none, zero, zero, zero, zero, none, bad_step)


def train_step(
    task: Task, state: TrainState, images: jax.Array, labels: jax.Array, teacher: Any
) -> TrainState:
    """Returns the state after one more batch.

    All that is random in it comes from the seed and `state.step`.

    Args:
      task: The task.
      state: The state.
      images: The raw examples of the step, uint8 `[N, H, W, C]`, or tokens `[N, T]`.
      labels: Their labels, int32 `[N]`, or `[N, T]`.
      teacher: The teacher's variables, or None.
    """
    batch = prepare(task, state.step, images, labels, teacher)
    value_fn = objective.value_fn(task, state.model_state, state.step, batch)
    probe = None
    if task.config.probes:
        probe = objective.value_fn(
            task, state.model_state, state.step, batch, probe=True
        )
    like = jax.eval_shape(value_fn, state.params)[1]
    tx = task.optimizer(like, value_fn)
    updates, opt_state = tx.update(
        *(None, state.opt_state, state.params),
        value_fn=value_fn,
        ascent_value_fn=probe,
        # Of a dense run; `sparsify` counts its own.
        optimizer_step=state.step // task.config.accumulate_steps,
    )
    estimate = zs.estimate(opt_state)
    model_state, correct = estimate.aux
    totals = _add(task, state, estimate, correct)
    params = optax.apply_updates(state.params, updates)
    new = TrainState(state.step + 1, params, model_state, opt_state, totals)
    return new._replace(average=_average(task, state, new))


def _average(task: Task, old: TrainState, new: TrainState) -> Any:
    """Returns the moving average with a step's network in it, on the new masks.

    At first it forgets faster, so that it does not keep the initial weights.
    """
    config = task.config
    if not config.ema:
        return ()
    count = new.step // config.accumulate_steps
    decay = jnp.minimum(config.ema, (1 + count) / (10 + count)).astype(jnp.float32)
    # Between two steps of the optimizer nothing moves.
    decay = jnp.where(new.step % config.accumulate_steps == 0, decay, 1.0)
    params, model_state = jax.tree.map(
        lambda a, x: (decay * a + (1 - decay) * x).astype(a.dtype),
        old.average,
        (new.params, new.model_state),
    )
    if not methods.trains_pruned(config):
        params = methods.live_params(config, params, new.opt_state)
    return params, model_state


def trained(state: TrainState) -> tuple[Any, Any]:
    """Returns `(params, model_state)` to evaluate: the averages, where there are any.

    Of a straight-through method the pruned parameters are not zero.
    """
    return state.average or (state.params, state.model_state)


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
