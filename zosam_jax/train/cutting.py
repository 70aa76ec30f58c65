"""A training goes on with a smaller network, where units have no future (`compact`)."""

from typing import NamedTuple

import jax

from zosam_jax import sparsity
from zosam_jax.runs.config import TrainConfig
from zosam_jax.runs.errors import RunError
from zosam_jax.sparsity.lasting import last_change, lasting
from zosam_jax.sparsity.method import Topology
from zosam_jax.train import checkpoint, forward, narrowed, processes
from zosam_jax.train.compiled_run import CompiledRun
from zosam_jax.train.experiment import Experiment
from zosam_jax.train.step import TrainState

LEAST_SHARE = 0.1
"""Share of the multiply-adds of a forward pass that a cut removes at least: below, the
compilation of new programs would take longer than the cut saves."""


class Cut(NamedTuple):
    """A training after a cut.

    Attributes:
      compiled: Its programs, traced.
      state: Its state, as NumPy arrays.
      said: What was cut, in a line.
    """

    compiled: CompiledRun
    state: TrainState
    said: str


def check(config: TrainConfig, compiled: CompiledRun) -> None:
    """Raises `RunError` if nothing could be cut in a training, or not exactly.

    Args:
      config: The configuration.
      compiled: The programs.
    """
    every, experiment = config.compact_every, compiled.experiment
    if every is None:
        return
    said = f"compact_every={every}"
    if processes.are_several():
        raise RunError(f"{said}: several processes cannot train it. Leave it out.")
    method, name = experiment.method, experiment.labels["method"]
    if method is None:
        raise RunError(f"{said}: a dense training prunes nothing. Leave it out.")
    model = experiment.model
    if not (hasattr(model, "cuts") and hasattr(model, "widths")):
        raise RunError(
            f"{said}: model={experiment.labels['model']!r} does not say where its "
            "units are (cuts) and takes no widths. Leave it out."
        )
    if method.straight_through:
        raise RunError(
            f"{said}: method={name!r} trains pruned weights too, and brings any of "
            "them back. Leave it out."
        )
    if not _can_cut(experiment, every):
        last = last_change(method, experiment.optimizer_steps)
        raise RunError(
            f"{said}: method={name!r} may bring back any unit until it has changed its "
            f"masks for the last time, in optimizer step {last} of "
            f"{experiment.optimizer_steps}, and no cut comes after that. Take a lower "
            "--stop-fraction or a smaller --compact-every, or leave it out."
        )
    if wrong := narrowed.misfits(compiled.abstract, experiment):
        raise RunError(
            f"{said}: the state of the optimizer or of the gradient has arrays that "
            f"are not in the shape of a parameter, and cannot be cut with it: "
            f"{', '.join(wrong[:3])}. Take another --optimizer or --gradient, or leave "
            "it out."
        )


def _can_cut(experiment: Experiment, every: int) -> bool:
    """Whether units have no future after any of the epochs in which one may cut."""
    method = experiment.method
    assert method is not None
    # After the last epoch, nothing is trained any more.
    last_cut = (experiment.epochs - 1) // every * every
    step = last_cut * experiment.steps_per_epoch
    is_fixed = _is_fixed(experiment, step)
    return last_cut > 0 and (is_fixed or method.final_units is not None)


def _is_fixed(experiment: Experiment, step: int) -> bool:
    """Whether the masks change no more from a batch on."""
    assert experiment.method is not None
    last = last_change(experiment.method, experiment.optimizer_steps)
    return last is None or step // experiment.accumulate_steps > last


def cut(compiled: CompiledRun, state: TrainState) -> Cut | None:
    """Returns the training without the units that no later step reads.

    It computes the same as before, to rounding, but for random numbers that are drawn
    in the shape of the parameters. None: too little can be cut to be worth compiling.

    Args:
      compiled: The programs.
      state: The state at the end of an epoch.
    """
    experiment = compiled.experiment
    method, held = experiment.method, state.opt_state
    assert method is not None
    host = checkpoint.snapshot(state)
    masks = sparsity.masks(host.opt_state)
    is_fixed = _is_fixed(experiment, int(host.step))
    topology = Topology(masks, held.memory)
    found = lasting(method, topology, host.params, is_fixed=is_fixed)
    if found is None:
        return None
    small = sparsity.compact(
        experiment.model,
        host.params,
        found.masks,
        model_state=host.model_state,
        # A unit that is folded into biases would not train any more.
        fold=False,
    )
    if not small.removed:
        return None
    network = {"widths": dict(small.widths), "masks_fixed": found.is_fixed}
    smaller = narrowed.of(experiment.whole or experiment, network)
    before, after = forward.macs(experiment), forward.macs(smaller)
    if after > (1 - LEAST_SHARE) * before:
        return None
    new = narrowed.cut_memory(small.cut(host), smaller)
    counts = [
        sum(x.size for x in jax.tree.leaves(p)) for p in (host.params, new.params)
    ]
    said = (
        f"cut: {counts[0]:,} -> {counts[1]:,} parameters, {before:,} -> {after:,} "
        "multiply-adds an example"
    )
    return Cut(compiled.narrowed(smaller), new, said)
