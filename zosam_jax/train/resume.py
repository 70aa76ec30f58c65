"""The start of a session: from the last checkpoint of a run or from the beginning."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from zosam_jax._types import Params
from zosam_jax.runs import dataset_facts, folder, metrics
from zosam_jax.runs.files import JSON
from zosam_jax.train import numerics, processes, sharding
from zosam_jax.train.experiment import Experiment
from zosam_jax.train.step import TrainState

if TYPE_CHECKING:
    from zosam_jax.train.recording import Output
    from zosam_jax.train.session import Setup


def begin(
    setup: "Setup",
    start: TrainState | None,
    command: Sequence[str] | None,
    beside: Mapping[str, Any],
) -> "tuple[Setup, TrainState, list[JSON]]":
    """Returns the setup, the state to train on from and the metrics up to it.

    It restores the last checkpoint, writes `config.json`, tells what will happen and
    compiles. The setup is another if the network of the checkpoint is smaller.

    Args:
      setup: The constant inputs of the training.
      start: A state to begin with if there is no checkpoint; None for the initial one.
      command: The command line, for the record.
      beside: Further entries of `config.json`.
    """
    output, compiled, show = setup.output, setup.compiled, setup.output.display
    restored = output.checkpoints.restore(
        compiled.abstract,
        show.message,
        lambda step: _without_metrics(output, step),
        None if processes.are_several() else compiled.like,
    )
    if restored is not None and not processes.are_several():
        network = output.checkpoints.network(int(restored.step))
        if network is not None:
            setup = setup.narrowed(compiled.of_network(network))
            output, compiled = setup.output, setup.compiled
    given = start if restored is None else restored
    step = 0 if given is None else int(given.step)
    changes = processes.first(lambda: write_record(output, command, step, beside))
    for text in opening(output, compiled.abstract.params):
        show.message(text)
    if text := sharding.shares(output.experiment.mesh, compiled.abstract):
        show.message(text)
    lines = output.folder / "metrics.jsonl"
    if given is None and processes.first(lambda: bool(metrics.read(lines))):
        show.message("there is no checkpoint any more, so the run begins again")
    if restored is not None:
        show.message(f"resuming at step {step} of {output.experiment.total_steps}")
        _tell_changes(output, changes)
    elif given is None and compiled.start is not None:
        show.message(compiled.start.said)
    if not compiled.is_compiled:
        show.message("compiling...")
    compiled.compile()
    state = compiled.init() if given is None else compiled.place(given)
    records = processes.first(lambda: metrics.cut(lines, step))
    show.message(f"compiled in {sum(compiled.compile_seconds.values()):.1f} s")
    return setup, state, records


def write_record(
    output: "Output",
    command: Sequence[str] | None,
    step: int,
    beside: Mapping[str, Any],
    **session: Any,
) -> dict[str, str]:
    """Writes `config.json`, and returns what changed since the session before.

    Args:
      output: What the run is, and where its record goes.
      command: The command line, for the record.
      step: The step at which this session starts.
      beside: Further entries of `config.json`.
      **session: Further entries of the session.
    """
    devices = {
        "backend": jax.default_backend(),
        "device": jax.local_devices()[0].device_kind,
        "devices": output.experiment.mesh.size,
        "fsdp": output.experiment.mesh.shape["fsdp"],
        "processes": jax.process_count(),
        "numerics": numerics.settings(),
        **session,
    }
    where = output.folder, output.config
    return folder.write_config(*where, command, step, devices, beside)


def opening(output: "Output", params: Params) -> list[str]:
    """Returns lines that say what is about to train.

    Args:
      output: What the run is, and where its record goes.
      params: Its parameters, or their shapes.
    """
    experiment = output.experiment
    lines = [_headline(output, params)]
    if processes.are_several():
        lines.append(processes.listed())
    if text := _advice(experiment):
        lines.append(text)
    assert experiment.dataset is not None
    return lines + experiment.facts.changes(dataset_facts.of(experiment.dataset))


def _without_metrics(output: "Output", step: int) -> str | None:
    """Returns why the metrics do not reach the checkpoint of a step, or None."""
    experiment = output.experiment
    records = metrics.read(output.folder / "metrics.jsonl")
    done = step // experiment.steps_per_epoch
    # A run that was given its first state, as a round of a lottery, begins later.
    sessions = folder.read_config(output.folder).get("sessions", [])
    began = sessions[0]["step"] if sessions else 0
    first = began // experiment.steps_per_epoch + 1
    held_out = () if experiment.validation is None else ("validation",)
    epoch = metrics.missing(
        records, ("train", "test", *held_out), range(first, done + 1)
    )
    if epoch is None:
        return None
    return (
        f"metrics.jsonl lacks lines of epoch {epoch}. If no earlier checkpoint serves, "
        "restore that file from a copy."
    )


def _tell_changes(output: "Output", changes: Mapping[str, str]) -> None:
    """Shows what changed since the session before, and what it means."""
    draws = [f"{name} {changes[name]}" for name in changes if name in numerics.OF_DRAWS]
    others = [
        f"{name} {changes[name]}" for name in changes if name not in numerics.OF_DRAWS
    ]
    if draws:
        output.display.message(
            "not as in the session before, so all random numbers are others from here "
            f"on: {', '.join(draws)}"
        )
    if others:
        output.display.message(
            "not as in the session before, so the last digits may differ: "
            + ", ".join(others)
        )


def _headline(output: "Output", params: Params) -> str:
    experiment, labels = output.experiment, output.experiment.labels
    count = sum(x.size for x in jax.tree.leaves(params))
    sparse = f" at sparsity {output.config.sparsity:g}"
    if experiment.method is None:
        sparse = ""
    facts = experiment.facts
    examples = "images" if facts.kind == "image" else "sequences"
    noise = output.config.label_noise
    own = f", loss {labels['loss']}" if "loss" in labels else ""
    wrong = f" ({noise:.3g} of its labels wrong)" if noise else ""
    return (
        f"{labels['dataset']}{wrong}: {facts.num_train:,} training and "
        f"{facts.num_test:,} test {examples}; {labels['model']} with "
        f"{count:,} parameters; {labels['method']}{sparse}, {labels['gradient']}, "
        f"{labels['optimizer']}{own}; {experiment.mesh.size} x "
        f"{jax.local_devices()[0].device_kind}; {output.folder}"
    )


def _advice(experiment: Experiment) -> str | None:
    """Returns advice if the masks never change, else None."""
    method, total_steps = experiment.method, experiment.optimizer_steps
    if method is None or method.fires is None:
        return None
    fires = jax.jit(jax.vmap(method.fires))
    for start in range(0, total_steps, 4096):
        if fires(jnp.arange(start, min(start + 4096, total_steps))).any():
            return None
    return (
        f"the masks of method={experiment.labels['method']!r} never change in "
        f"{total_steps} steps: take a smaller --update-interval"
    )
