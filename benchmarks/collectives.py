r"""What a step exchanges and holds on many devices: compiled small, then extrapolated.

    python -m benchmarks.collectives

Each gradient's step, with momentum, is compiled for four and for eight devices, which
the CPU plays, at two widths of one network. Parameters and momentum are whole on every
device ("replicated"), or split over them and gathered layer by layer ("sharded", FSDP);
the batch is split in both. The program names its collective operations, and the
compiler says what it holds. Of n bytes, on k devices in a ring, every device sends

.. math::
  \text{all-reduce: } 2 n \frac{k - 1}{k}, \qquad
  \text{all-gather, reduce-scatter, all-to-all: } n \frac{k - 1}{k}

with n the whole result of an all-gather and the whole argument of a reduce-scatter.
The two widths tell how many bytes a further parameter adds, and the two numbers of
devices which part of them is split: :math:`a + b / k` bytes are held. Both are
extrapolated to a billion parameters on more devices. Of a step with two branches, the
dearer one counts. XLA for CPU leaves an all-reduce where that for GPU and TPU can make
a reduce-scatter of half the bytes.
"""

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from rich.console import Console
from rich.table import Table

import zosam_jax as zs
from benchmarks import command_line, record, throughput
from benchmarks.rounding import significant
from zosam_jax._types import Params, PyTree

DEVICES, LAYERS, EXAMPLES = (4, 8), 4, 128
WIDTHS = (256, 512)
LARGE, CHIPS = 10**9, (8, 256, 4096)
LAYOUTS = {"replicated": P(), "sharded": P("data")}
LEFT_OUT = ("ZO-SAM, quarter batch", "ZO-SAM, bfloat16", "guided ZO-SAM, quarter batch")
"""They see other batches or types, which this network does not have."""

_BYTES = {"f64": 8, "s64": 8, "u64": 8, "f32": 4, "s32": 4, "u32": 4}
_BYTES |= {"bf16": 2, "f16": 2, "s16": 2, "u16": 2, "s8": 1, "u8": 1, "pred": 1}
_COLLECTIVE = re.compile(
    r"= (?P<type>.*?) (?P<name>all-reduce|all-gather|reduce-scatter|all-to-all|"
    r"collective-permute)(?P<start>-start)?\("
)
_CHANNEL = re.compile(r"channel_id=(\d+)")
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) .*\{$")
_CALL = re.compile(
    r"(?:to_apply|body|condition|calls)=%?([\w.\-]+)|"
    r"(?:branch_computations=\{([^}]*)\})"
)
_TRIPS = re.compile(r'known_trip_count":\{"n":"(\d+)"')


class Cost(NamedTuple):
    """What a step costs on every device.

    Attributes:
      sent: Bytes that it sends, in a ring.
      operations: Number of collective operations.
      temporary: Bytes that live only during the step.
      state: Bytes of parameters, momentum and the gradient's memory.
    """

    sent: float
    operations: int
    temporary: int
    state: int


def sent(program: str, devices: int) -> tuple[float, int]:
    r"""Returns the bytes that every device sends, and the number of operations.

    Loops count as often as they run, where the compiler knows it; of branches, the
    dearest counts.

    Args:
      program: The text of a compiled program.
      devices: Number of devices.

    >>> sent("ENTRY main {\n x = f32[4,2] all-reduce(y), to_apply=add\n}", 8)
    (56.0, 1)
    """
    bodies, entry = _computations(program)

    def cost(name: str) -> tuple[float, int]:
        total, count = 0.0, 0
        for line in bodies.get(name, ()):
            if match := _COLLECTIVE.search(line):
                kind, size = _result(name, match, devices)
                total += _ring(kind, size, devices)
                count += 1
                continue
            trips = _TRIPS.search(line)
            for call in _CALL.finditer(line):
                times = int(trips[1]) if trips and call[0].startswith("body") else 1
                branches = (call[2] or call[1]).replace("%", "").split(", ")
                dearest = max(map(cost, branches))
                total, count = total + times * dearest[0], count + times * dearest[1]
        return total, count

    return cost(entry)


def operations(program: str, devices: int) -> list[tuple[str, int]]:
    """Returns the collective operations of a program, and the bytes of their results.

    Every one counts once, whatever branch or loop it stands in.

    Args:
      program: The text of a compiled program.
      devices: Number of devices.
    """
    return [
        _result(name, match, devices)
        for name, lines in _computations(program)[0].items()
        for match in filter(None, map(_COLLECTIVE.search, lines))
    ]


def _computations(program: str) -> tuple[dict[str, list[str]], str]:
    """Returns the lines of each computation, and the name of the main one.

    XLA for TPU writes an operation that overlaps others into each of them. Such lines
    share a channel, and the first one stays.
    """
    bodies: dict[str, list[str]] = {}
    entry, lines = "", []
    channels: set[str] = set()
    for line in program.splitlines():
        if match := _COMPUTATION.match(line):
            lines = bodies.setdefault(match[1], [])
            entry = match[1] if line.startswith("ENTRY") else entry
            continue
        channel = _CHANNEL.search(line)
        if channel is None or channel[1] not in channels:
            lines.append(line)
        if channel is not None:
            channels.add(channel[1])
    return bodies, entry


def _result(computation: str, match: re.Match[str], devices: int) -> tuple[str, int]:
    """Returns an operation and the bytes of its result.

    XLA for TPU writes a reduce-scatter as an all-reduce and a slice, in a computation
    of that name. What starts an operation returns its argument too.

    Args:
      computation: Where it stands.
      match: Its line.
      devices: Number of devices.
    """
    name, size = match["name"], _size(match["type"])
    if name == "all-reduce" and computation.startswith("all-reduce-scatter"):
        return "reduce-scatter", size // devices
    if match["start"] and name == "collective-permute":
        size //= 2
    if match["start"] and name == "all-gather":
        size = size * devices // (devices + 1)
    return name, size


def _size(shape: str) -> int:
    """Bytes of an array or a tuple of arrays, as programs write their type."""
    return sum(
        _BYTES.get(kind, 4) * math.prod(int(n) for n in sizes.split(",") if n)
        for kind, sizes in _ARRAY.findall(shape)
    )


def _ring(name: str, size: int, devices: int) -> float:
    """Bytes that a device sends; `size` is that of the result."""
    if name == "collective-permute":
        return size
    if name == "reduce-scatter":
        size *= devices
    twice = 2 if name == "all-reduce" else 1
    return twice * size * (devices - 1) / devices


def network(width: int, split: NamedSharding) -> tuple[Params, Callable[..., Any]]:
    """Returns the shapes of the parameters, and the losses of the examples.

    Args:
      width: Inputs and outputs of every layer.
      split: Where the examples lie. So do all activations: weights move, not these.
    """
    kernel = jax.ShapeDtypeStruct((width, width), jnp.float32)
    params = {f"layer{i}": {"kernel": kernel} for i in range(LAYERS)}

    def losses(params: Params, x: jax.Array, examples: Any = None) -> jax.Array:
        x = x if examples is None else x[examples]
        y = x
        for layer in params.values():
            y = jnp.tanh(y @ layer["kernel"])
            y = jax.lax.with_sharding_constraint(y, split)
        return jnp.mean((y - x) ** 2, 1)

    return params, losses


def measure(
    gradient: zs.GradientEstimator, layout: str, width: int, devices: int
) -> Cost:
    """Returns what a step costs on each of the first devices.

    Args:
      gradient: The gradient.
      layout: A key of `LAYOUTS`.
      width: As in `network`.
      devices: Number of devices.
    """
    mesh = jax.make_mesh(
        (devices,), ("data",), (AxisType.Auto,), devices=jax.devices()[:devices]
    )
    split = NamedSharding(mesh, P("data"))
    params, losses = network(width, split)
    tx: Any = optax.chain(gradient, optax.sgd(0.1, momentum=0.9))

    def spec(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        divisible = leaf.ndim and leaf.shape[0] % mesh.size == 0
        where = LAYOUTS[layout] if divisible else P()
        placed = NamedSharding(mesh, where)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placed)

    def step(params: Params, state: PyTree, x: jax.Array) -> tuple[Params, PyTree]:
        def value_fn(p: Params, examples: Any = None) -> jax.Array:
            found = losses(p, x, examples)
            return found if gradient.by_example else jnp.mean(found)

        updates, state = tx.update(None, state, params, value_fn=value_fn)
        return optax.apply_updates(params, updates), state

    state = jax.eval_shape(tx.init, params)
    params, state = jax.tree.map(spec, (params, state))
    x = jax.ShapeDtypeStruct((EXAMPLES, width), jnp.float32, sharding=split)
    kept = jax.tree.map(lambda leaf: leaf.sharding, (params, state))
    jitted = jax.jit(step, donate_argnums=(0, 1), out_shardings=kept)
    program = jitted.lower(params, state, x).compile()
    memory = program.memory_analysis()
    assert memory is not None
    exchanged, operations = sent(program.as_text() or "", mesh.size)
    held = memory.argument_size_in_bytes - EXAMPLES * width * 4 // mesh.size
    return Cost(exchanged, operations, memory.temp_size_in_bytes, held)


class Slope(NamedTuple):
    """What a further parameter adds on every device, in bytes.

    Attributes:
      sent: Bytes that it sends, on very many devices.
      whole: Bytes that it holds on any number of devices.
      split: Bytes that it holds on all devices together.
    """

    sent: float
    whole: float
    split: float

    def of(self, parameters: int, devices: int) -> tuple[float, float]:
        """Returns the bytes that a device sends and holds.

        Args:
          parameters: Number of parameters.
          devices: Number of devices.
        """
        held = self.whole + self.split / devices
        return parameters * self.sent * (devices - 1) / devices, parameters * held


def slope(costs: Sequence[Sequence[Cost]], sizes: Sequence[int]) -> Slope:
    """Returns what a further parameter adds.

    Args:
      costs: What a step costs, by number of devices and by width.
      sizes: Number of parameters of each width.
    """
    few, many = DEVICES
    sent, held = [], []
    for small, large in costs:
        more = sizes[1] - sizes[0]
        sent.append((large.sent - small.sent) / more)
        first, second = (x.temporary + x.state for x in (small, large))
        held.append((second - first) / more)
    split = (held[0] - held[1]) / (1 / few - 1 / many)
    return Slope(sent[1] * many / (many - 1), held[1] - split / many, split)


def main() -> None:
    """Compiles, prints the table and writes the result file."""
    parser = command_line.parser(__doc__)
    parser.add_argument(
        "--only", metavar="LABELS", help="gradients to compile, separated by semicolons"
    )
    parser.add_argument(
        "--result",
        metavar="FILE",
        type=Path,
        default=Path(__file__).parent / "results" / "collectives.json",
        help="result file",
    )
    args = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", max(DEVICES))
    labels = args.only.split(";") if args.only else None
    sizes = [LAYERS * width**2 for width in WIDTHS]
    rows = []
    for label, (make, options) in throughput.methods().items():
        if label in LEFT_OUT or (labels is not None and label not in labels):
            continue
        gradient = make(**options)
        for layout in LAYOUTS:
            costs = [
                [measure(gradient, layout, width, count) for width in WIDTHS]
                for count in DEVICES
            ]
            found = slope(costs, sizes)
            row = {"gradient": label, "layout": layout, **found._asdict()}
            row["operations"] = costs[-1][-1].operations
            row["large"] = {k: found.of(LARGE, k) for k in CHIPS}
            rows.append(row)
            print(f"{label}, {layout}: {found}", flush=True)
    settings = {"devices": DEVICES, "widths": WIDTHS, "layers": LAYERS}
    settings |= {"examples": EXAMPLES, "large": LARGE, "chips": CHIPS}
    record.write(args.result, {"settings": settings, "rows": rows})
    table = Table(*lines(rows)[0])
    for line in lines(rows)[1:]:
        table.add_row(*line)
    Console().print(table)


def lines(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Returns the table: a line for each gradient, header first.

    Args:
      rows: The rows of the result file.
    """
    header = ["gradient"]
    for layout in LAYOUTS:
        header += [f"{layout}: sends, B", "holds, B"]
        header += [f"{k:,}: GB" for k in CHIPS]
    found = [header]
    for label in dict.fromkeys(row["gradient"] for row in rows):
        line = [label]
        for row in (row for row in rows if row["gradient"] == label):
            line += [f"{row['sent']:.1f}", _held(row)]
            large = {int(k): x for k, x in row["large"].items()}
            line += [
                " / ".join(significant(x / 1e9, 2) for x in large[k]) for k in CHIPS
            ]
        found.append(line)
    return found


def _held(row: dict[str, Any]) -> str:
    """Bytes of a parameter, as "1.0 + 8.0/k"; what rounds to 0 is left out."""
    whole, split = round(row["whole"], 1), round(row["split"], 1)
    if not split:
        return f"{whole}"
    sign = "-" if split < 0 else "+"
    return f"{whole} {sign} {abs(split)}/k" if whole else f"{split}/k"


if __name__ == "__main__":
    main()
