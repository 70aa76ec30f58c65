"""Types of flags whose help texts list the names of a registry, one on each line."""

from collections.abc import Mapping
from typing import Annotated

from tyro.conf import arg

from zosam_jax.data.table import DATASETS
from zosam_jax.gradients import registry as gradients
from zosam_jax.models.table import MODELS
from zosam_jax.runs.config import TrainConfig, field_texts
from zosam_jax.sparsity import registry as sparsity
from zosam_jax.train.optimizers import OPTIMIZERS


def _listed(first: str, rows: Mapping[str, str]) -> str:
    """Returns a help text of a first line and one line for each name."""
    lines = (f"- {name}: {text}" for name, text in rows.items())
    # The empty line at the end keeps the default apart from the last name.
    return "\n".join([first, *lines, ""])


def _what(row: sparsity.NamedMethod) -> str:
    """Returns what a sparse method prunes and grows."""
    return f"prunes {row.prunes}" + (f"; grows {row.grows}" if row.grows else "")


_OTHERS = {"any other name": "an image classification set of TFDS"}

Dataset = Annotated[
    str,
    arg(
        help=_listed(
            "Data set; `zosam data list` has their sizes:",
            {name: row.label for name, row in DATASETS.items()} | _OTHERS,
        )
    ),
]

Model = Annotated[
    str,
    arg(help=_listed("Model:", {name: row.label for name, row in MODELS.items()})),
]

# `zosam lottery` sets the method "ticket" itself.
_METHODS = {n: _what(row) for n, row in sparsity.METHODS.items() if n != "ticket"}

Method = Annotated[
    str, arg(help=_listed("Sparse method:", {"dense": "no pruning"} | _METHODS))
]

_GRADIENTS = {n: f"{row.title}. {row.when}" for n, row in gradients.METHODS.items()}

Gradient = Annotated[
    str,
    arg(
        help=_listed("Gradient estimator: its name, and when to choose it:", _GRADIENTS)
    ),
]

Optimizer = Annotated[str, arg(help=f"Optimizer: {', '.join(OPTIMIZERS)}.")]

From = Annotated[str | None, arg(name="from", help=field_texts(TrainConfig)["from_"])]
