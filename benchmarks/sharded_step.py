"""What the trainer's step holds and exchanges on eight devices, with and without FSDP.

    python -m benchmarks.sharded_step
    pip install libtpu && python -m benchmarks.sharded_step --topology v5e:2x4

The step of `zosam train` is compiled for eight devices that the CPU plays, and for the
chips of a TPU, which need not be there. The state is whole on every device, or all
share one copy (`--fsdp -1`). The compiler says what a device holds; the program names
its collective operations, from which follows what a device sends in a ring, see
`benchmarks.collectives`. Of branches, the dearest counts. Nothing is run.
"""

import dataclasses
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from rich.console import Console
from rich.table import Table

from benchmarks import collectives, command_line, record
from zosam_jax.runs.config import TrainConfig
from zosam_jax.train import loop
from zosam_jax.train.compiled_run import CompiledRun
from zosam_jax.train.objects import Objects

DEVICES = 8
MLP = {"model": "mlp", "model_options": ("hidden=(2048, 2048)",), "batch_size": 128}
STEPS: Mapping[str, dict[str, Any]] = {
    "MLP, SGD": {**MLP, "gradient": "backprop", "method": "dense"},
    "MLP, SAM, RigL": {**MLP, "gradient": "sam"},
    "MLP, ZO-SAM, RigL": MLP,
    "language model, ZO-SAM, RigL": {
        "dataset": "pydoc",
        "model": "tinylm",
        "augment": (),
        "optimizer": "adamw",
        "learning_rate": 1e-3,
        "batch_size": 64,
    },
}
"""The training of each step, as fields of `zosam train`."""

LAYOUTS = {"whole": 1, "in parts": -1}
KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all")
HOST = re.compile(
    r"custom_call_target=\"\w*callback|is_host_transfer=true|\b(?:in|out)feed\("
)
"""What a program says where it waits for the host, on CPU, TPU and either."""

_MIB = 2**20


def prepared(fields: Mapping[str, Any], fsdp: int, topology: str | None) -> CompiledRun:
    """Returns the traced programs of a training.

    Args:
      fields: A row of `STEPS`.
      fsdp: As the flag.
      topology: Name of a TPU topology; None for the CPU.
    """
    config = TrainConfig(**fields, fsdp=fsdp, out="a folder that is not there")
    found = loop.prepare(config, Objects())
    if topology is None:
        return found
    chips = topologies.get_topology_desc(topology, "tpu").devices
    mesh = found.experiment.mesh
    devices = np.array(chips[:DEVICES]).reshape(mesh.devices.shape)
    mesh = jax.sharding.Mesh(devices, mesh.axis_names, axis_types=mesh.axis_types)
    return CompiledRun(dataclasses.replace(found.experiment, mesh=mesh))


def measure(
    fields: Mapping[str, Any], fsdp: int, topology: str | None
) -> dict[str, Any]:
    """Returns what a step holds on each device, and what it exchanges, in bytes.

    Args:
      fields: A row of `STEPS`.
      fsdp: As the flag.
      topology: Name of a TPU topology; None for the CPU.
    """
    run = prepared(fields, fsdp, topology)
    program = run._train_traced.program.lower().compile()
    memory, text = program.memory_analysis(), program.as_text() or ""
    assert memory is not None
    sizes = collectives.operations(text, DEVICES)
    sent, _ = collectives.sent(text, DEVICES)
    shapes = jax.tree.leaves(run.abstract)
    return {
        "parameters": sum(x.size for x in jax.tree.leaves(run.abstract.params)),
        "state": sum(x.size * x.dtype.itemsize for x in shapes),
        "state_held": memory.alias_size_in_bytes,
        "data_held": memory.argument_size_in_bytes - memory.alias_size_in_bytes,
        "temporary": memory.temp_size_in_bytes,
        "sent": sent,
        "operations": Counter(name for name, _ in sizes),
        "results": {k: sum(n for name, n in sizes if name == k) for k in KINDS},
        "host_calls": len(HOST.findall(text)),
    }


def lines(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Returns the table, header first; sizes in MiB.

    Args:
      rows: The rows of the result file.
    """
    header = ["step", "compiled for", "state", "a device holds", "beside it, in a step"]
    header += ["sends in a step", *KINDS, "calls of the host"]
    table = [header]
    for row in rows:
        line = [row["step"], row["compiled_for"], row["layout"]]
        line += [f"{row[x] / _MIB:.1f}" for x in ("state_held", "temporary", "sent")]
        for kind in KINDS:
            count, size = row["operations"].get(kind), row["results"][kind]
            line.append(f"{count} of {size / _MIB:.1f}" if count else "-")
        table.append([*line, str(row["host_calls"])])
    return table


def main() -> None:
    """Compiles, prints the table and writes the result file."""
    parser = command_line.parser(__doc__)
    parser.add_argument(
        "--topology",
        metavar="NAME",
        help="of a TPU with eight chips, as v5e:2x4; default: none, the CPU alone",
    )
    parser.add_argument(
        "--steps",
        metavar="STEP",
        nargs="+",
        choices=STEPS,
        default=list(STEPS),
        help=command_line.listed("steps", list(STEPS)),
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        type=Path,
        default=Path(__file__).parent / "results" / "sharded-step.json",
        help="result file",
    )
    args = parser.parse_args()
    # What is compiled for a TPU that is not there cannot be read back.
    jax.config.update("jax_enable_compilation_cache", False)
    # Where libtpu is installed, JAX and it would look for a TPU in this machine.
    jax.config.update("jax_platforms", "cpu")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    jax.config.update("jax_num_cpu_devices", DEVICES)
    rows = []
    for step in args.steps:
        for topology in (None, args.topology) if args.topology else (None,):
            for layout, fsdp in LAYOUTS.items():
                row = {"step": step, "layout": layout}
                row["compiled_for"] = f"TPU {topology}" if topology else "CPU"
                rows.append(row | measure(STEPS[step], fsdp, topology))
                print(rows[-1], flush=True)
    record.write(args.out, {"devices": DEVICES, "rows": rows})
    table = Table(*lines(rows)[0])
    for line in lines(rows)[1:]:
        table.add_row(*line)
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
