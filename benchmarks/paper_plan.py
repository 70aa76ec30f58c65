"""The plan of `benchmarks.paper`: the cells of the papers' tables, and their trainings.

A cell is a network, data, a sparse method, a sparsity and a gradient. Tables share
cells: what one has trained, no other trains again. A scale says what the names of
networks and data stand for.
"""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from zosam_jax.lottery import LotteryConfig
from zosam_jax.runs.config import METHOD_FIELDS, TrainConfig
from zosam_jax.train import preset


class Cell(NamedTuple):
    """What is trained, but for the seed.

    Attributes:
      network: As the papers name it; a key of `Scale.networks`.
      data: As the papers name it; a key of `Scale.data`.
      method: Label of the sparse method, a key of `METHODS`.
      sparsity: Fraction of pruned weights.
      gradient: Label of the gradient, a key of `GRADIENTS`.
    """

    network: str
    data: str
    method: str
    sparsity: float
    gradient: str


LT = "LT"
METHODS: Mapping[str, Mapping[str, Any]] = {
    LT: {"method": "dense"},
    "SNIP": {"method": "snip"},
    "GraSP": {"method": "grasp"},
    "SET": {"method": "set"},
    "DSR": {"method": "dsr"},
    "RigL": {"method": "rigl"},
    "MEST": {"method": "mest"},
    "SViTE": {"method": "svite"},
}
"""Fields of each sparse method. A lottery ticket is a search of dense trainings."""
DYNAMIC = ("SET", "DSR", "RigL", "MEST", "SViTE")


def _zosam(*options: str, **fields: Any) -> dict[str, Any]:
    return {"gradient": "zosam", "gradient_options": options, **fields}


GRADIENTS: Mapping[str, Mapping[str, Any]] = {
    "SGD": {"gradient": "backprop"},
    "S2-SAM": {"gradient": "s2sam"},
    "SAM": {"gradient": "sam"},
    "ESAM": {"gradient": "esam"},
    "LookSAM, k=5": {"gradient": "looksam", "gradient_options": ("every=5",)},
    "LookSAM, k=10": {"gradient": "looksam", "gradient_options": ("every=10",)},
    "GSAM": {"gradient": "gsam"},
    "ZO-SAM": _zosam(),
    "ZO-SAM, m=4": _zosam("num_directions=4"),
    "ZO-SAM, m=16": _zosam("num_directions=16"),
    "ZO-SAM, delta=1e-5": _zosam("delta=1e-5"),
    "ZO-SAM, delta=1e-1": _zosam("delta=1e-1"),
    "ZO-SAM, rho=0.01": _zosam(rho=0.01),
    "ZO-SAM, rho=0.5": _zosam(rho=0.5),
    "ZO-SAM, rho=2": _zosam(rho=2.0),
    "ZO-SAM, norm over all weights": _zosam("norm_over=all"),
    "ZO-SAM, CGE": _zosam("directions=coordinates"),
    "random sign": {"gradient": "random_sign"},
}
"""Fields of each gradient. The paper names no radius: they are the library's."""


class Scale(NamedTuple):
    """How large the trainings are.

    Attributes:
      base: Fields of all trainings.
      networks: Fields of each network.
      data: Fields of each data set.
      examples: Numbers of training and test examples, from the front; None for all.
      dynamic: Further fields of each network for the methods that change their masks.
      rounds: Rounds of a lottery ticket by sparsity.
      seeds: Number of seeds, from 0.
      target: Test accuracy that table 3 counts the epochs to.
      corruptions: Options of `evaluate` for table 5.
      speed: Batch and side of the images on which steps are timed.
    """

    base: Mapping[str, Any]
    networks: Mapping[str, Mapping[str, Any]]
    data: Mapping[str, Mapping[str, Any]]
    examples: tuple[int, int] | None
    dynamic: Mapping[str, Mapping[str, Any]]
    rounds: Mapping[float, int]
    seeds: int
    target: float
    corruptions: Mapping[str, Any]
    speed: tuple[int, int]


_CELL = ("sparsity", "gradient", "gradient_options", "rho", "seed", "out", "data_dir")
_OWN = (*METHOD_FIELDS, *_CELL)
"""Fields that the cell sets, not the scale."""


def _fields(name: str) -> dict[str, Any]:
    """The fields of a preset that are not the cell's."""
    found = preset(name).config.record()
    return {name: value for name, value in found.items() if name not in _OWN}


_FULL = {
    "ResNet-32": {"model": "resnet32", "width": 2.0},
    "ResNet-50": {"model": "resnet50", "width": 1.0, "model_options": ("stem=cifar",)},
    "VGG-19": {"model": "vgg19", "width": 1.0},
    "WRN-28-10": {"model": "wrn28-10", "width": 1.0},
    "DeiT-Tiny": _fields("imagenet-deit-tiny"),
    "DeiT-Small": _fields("imagenet-deit-small"),
}
_CIFAR = {"CIFAR-10": {"dataset": "cifar10"}, "CIFAR-100": {"dataset": "cifar100"}}
_NARROW = {"model": "resnet20", "width": 0.25}
_MLP = {"model": "mlp", "model_options": ("hidden=(32,)",)}
_RESNET = {"model": "resnet20", "width": 0.125}
_OFTEN = {"update_interval": 20}
_VIT = {"model": "vit", "width": 0.125, "model_options": ("depth=1", "patch=4")}

SCALES: Mapping[str, Scale] = {
    "full": Scale(
        _fields("cifar-resnet32"),
        _FULL,
        {**_CIFAR, "ImageNet-1K": {"dataset": "imagenet2012"}},
        examples=None,
        dynamic={
            "DeiT-Tiny": {"budget": "erk_fused", "update_interval": 10_000},
            "DeiT-Small": {"budget": "erk_fused", "update_interval": 7_500},
        },
        rounds={0.9: 10, 0.95: 13, 0.98: 17},
        seeds=3,
        target=0.9,
        corruptions={},
        speed=(64, 32),
    ),
    "medium": Scale(
        {"batch_size": 32, "epochs": 10, "checkpoint_every": 2},
        dict.fromkeys(_FULL, _NARROW),
        {"CIFAR-10": {"dataset": "cifar10"}, "CIFAR-100": {"dataset": "cifar100"}},
        examples=(5_000, 2_000),
        dynamic={},
        rounds={0.9: 3, 0.95: 3, 0.98: 3},
        seeds=2,
        target=0.3,
        corruptions={"images": 500},
        speed=(128, 32),
    ),
    "smoke": Scale(
        {"epochs": 20, "augment": (), "checkpoint_every": 20},
        {
            **dict.fromkeys(_FULL, _MLP),
            "ResNet-50": _RESNET,
            "VGG-19": _RESNET,
            "DeiT-Tiny": _VIT,
            "DeiT-Small": _VIT,
        },
        {
            "CIFAR-10": {"dataset": "digits"},
            "CIFAR-100": {"dataset": "digits", "label_noise": 0.2},
            "ImageNet-1K": {"dataset": "digits"},
        },
        examples=None,
        dynamic=dict.fromkeys(_FULL, _OFTEN),
        rounds={0.9: 1, 0.95: 1, 0.98: 1},
        seeds=2,
        target=0.75,
        corruptions={"images": 100, "severities": (1, 5), "corruptions": ("common",)},
        speed=(64, 8),
    ),
}
"""`full` is the papers' setting, as far as it is known: the schedule of MEST and of
S2-SAM, with one weight decay for all gradients. In `smoke`, small networks on the 8 x 8
digits stand in for all networks and data; those for CIFAR-100 have 20 % wrong
labels."""


def config(
    cell: Cell, seed: int, scale: Scale, folder: Path, data_dir: str | None
) -> TrainConfig | LotteryConfig:
    """Returns the configuration of a training, or of the search for a ticket.

    Args:
      cell: The cell.
      seed: Seed.
      scale: The scale.
      folder: Folder of the runs.
      data_dir: TFDS directory.
    """
    fields = {**scale.base, **scale.networks[cell.network], **scale.data[cell.data]}
    fields |= {**METHODS[cell.method], **GRADIENTS[cell.gradient]}
    if cell.method in DYNAMIC:
        fields |= scale.dynamic.get(cell.network, {})
    if fields["dataset"] == "digits":
        data_dir = None
    name = "-".join(str(x) for x in (*cell, f"s{seed}")).replace(", ", "-")
    out = str(folder / name.replace(" ", "-"))
    made = TrainConfig(
        **{**fields, "sparsity": cell.sparsity},
        seed=seed,
        data_dir=data_dir,
        out=out,
    )
    if cell.method != LT:
        return made
    return LotteryConfig(train=made, rounds=scale.rounds[cell.sparsity])


class Table(NamedTuple):
    """A table of the papers.

    Attributes:
      title: What it compares.
      cells: Its cells.
      measures: What is shown of each cell, keys of `MEASURES`.
      few: The cells of scale smoke, where not all.
    """

    title: str
    cells: Sequence[Cell]
    measures: Sequence[str]
    few: Sequence[Cell] | None = None

    def of(self, scale: str) -> Sequence[Cell]:
        """Returns the cells that a scale trains."""
        return self.few if scale == "smoke" and self.few is not None else self.cells

    def all_of(self, scale: str) -> list[Cell]:
        """Returns the cells of the table, and those that only this scale trains."""
        return list(dict.fromkeys([*self.cells, *self.of(scale)]))


MEASURES = {
    "accuracy": "top-1, %",
    "epochs": "epochs to the target",
    "speed": "images/s",
    "share": "% of SGD's images/s",
    "clean": "clean, %",
    "corrupted": "corrupted, %",
}
"""The heading of each measure. Speeds depend on the machine."""
HOSTS = (LT, "SNIP", "GraSP", "SET", "DSR", "RigL", "MEST")
SPARSITIES = (0.9, 0.95, 0.98)
_OF_TABLE_1 = ("SGD", "S2-SAM", "ZO-SAM")
_OF_TABLE_4 = ("SGD", "SAM", "ESAM", "LookSAM, k=10", "GSAM", "ZO-SAM")
_OF_TABLE_3 = ("SGD", "SAM", "ESAM", "LookSAM, k=5", "GSAM", "ZO-SAM")


def _grid(*axes: Sequence[Any]) -> list[Cell]:
    return [Cell(*each) for each in itertools.product(*axes)]


_CIFARS = ("CIFAR-10", "CIFAR-100")
_C10 = ("CIFAR-10",)
_NETWORKS = ("ResNet-50", "VGG-19")


def _vits(*methods: str) -> list[Cell]:
    return [
        Cell(network, "ImageNet-1K", method, sparsity, gradient)
        for network, sparsity in (("DeiT-Tiny", 0.5), ("DeiT-Small", 0.7))
        for method in methods
        for gradient in ("SGD", "ZO-SAM")
    ]


_CGE = "ZO-SAM, CGE"
_PROBES = [n for n in GRADIENTS if n.startswith("ZO-SAM") and n != _CGE]


def _ablated(*gradients: str) -> list[Cell]:
    return _grid(("ResNet-32",), _C10, ("RigL",), (0.9,), ("SGD", "SAM", *gradients))


TABLES: Mapping[str, Table] = {
    "T1": Table(
        "ResNet-32, sparse methods and gradients",
        _grid(("ResNet-32",), _CIFARS, HOSTS, SPARSITIES, _OF_TABLE_1),
        ("accuracy",),
    ),
    "T1b": Table(
        "ResNet-50 and VGG-19",
        _grid(_NETWORKS, _CIFARS, HOSTS, SPARSITIES, _OF_TABLE_1),
        ("accuracy",),
    ),
    "T2": Table(
        "DeiT on ImageNet-1K",
        _vits("SNIP", "RigL", "MEST", "SViTE"),
        ("accuracy",),
    ),
    "T3": Table(
        "epochs to the target accuracy",
        _grid(("ResNet-32",), _C10, ("MEST",), (0.9, 0.95), _OF_TABLE_3),
        ("epochs",),
    ),
    "T4": Table(
        "throughput and accuracy",
        _grid(("ResNet-32", "WRN-28-10"), _C10, ("MEST",), (0.9,), _OF_TABLE_4),
        ("speed", "share", "accuracy"),
    ),
    "T5": Table(
        "CIFAR-10-C",
        _grid(("ResNet-32",), _C10, ("SNIP",), (0.9,), ("SGD", "GSAM", "ZO-SAM")),
        ("clean", "corrupted"),
    ),
    "ablations": Table(
        "what the paper left out: m, delta, rho, norm, CGE, random sign",
        _ablated(*_PROBES, "random sign"),
        ("accuracy",),
        few=_ablated(*_PROBES, _CGE, "random sign"),
    ),
    "extreme": Table(
        "99 and 99.5 % sparsity",
        _grid(("ResNet-32",), _C10, ("RigL", "MEST"), (0.99, 0.995), ("SGD", "ZO-SAM")),
        ("accuracy",),
    ),
}
