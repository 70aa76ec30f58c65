"""What passes from one round of a lottery to the next: states, masks, distances."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

import zosam_jax as zs
from zosam_jax.lottery.config import LotteryConfig
from zosam_jax.runs.errors import RunError
from zosam_jax.sparsity.mask_trees import reset_moments
from zosam_jax.train import checkpoint
from zosam_jax.train.programs import Programs
from zosam_jax.train.step import TrainState

_prune = jax.jit(zs.sparsity.prune_ticket, static_argnames=("sparsity", "per_layer"))


def ticket(
    trained: TrainState,
    early: TrainState,
    fresh: TrainState,
    sparsity: float,
    *,
    rewind: str,
    per_layer: bool = False,
) -> TrainState:
    """Returns the state at the start of a round, as NumPy arrays.

    Args:
      trained: The state at the end of the round before.
      early: That of the first round at the step to go back to.
      fresh: That of the first round before its first step.
      sparsity: Of the new mask, which is drawn from the weights of `trained`.
      rewind: "weights": parameters, batch statistics and the optimizer's state are
        those of `early`, and so is the moving average, where there is one; the moments
        of pruned weights are fresh. "learning-rate": parameters and batch statistics
        are those of `trained`, where the average begins; all moments (and what corrects
        their bias) are fresh. Step, schedules and order of the data are those of
        `early` in both.
      per_layer: See `zosam_jax.sparsity.prune_ticket`.
    """
    old = zs.sparsity.masks(trained.opt_state)
    masks = _prune(trained.params, old, sparsity=sparsity, per_layer=per_layer)
    source = early if rewind == "weights" else trained
    params = zs.sparsity.apply_masks(source.params, masks)
    average = (params, source.model_state) if early.average else ()
    if early.average and rewind == "weights":
        average = (zs.sparsity.apply_masks(early.average[0], masks), early.average[1])
    start = TrainState(
        step=early.step,
        params=params,
        model_state=source.model_state,
        opt_state=_with_masks(early.opt_state, fresh.opt_state, masks, rewind),
        totals=early.totals,
        average=average,
    )
    return checkpoint.snapshot(start)


def _with_masks(early: Any, fresh: Any, masks: Any, rewind: str) -> Any:
    """Returns the state of `sparsify` with other masks: all that knows its fields."""
    if rewind == "weights":
        pruned = jax.tree.map(np.logical_not, masks)
        inner = reset_moments(early.inner, fresh.inner, pruned)
        return early._replace(masks=masks, inner=inner)

    def is_schedule(x: Any) -> bool:
        return isinstance(x, optax.ScaleByScheduleState)

    inner = jax.tree.map(
        lambda new, old: old if is_schedule(new) else new,
        fresh.inner,
        early.inner,
        is_leaf=is_schedule,
    )
    # Its step gives the keys.
    gradient = early.gradient._replace(memory=fresh.gradient.memory)
    return early._replace(masks=masks, inner=inner, gradient=gradient)


def observer(
    config: LotteryConfig, programs: Programs
) -> Callable[[int, TrainState], bool]:
    """Returns what is done at the epochs of round 0: keep states, see the early bird.

    It may be called with the same epoch again, when the round resumes.
    """
    path, per_epoch = config.folder, programs.task.steps_per_epoch
    rule = zs.sparsity.early_bird(
        window=config.early_bird_window, tolerance=config.early_bird_tolerance
    )
    update = jax.jit(rule.update)

    def observe(epochs: int, state: TrainState) -> bool:
        if epochs in (0, config.rewind_epoch):
            _keep(path / "rewind", epochs * per_epoch, state)
        if not config.early_bird or not epochs:
            return False
        masks = _prune(
            state.params,
            zs.sparsity.masks(state.opt_state),
            sparsity=config.sparsity,
            per_layer=config.per_layer,
        )
        seen = rule.init(masks)
        if epochs > 1:
            seen = _load(_epoch_file(path, epochs - 1), seen)
        seen = update(seen, masks)
        _store(_epoch_file(path, epochs), seen)
        return bool(seen.found)

    return observe


def _keep(directory: Path, step: int, state: TrainState) -> None:
    with contextlib.closing(checkpoint.Checkpoints(directory, 2)) as kept:
        if step not in kept.steps():
            kept.save(step, checkpoint.snapshot(state))
            kept.wait()


def read(directory: Path, step: int, programs: Programs, advice: str) -> TrainState:
    """Returns the state of a step as NumPy arrays.

    Args:
      directory: Of checkpoints.
      step: The step.
      programs: Those of the run.
      advice: A sentence that says what would work where it cannot be read.

    Raises:
      RunError: It cannot.
    """
    with contextlib.closing(checkpoint.Checkpoints(directory, 2)) as kept:
        try:
            return kept.read(step, programs.abstract)
        except Exception as error:
            raise RunError(
                f"the state of step {step} in {directory} cannot be read: "
                f"{type(error).__name__}. {advice}"
            ) from error


def _epoch_file(path: Path, epochs: int) -> Path:
    return path / "early-bird" / f"epoch-{epochs:04}.npz"


def _store(path: Path, seen: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        leaves = map(np.asarray, jax.tree.leaves(seen))
        np.savez_compressed(file, *leaves, changed=np.asarray(seen.changed[-1]))
    os.replace(temporary, path)


def _load(path: Path, like: Any) -> Any:
    try:
        with np.load(path) as file:
            count = jax.tree.structure(like).num_leaves
            leaves = [file[f"arr_{i}"] for i in range(count)]
        return jax.tree.unflatten(jax.tree.structure(like), leaves)
    except Exception as error:
        raise RunError(
            f"{path} cannot be read: {type(error).__name__}. Start anew with "
            "--overwrite."
        ) from error


def changes(path: Path, epochs: int) -> list[int]:
    """Returns how many entries of the mask changed in epochs 2, 3, ..., `epochs`."""
    found = []
    for epoch in range(2, epochs + 1):
        with np.load(_epoch_file(path, epoch)) as file:
            found.append(int(file["changed"]))
    return found
