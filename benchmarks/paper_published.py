"""The numbers of the papers, as facts with their place and how sure they are.

Papers: ZO-SAM (arXiv:2603.13115), S2-SAM (NeurIPS 2024), MEST (arXiv:2110.14032), GraSP
(arXiv:2002.07376). The full text of ZO-SAM could not be read: its numbers come from
notes and digests of others, and a number is sure where two of them agree or where a
value and its gain fit together. The baselines that are marked as unsure were not read
from a paper either. Accuracies are in per cent.
"""

from collections.abc import Mapping
from typing import NamedTuple

from benchmarks.paper_plan import Cell


class Number(NamedTuple):
    """A published number.

    Attributes:
      value: In the unit of the measure.
      source: Paper and table.
      sure: Whether two readings agree.
    """

    value: float
    source: str
    sure: bool = True


ZOSAM1 = "ZO-SAM, table 1"
OTHERS = "GraSP and MEST, tables, as remembered"

# Accuracy of ResNet-32 without SAM: host -> CIFAR-10 at 90, 95 and 98 %, CIFAR-100.
_BASE = {
    "LT": ((92.31, 91.06, 88.78), (68.99, 65.02, 57.37)),
    "SNIP": ((92.59, 91.01, 87.51), (68.89, 65.22, 54.81)),
    "GraSP": ((92.38, 91.39, 88.81), (69.24, 66.50, 58.43)),
    "SET": ((92.30, 90.76, 88.29), (69.66, 67.41, 62.25)),
    "DSR": ((92.97, 91.61, 88.46), (69.63, 68.20, 61.24)),
    "RigL": ((93.07, 91.83, 89.00), (70.34, 68.22, 64.07)),
    "MEST": ((92.56, 91.15, 89.22), (70.44, 68.43, 64.59)),
}
_ZOSAM = {
    ("LT", "CIFAR-10", 0.95): 92.69,
    ("LT", "CIFAR-10", 0.98): 89.46,
    ("SNIP", "CIFAR-10", 0.9): 93.38,
    ("SNIP", "CIFAR-10", 0.98): 88.22,
    ("SNIP", "CIFAR-100", 0.9): 69.54,
    ("RigL", "CIFAR-10", 0.9): 93.66,
    ("RigL", "CIFAR-10", 0.95): 92.21,
    ("RigL", "CIFAR-10", 0.98): 90.61,
    ("RigL", "CIFAR-100", 0.9): 72.88,
    ("RigL", "CIFAR-100", 0.95): 70.58,
    ("RigL", "CIFAR-100", 0.98): 65.17,
    ("MEST", "CIFAR-10", 0.9): 93.50,
    ("MEST", "CIFAR-10", 0.98): 91.53,
    ("MEST", "CIFAR-100", 0.9): 72.20,
    ("MEST", "CIFAR-100", 0.98): 66.01,
}
"""Table 1 with ZO-SAM, as far as it was found; the value without it was found too."""

_SPARSITIES, _DATA = (0.9, 0.95, 0.98), ("CIFAR-10", "CIFAR-100")
_WIDE = "ResNet-32"


def _accuracies() -> dict[tuple[Cell, str], Number]:
    """Table 1."""
    found = {}
    for host, by_data in _BASE.items():
        for data, values in zip(_DATA, by_data, strict=True):
            for sparsity, value in zip(_SPARSITIES, values, strict=True):
                sure = (host, data, sparsity) in _ZOSAM
                number = Number(value, ZOSAM1 if sure else OTHERS, sure)
                cell = Cell(_WIDE, data, host, sparsity, "SGD")
                found[cell, "accuracy"] = number
    for (host, data, sparsity), value in _ZOSAM.items():
        cell = Cell(_WIDE, data, host, sparsity, "ZO-SAM")
        found[cell, "accuracy"] = Number(value, ZOSAM1)
    return found


def _vision_transformers() -> dict[tuple[Cell, str], Number]:
    """Table 2."""
    rows = (
        ("DeiT-Tiny", "MEST", 0.5, "SGD", 69.69, True),
        ("DeiT-Tiny", "MEST", 0.5, "ZO-SAM", 70.41, True),
        ("DeiT-Tiny", "SViTE", 0.5, "SGD", 70.18, True),
        ("DeiT-Tiny", "RigL", 0.5, "SGD", 70.79, False),
        ("DeiT-Tiny", "RigL", 0.5, "ZO-SAM", 71.32, False),
        ("DeiT-Small", "RigL", 0.7, "SGD", 77.99, True),
        ("DeiT-Small", "RigL", 0.7, "ZO-SAM", 79.16, True),
        ("DeiT-Small", "MEST", 0.7, "SGD", 78.04, False),
    )
    return {
        (Cell(network, "ImageNet-1K", method, sparsity, gradient), "accuracy"): Number(
            value, "ZO-SAM, table 2", sure
        )
        for network, method, sparsity, gradient, value, sure in rows
    }


def _mest(sparsity: float, gradient: str, network: str = _WIDE) -> Cell:
    return Cell(network, "CIFAR-10", "MEST", sparsity, gradient)


def _epochs() -> dict[tuple[Cell, str], Number]:
    """Table 3; its host is not known."""
    rows = {
        "SGD": (104, 131),
        "ESAM": (75, 92),
        "LookSAM, k=5": (79, 94),
        "GSAM": (84, 113),
        "ZO-SAM": (70, 88),
    }
    return {
        (_mest(sparsity, gradient), "epochs"): Number(value, "ZO-SAM, table 3")
        for gradient, values in rows.items()
        for sparsity, value in zip((0.9, 0.95), values, strict=True)
    }


def _speeds() -> dict[tuple[Cell, str], Number]:
    """Table 4: images a second, and SAM's and GSAM's accuracy."""
    rows = {
        "SGD": (5673.95, 752.30),
        "SAM": (2704.84, 354.94),
        "ESAM": (2297.23, 305.76),
        "LookSAM, k=10": (4272.22, 593.02),
        "GSAM": (2701.0, None),
        "ZO-SAM": (4349.53, 576.01),
    }
    source, found = "ZO-SAM, table 4", {}
    for gradient, speeds in rows.items():
        for i, (network, speed) in enumerate(
            zip((_WIDE, "WRN-28-10"), speeds, strict=True)
        ):
            if speed is None:
                continue
            cell = _mest(0.9, gradient, network)
            found[cell, "speed"] = Number(speed, source)
            found[cell, "share"] = Number(100 * speed / rows["SGD"][i], source)
    found[_mest(0.9, "SAM"), "accuracy"] = Number(93.77, source)
    found[_mest(0.9, "GSAM"), "accuracy"] = Number(93.72, source)
    return found


def _corrupted() -> dict[tuple[Cell, str], Number]:
    """Table 5."""
    rows = {"SGD": (92.59, 59.60), "GSAM": (93.71, 61.65), "ZO-SAM": (93.38, 62.70)}
    found = {}
    for gradient, values in rows.items():
        cell = Cell(_WIDE, "CIFAR-10", "SNIP", 0.9, gradient)
        for measure, value in zip(("clean", "corrupted"), values, strict=True):
            found[cell, measure] = Number(value, "ZO-SAM, table 5")
    return found


PUBLISHED: Mapping[tuple[Cell, str], Number] = {
    **_accuracies(),
    **_vision_transformers(),
    **_epochs(),
    **_speeds(),
    **_corrupted(),
}
"""The numbers, by cell and measure."""
