"""Measures how fast sparse networks answer, and how small their files are.

    python -m benchmarks.inference
    python -m benchmarks.inference --networks mlp --rounds 5

Five forms of a network: dense; masked, the same program with zeros in it; compact, the
smaller dense network that `compact` cuts out of pruned units; BCSR, the sparse matrices
that `accelerate` chooses; and the dense and the compact one in ONNX Runtime, if it is
installed. The grid has drawn weights: time does not depend on them. The trained
networks learn the digits or the first 10,000 images of CIFAR-10, and their accuracy
stands beside the time; a run in the folder `--runs` is not trained again.

All forms of a network at a batch size take turns in one process, in a new order in each
round. A ratio is of two times of one round; its median over the rounds is quoted. Other
processes can make both times longer, so trust ratios before times.
"""

import argparse
import dataclasses
import importlib.metadata
import importlib.util
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import zosam_jax as zs
from benchmarks import command_line, record
from zosam_jax import models, train
from zosam_jax.runs.config import default
from zosam_jax.runs.dataset_facts import DatasetFacts
from zosam_jax.sparsity.reports.flops import products
from zosam_jax.train import exported, model_card, onnx_conversion

SEED, CLASSES = 0, 10
BATCHES = (1, 32)
SPARSITIES = (0.5, 0.8, 0.9, 0.95, 0.98)
ROUNDS, SEEDS = 15, 3
SAMPLE = 0.002
"""Least seconds of a sample: a faster call is repeated within it."""
DENSE = "dense"
LINEAR = ("mlp", "vit", "deit-tiny")
"""Models whose products `accelerate` can choose for."""
LEAST_SPARSE = 0.9
"""Least sparsity at which sparse matrices are tried; below it they lose."""


class Net(NamedTuple):
    """A network of the grid.

    Attributes:
      model: Its name in `models`.
      shape: Shape of an image.
      options: Options of `models.create`.
    """

    model: str
    shape: tuple[int, ...]
    options: Mapping[str, Any] = {}

    def make(self) -> Any:
        """Returns the model."""
        size = self.shape[0]
        return models.create(
            self.model, num_classes=CLASSES, image_size=size, **self.options
        )


NETWORKS = {
    "ResNet-20": Net("resnet20", (32, 32, 3)),
    "VGG-19, a quarter of the width": Net("vgg19", (32, 32, 3), {"width": 0.25}),
    "ViT": Net("vit", (32, 32, 3)),
    "MLP": Net("mlp", (28, 28, 1)),
}
LARGE = {"DeiT-Ti": Net("deit-tiny", (224, 224, 3))}
"""Networks of a grid of their own, since they take long."""

Variables = dict[str, Any]
Forward = Callable[[Any], Any]


class Form(NamedTuple):
    """A form of a network.

    Attributes:
      name: "dense", "masked", "compact", "BCSR", "ORT dense" or "ORT compact".
      sparsity: Share of pruned units or weights; 0 for the dense one.
      macs: Multiply-adds of an example, of those that the form computes: a sparse
        matrix computes those of live weights.
      forward: `batch -> logits`.
      note: What else there is to say of it.
    """

    name: str
    sparsity: float
    macs: float
    forward: Forward
    note: str = ""


def jitted(model: Any, variables: Variables) -> Forward:
    """Returns the compiled forward pass of a model with its weights."""
    run = jax.jit(lambda v, x: model.apply(v, x, train=False))
    placed = jax.device_put(variables)
    return lambda x: run(placed, x)


def macs(model: Any, variables: Variables, shape: Sequence[int]) -> dict[str, float]:
    """Returns the multiply-adds of an example by leaf, and of no leaf as ""."""
    rest = {k: v for k, v in variables.items() if k != "params"}
    found = products(
        lambda p: model.apply(
            {"params": p, **rest}, jnp.zeros((1, *shape)), train=False
        ),
        variables["params"],
    )
    names = zs.tree.paths(variables["params"])
    return dict(zip(names, map(float, found.macs), strict=True)) | {"": found.other}


def live_macs(counted: Mapping[str, float], masks: Any) -> float:
    """Returns the multiply-adds of live weights."""
    names = [*zs.tree.paths(masks)]
    shares = [float(np.mean(m)) for m in jax.tree.leaves(masks)]
    return counted[""] + sum(
        counted[name] * share for name, share in zip(names, shares, strict=True)
    )


def accelerated(
    model: Any, variables: Variables, masks: Any, x: jax.Array
) -> zs.sparsity.Accelerated:
    """Returns the forward pass with the sparse matrices that are chosen for a batch."""
    rest = {k: v for k, v in variables.items() if k != "params"}
    return zs.sparsity.accelerate(
        lambda p, x: model.apply({"params": p, **rest}, x, train=False),
        variables["params"],
        masks,
        x,
        repeats=10,
    )


class Pruned(NamedTuple):
    """A network of drawn weights, scattered weights of which are pruned.

    Attributes:
      model: The model.
      sparsity: Share of pruned weights.
      variables: Its variables, zero where pruned.
      masks: The mask tree.
      macs: Multiply-adds of an example by live weights.
    """

    model: Any
    sparsity: float
    variables: Variables
    masks: Any
    macs: float


def grid_forms(
    net: Net, sparsities: Iterable[float]
) -> tuple[list[Form], list[Pruned]]:
    """Returns the forms of a network for any batch, and what `accelerate` may take."""
    model = net.make()
    params, state = models.initialize(model, jax.random.key(SEED), net.shape)
    variables = {"params": params, **state}
    counted = macs(model, variables, net.shape)
    whole = sum(counted.values())
    forms = [Form(DENSE, 0.0, whole, jitted(model, variables))]
    forms += in_onnx_runtime("ORT dense", 0.0, whole, model, variables, net.shape)
    scattered = []
    for sparsity in sparsities:
        method = zs.sparsity.static(
            sparsity, seed=SEED, dense=models.dense_paths(net.model)
        )
        masks = method.init(params).masks
        pruned = {"params": zs.sparsity.apply_masks(params, masks), **state}
        forms.append(Form("masked", sparsity, whole, jitted(model, pruned)))
        if net.model in LINEAR and sparsity >= LEAST_SPARSE:
            live = live_macs(counted, masks)
            scattered.append(Pruned(model, sparsity, pruned, masks, live))
        units = zs.sparsity.units(sparsity, 100, models.unit_groups(net.model))
        found = units.init(params).masks
        small = zs.sparsity.compact(model, params, found, model_state=state)
        cut = {"params": small.params, **small.model_state}
        left = sum(macs(small.model, cut, net.shape).values())
        forms.append(Form("compact", sparsity, left, jitted(small.model, cut)))
        forms += in_onnx_runtime(
            "ORT compact", sparsity, left, small.model, cut, net.shape
        )
    return forms, scattered


def sparse_form(pruned: Pruned, x: jax.Array) -> Form:
    """Returns the form with the sparse matrices that are chosen for a batch."""
    fast = accelerated(pruned.model, pruned.variables, pruned.masks, x)
    count = sum(row.is_sparse for row in fast.layers)
    note = f"{count} of {len(fast.layers)} layers sparse"
    return Form("BCSR", pruned.sparsity, pruned.macs, fast, note)


def in_onnx_runtime(
    name: str,
    sparsity: float,
    work: float,
    model: Any,
    variables: Variables,
    shape: Sequence[int],
) -> list[Form]:
    """Returns the form of a network in ONNX Runtime; none if it is not installed.

    Args:
      name: Name of the form.
      sparsity: Share of pruned units.
      work: Multiply-adds of an example.
      model: The model.
      variables: Its variables.
      shape: Shape of an image.
    """
    if not all(map(importlib.util.find_spec, ("jax2onnx", "onnxruntime"))):
        return []
    made = onnx_conversion.converted(
        lambda x: model.apply(variables, x, train=False),
        jax.ShapeDtypeStruct(tuple(shape), jnp.float32),
    )
    session = onnx_conversion.session(made)

    def forward(x: Any) -> Any:
        return session.run(None, {onnx_conversion.INPUT: np.asarray(x)})[0]

    return [Form(name, sparsity, work, forward)]


def timed(
    calls: Sequence[Callable[[], Any]], rounds: int, seed: int = SEED
) -> list[list[float]]:
    """Returns the seconds of each call in each round, taken in turns.

    Args:
      calls: What to time. Each runs twice before, to compile.
      rounds: Number of rounds.
      seed: Seed of the order of the calls in a round.
    """
    counts = []
    for call in calls:
        jax.block_until_ready(call())
        start = time.perf_counter()
        jax.block_until_ready(call())
        counts.append(max(1, round(SAMPLE / (time.perf_counter() - start))))
    rng, seconds = np.random.default_rng(seed), [list[float]() for _ in calls]
    for _ in range(rounds):
        for i in rng.permutation(len(calls)):
            start = time.perf_counter()
            for _ in range(counts[i]):
                jax.block_until_ready(calls[i]())
            seconds[i].append((time.perf_counter() - start) / counts[i])
    return seconds


def compared(times: Sequence[float], dense: Sequence[float]) -> dict[str, float]:
    """Returns the figures of a form's times, and of those of the dense one."""
    ratios = [d / t for t, d in zip(times, dense, strict=True)]
    return {
        "milliseconds": 1000 * statistics.median(times),
        "milliseconds_least": 1000 * min(times),
        "speedup": statistics.median(ratios),
        "speedup_of_least": min(dense) / min(times),
    }


def rows_of(
    forms: Sequence[Form], x: jax.Array, rounds: int, **said: Any
) -> list[dict[str, Any]]:
    """Returns the measurements of forms, the first of which is the dense one.

    Args:
      forms: The forms.
      x: A batch.
      rounds: Number of rounds.
      **said: Further entries of each row.
    """
    calls = [lambda f=form.forward: f(x) for form in forms]
    seconds = timed(calls, rounds)
    return [
        {
            **said,
            "batch": len(x),
            "form": form.name,
            "sparsity": form.sparsity,
            "macs": form.macs,
            "macs_ratio": forms[0].macs / form.macs,
            **compared(times, seconds[0]),
            "images_per_second": len(x) / statistics.median(times),
            "note": form.note,
        }
        for form, times in zip(forms, seconds, strict=True)
    ]


def drawn(shape: Sequence[int], count: int) -> jax.Array:
    """Returns a batch of drawn images."""
    rng = np.random.default_rng(SEED)
    return jnp.asarray(rng.normal(size=(count, *shape)), jnp.float32)


def grid(nets: Mapping[str, Net], args: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns the rows of networks of drawn weights."""
    rows = []
    for name, net in nets.items():
        forms, scattered = grid_forms(net, args.sparsities)
        for batch in BATCHES:
            x = drawn(net.shape, batch)
            every = [*forms, *(sparse_form(pruned, x) for pruned in scattered)]
            rows += rows_of(every, x, args.rounds, network=name)
            best = max(rows[-len(every) :], key=lambda row: row["speedup"])
            print(f"{name}, batch {batch}: {best['speedup']:.2f}", flush=True)
    return rows


class Learner(NamedTuple):
    """A network that is trained.

    Attributes:
      fields: Its configuration.
      seeds: Number of seeds, at most.
      train: Number of training examples, from the front; None for all.
      scatters: Whether it is trained with methods that scatter the pruned weights too.
    """

    fields: Mapping[str, Any]
    seeds: int
    train: int | None = None
    scatters: bool = True


_MLP = {"model": "mlp", "model_options": ("hidden=(1024, 1024)",)}
_DIGITS = {"dataset": "digits", "epochs": 40}
_CIFAR = {"dataset": "cifar10", "batch_size": 128, "epochs": 20}
LEARNERS = {
    "MLP 1024-1024, digits": Learner(_DIGITS | _MLP, 3),
    "ResNet-20, digits": Learner(_DIGITS | {"model": "resnet20"}, 1),
    "MLP 1024-1024, CIFAR-10": Learner(_CIFAR | _MLP, 3, 10_000),
    "VGG-19, a quarter of the width, CIFAR-10": Learner(
        _CIFAR | {"model": "vgg19", "width": 0.25}, 1, 10_000, scatters=False
    ),
}
PRUNED = {
    DENSE: {"method": "dense"},
    "units 50 %": {"method": "units", "sparsity": 0.5},
    "units 60 %": {"method": "units", "sparsity": 0.6},
    "units 75 %": {"method": "units", "sparsity": 0.75},
    "units 90 %": {"method": "units", "sparsity": 0.9},
    "SRigL 90 %": {"method": "srigl", "sparsity": 0.9},
    "RigL 90 %": {"method": "rigl", "sparsity": 0.9},
}


def dataset(learner: Learner, data_dir: str | None) -> zs.data.Dataset:
    """Returns the examples of a network that is trained."""
    found = zs.data.load(learner.fields["dataset"], data_dir)
    assert isinstance(found, zs.data.Dataset)
    return dataclasses.replace(
        found,
        train_images=found.train_images[: learner.train],
        train_labels=found.train_labels[: learner.train],
    )


def trained_run(
    name: str, method: str, seed: int, args: argparse.Namespace
) -> train.LoadedRun:
    """Returns a run, trained if it is not in its folder."""
    folder = args.runs / f"{name}-{method}-{seed}".replace(" ", "_").replace(",", "")
    learner = LEARNERS[name]
    chosen = {"sparsity": default("sparsity"), **learner.fields, **PRUNED[method]}
    config = train.TrainConfig(
        gradient="backprop",
        rho=None,
        seed=seed,
        data_dir=args.data_dir,
        out=str(folder.absolute()),
        **chosen,
    )
    train.run(config, dataset=lambda: dataset(learner, args.data_dir))
    return train.load(folder)


def trained(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns the rows of the trained networks."""
    rows = []
    for name, learner in LEARNERS.items():
        examples = dataset(learner, args.data_dir)
        for seed in range(min(learner.seeds, args.seeds)):
            nets = {
                method: trained_run(name, method, seed, args)
                for method, chosen in PRUNED.items()
                if learner.scatters or chosen["method"] in (DENSE, "units")
            }
            found = [trained_form(m, net, examples) for m, net in nets.items()]
            facts = nets[DENSE].facts
            images = examples.test_images[: max(BATCHES)]
            x = jnp.asarray((images / 255 - facts.mean) / facts.std, jnp.float32)
            forms = [form for form, _ in found]
            for batch in BATCHES:
                timed_rows = rows_of(
                    forms, x[:batch], args.rounds, network=name, seed=seed
                )
                for row, (_, said) in zip(timed_rows, found, strict=True):
                    rows.append({**row, **said})
            print(f"{name}, seed {seed}: {rows[-1]['accuracy']:.4f}", flush=True)
    return rows


def trained_form(
    method: str, net: train.LoadedRun, examples: zs.data.Dataset
) -> tuple[Form, dict[str, Any]]:
    """Returns the compact form of a trained network, its accuracy and its file.

    Args:
      method: Key of `PRUNED`.
      net: The run.
      examples: The data set.
    """
    small = net.compact()
    work = sum(macs(small.model, small.variables, net.facts.image_shape).values())
    forward = jitted(small.model, small.variables)
    labels = examples.test_labels
    found = small.probabilities(examples.test_images).argmax(1)
    with tempfile.TemporaryDirectory() as folder:
        file = net.save(Path(folder) / "a", dtype="bfloat16")
        size = file.stat().st_size
        rounded = train.load(file).probabilities(examples.test_images).argmax(1)
    said = {
        "accuracy": float(np.mean(found == labels)),
        "accuracy_bfloat16": float(np.mean(rounded == labels)),
        "parameters": small.num_parameters,
        "parameters_before": net.num_parameters,
        "file_bytes": size,
        "file_ratio": 4 * net.num_parameters / size,
    }
    sparsity = 0.0 if method == DENSE else net.config.sparsity
    return Form(method, sparsity, work, forward), said


def files(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns how large the files of networks of drawn weights are."""
    rows = []
    for name in args.networks:
        net = NETWORKS[name]
        model = net.make()
        params, state = models.initialize(model, jax.random.key(SEED), net.shape)
        size = 4 * zs.tree.size(params)
        for sparsity in args.sparsities:
            masks = (
                zs.sparsity.static(sparsity, dense=models.dense_paths(net.model))
                .init(params)
                .masks
            )
            network = exported.Network(
                zs.sparsity.apply_masks(params, masks), state, masks
            )
            row = {"network": name, "sparsity": sparsity, "dense_bytes": size}
            for dtype in ("float32", "bfloat16"):
                with tempfile.TemporaryDirectory() as folder:
                    path = Path(folder) / "a"
                    exported.write(path, _about(net), network, dtype)
                    row[f"{dtype}_bytes"] = path.stat().st_size
                    row[f"{dtype}_ratio"] = size / row[f"{dtype}_bytes"]
            rows.append(row)
    return rows


def _about(net: Net) -> model_card.About:
    """Returns what the file of a network of the grid says of it."""
    facts = DatasetFacts(
        name="drawn",
        kind="image",
        class_names=tuple(map(str, range(CLASSES))),
        image_shape=net.shape,
        mean=(0.5,) * net.shape[-1],
        std=(0.25,) * net.shape[-1],
        resize=None,
        num_train=1,
        num_test=1,
    )
    return model_card.about(train.TrainConfig(model=net.model), facts, 0, None)


PARTS: Mapping[str, Callable[[argparse.Namespace], list[dict[str, Any]]]] = {
    "grid": lambda args: grid({name: NETWORKS[name] for name in args.networks}, args),
    "large": lambda args: grid(LARGE, args),
    "trained": trained,
    "files": files,
}


def arguments() -> argparse.Namespace:
    """Returns the command line."""
    parser = command_line.parser(__doc__)
    results = command_line.ROOT / "benchmarks" / "results"
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=list(PARTS),
        default=[name for name in PARTS if name != "large"],
        help=command_line.listed(
            f"parts; large is the grid of {', '.join(LARGE)}", list(PARTS)
        ),
    )
    parser.add_argument(
        "--networks",
        nargs="+",
        choices=list(NETWORKS),
        default=list(NETWORKS),
        help=command_line.listed(
            "networks of the grid and of the files", list(NETWORKS)
        ),
    )
    parser.add_argument(
        "--sparsities",
        nargs="+",
        type=float,
        default=list(SPARSITIES),
        help="sparsities of the grids and of the files",
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="rounds")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="trained seeds")
    parser.add_argument(
        "--data-dir", metavar="DIR", help="TFDS directory; default: TFDS_DATA_DIR"
    )
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/inference"), help="folder of the runs"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=results / "inference-cpu.json",
        help="result file; parts that are not run stay as they are in it",
    )
    return parser.parse_args()


def environment() -> dict[str, Any]:
    """Returns the header of a part, with the version of ONNX Runtime if any."""
    found = record.environment()
    for package in ("onnxruntime", "jax2onnx"):
        if importlib.util.find_spec(package) is not None:
            found["versions"][package] = importlib.metadata.version(package)
    return found


def main() -> None:
    """Measures the parts and writes the result file."""
    args = arguments()
    content = json.loads(args.out.read_text()) if args.out.exists() else {}
    for part in args.parts:
        rows = PARTS[part](args)
        content[part] = {"environment": environment(), "rows": rows}
        record.replace(args.out, content)
    print(f"written: {args.out}")


if __name__ == "__main__":
    main()
