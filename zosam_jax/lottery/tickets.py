"""The states, masks and mask distances that pass from one round to the next."""

import contextlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
import optax

from zosam_jax import sparsity as sparse
from zosam_jax._types import Masks, OptState
from zosam_jax.lottery.config import LotteryConfig
from zosam_jax.runs.errors import RunError
from zosam_jax.sparsity.moments import reset_moments
from zosam_jax.train import checkpoint
from zosam_jax.train.compiled_run import CompiledRun
from zosam_jax.train.experiment import Experiment
from zosam_jax.train.step import TrainState

_prune = jax.jit(sparse.prune_ticket, static_argnames=("sparsity", "per_layer"))


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

    Step, schedules and data order always come from `early`.

    Args:
      trained: The state at the end of the previous round.
      early: The state of the first round at the rewind step.
      fresh: The state of the first round before its first step.
      sparsity: Sparsity of the new mask, which is made from the weights of `trained`.
      rewind: "weights": parameters, batch statistics, optimizer state and moving
        average come from `early`; the moments of pruned weights are reset.
        "learning-rate": parameters and batch statistics come from `trained`; the moving
        average restarts there, and all moments and bias corrections are reset.
      per_layer: As for `zosam_jax.sparsity.prune_ticket`.
    """
    old = sparse.masks(trained.opt_state)
    masks = _prune(trained.params, old, sparsity=sparsity, per_layer=per_layer)
    source = early if rewind == "weights" else trained
    params = sparse.apply_masks(source.params, masks)
    average = (params, source.model_state) if early.average else ()
    if early.average and rewind == "weights":
        average = (sparse.apply_masks(early.average[0], masks), early.average[1])
    start = TrainState(
        step=early.step,
        params=params,
        model_state=source.model_state,
        opt_state=_with_masks(early.opt_state, fresh.opt_state, masks, rewind),
        totals=early.totals,
        average=average,
    )
    return checkpoint.snapshot(start)


def _with_masks(
    early: sparse.SparsifyState,
    fresh: sparse.SparsifyState,
    masks: Masks,
    rewind: str,
) -> sparse.SparsifyState:
    """Returns the state of `sparsify` with other masks."""
    if rewind == "weights":
        pruned = jax.tree.map(np.logical_not, masks)
        inner = reset_moments(early.inner, fresh.inner, pruned)
        return early._replace(masks=masks, inner=inner)

    def is_schedule(x: OptState) -> bool:
        return isinstance(x, optax.ScaleByScheduleState)

    inner = jax.tree.map(
        lambda new, old: old if is_schedule(new) else new,
        fresh.inner,
        early.inner,
        is_leaf=is_schedule,
    )
    # The gradient's step count, which gives the PRNG keys, is rewound too.
    gradient = early.gradient._replace(memory=fresh.gradient.memory)
    return early._replace(masks=masks, inner=inner, gradient=gradient)


def observer(
    config: LotteryConfig, experiment: Experiment
) -> Callable[[int, TrainState], bool]:
    """Returns the `on_epoch` of round 0: it keeps states and detects early birds.

    It may be called with the same epoch again, when the round resumes.
    """
    path, per_epoch = config.folder, experiment.steps_per_epoch
    rule = sparse.early_bird(
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
            sparse.masks(state.opt_state),
            sparsity=config.train.sparsity,
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


def read(directory: Path, step: int, compiled: CompiledRun, advice: str) -> TrainState:
    """Returns the checkpoint of a step as NumPy arrays.

    Args:
      directory: Folder of the checkpoints.
      step: The step.
      compiled: The programs, which tell the shapes of the state.
      advice: A sentence for the error message that says what to do.

    Raises:
      RunError: The checkpoint cannot be read.
    """
    with contextlib.closing(checkpoint.Checkpoints(directory, 2)) as kept:
        try:
            return kept.read(step, compiled.abstract)
        except Exception as error:
            raise RunError(
                f"the state of step {step} in {directory} cannot be read: "
                f"{type(error).__name__}. {advice}"
            ) from error


def _epoch_file(path: Path, epochs: int) -> Path:
    return path / "early-bird" / f"epoch-{epochs:04}.npz"


def _store(path: Path, seen: sparse.EarlyBirdState) -> None:
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        leaves = map(np.asarray, jax.tree.leaves(seen))
        np.savez_compressed(file, *leaves, changed=np.asarray(seen.changed[-1]))
    os.replace(temporary, path)


def _load(path: Path, like: sparse.EarlyBirdState) -> sparse.EarlyBirdState:
    shapes, treedef = jax.tree.flatten(like)
    leaves = _read_arrays(path, [f"arr_{i}" for i in range(len(shapes))])
    if any(x.shape != np.shape(y) for x, y in zip(leaves, shapes, strict=True)):
        raise RunError(
            f"{path} holds masks of another network. Start anew with --overwrite."
        )
    return jax.tree.unflatten(treedef, leaves)


def _read_arrays(path: Path, names: Sequence[str]) -> list[np.ndarray]:
    """Returns some arrays of a file that `_store` wrote."""
    try:
        with np.load(path) as file:
            return [file[name] for name in names]
    except Exception as error:  # NumPy raises what the damage leads to.
        raise RunError(
            f"{path} cannot be read: {type(error).__name__}. It holds masks of the "
            "first round, which are nowhere else: start anew with --overwrite."
        ) from error


def changes(path: Path, epochs: int) -> list[int]:
    """Returns the numbers of mask entries that changed in epochs 2 to `epochs`."""
    files = (_epoch_file(path, epoch) for epoch in range(2, epochs + 1))
    return [int(_read_arrays(file, ["changed"])[0]) for file in files]
