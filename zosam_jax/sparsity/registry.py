"""The table of sparse methods: constructors and facts by command-line name.

The command line, the documentation and the tests read it. A new method is a file in
`methods/`, an export in `zosam_jax/sparsity/__init__.py` and a row here;
`tests/sparsity/test_registry.py` says which of its tests are missing.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from zosam_jax.sparsity.method import SparseMethod
from zosam_jax.sparsity.methods.chase import chase
from zosam_jax.sparsity.methods.chex import chex
from zosam_jax.sparsity.methods.dsr import dsr
from zosam_jax.sparsity.methods.dynamic import dynamic
from zosam_jax.sparsity.methods.gmp import gmp
from zosam_jax.sparsity.methods.itop import itop
from zosam_jax.sparsity.methods.mest import mest
from zosam_jax.sparsity.methods.nm import nm
from zosam_jax.sparsity.methods.rigl import rigl
from zosam_jax.sparsity.methods.safe import safe
from zosam_jax.sparsity.methods.set import set_
from zosam_jax.sparsity.methods.srigl import srigl
from zosam_jax.sparsity.methods.static import static
from zosam_jax.sparsity.methods.ste import ste
from zosam_jax.sparsity.methods.svite import svite
from zosam_jax.sparsity.methods.units import units


class NamedMethod(NamedTuple):
    """A sparse method by its command-line name.

    Attributes:
      make: The constructor.
      label: The name in tables.
      paper: Its source, as "arXiv:1911.11134"; "" for none.
      prunes: The weights that it prunes, a phrase for tables.
      grows: The weights that it grows; "" for none.
      fixed: Arguments of `make` that the command-line name implies.
      scores_by: The function that its `value_fn` computes: "loss", "cooled loss" (the
        loss with the logits divided by 200) or "flow" (the sum of the outputs for an
        input of ones); "" for a method without a `value_fn`.
    """

    make: Callable[..., SparseMethod]
    label: str
    paper: str
    prunes: str
    grows: str = ""
    fixed: Mapping[str, Any] = {}
    scores_by: str = ""


METHODS: dict[str, NamedMethod] = {
    "random": NamedMethod(
        static, "random", "", "random weights, once", fixed={"criterion": "random"}
    ),
    "magnitude": NamedMethod(
        static,
        "magnitude",
        "",
        "smallest |w|, once",
        fixed={"criterion": "magnitude"},
    ),
    "snip": NamedMethod(
        static,
        "SNIP",
        "arXiv:1810.02340",
        "smallest |w g|, once",
        fixed={"criterion": "snip"},
        scores_by="loss",
    ),
    "grasp": NamedMethod(
        static,
        "GraSP",
        "arXiv:2002.07376",
        "smallest w (H g), once",
        fixed={"criterion": "grasp"},
        scores_by="cooled loss",
    ),
    "synflow": NamedMethod(
        static,
        "SynFlow",
        "arXiv:2006.05467",
        "smallest flow, in 100 rounds without data",
        fixed={"criterion": "synflow"},
        scores_by="flow",
    ),
    "set": NamedMethod(set_, "SET", "arXiv:1707.04780", "smallest |w|", "at random"),
    "rigl": NamedMethod(
        rigl, "RigL", "arXiv:1911.11134", "smallest |w|", "largest |g|"
    ),
    "itop": NamedMethod(
        itop,
        "ITOP",
        "arXiv:2102.02887",
        "smallest |w|, in few large changes",
        "largest |g|, or at random",
    ),
    "svite": NamedMethod(
        svite, "SViTE", "arXiv:2106.04533", "smallest |w|", "largest |g|"
    ),
    "mest": NamedMethod(
        mest,
        "MEST",
        "arXiv:2110.14032",
        "smallest |w| + lambda |g|, less from stage to stage",
        "at random",
    ),
    "dsr": NamedMethod(
        dsr,
        "DSR",
        "arXiv:1902.05967",
        "|w| below one threshold for all layers",
        "at random, most where most weights survive",
    ),
    "srigl": NamedMethod(
        srigl,
        "SRigL",
        "arXiv:2305.02299",
        "smallest |w|, and whole neurons",
        "largest |g|, to the same number of weights in every neuron",
        fixed={"last": ("head/kernel",)},
    ),
    "nm": NamedMethod(
        nm,
        "N:M",
        "arXiv:2102.04010",
        "smallest |w|",
        "largest |g|, to n live weights in every m",
    ),
    "units": NamedMethod(
        units,
        "SViTE, units",
        "arXiv:2106.04533",
        "whole heads, hidden units or channels",
        "those with the largest |g|",
    ),
    "chex": NamedMethod(
        chex,
        "CHEX",
        "arXiv:2203.15794",
        "whole channels of the lowest leverage scores",
        "channels drawn by their distance from the span of the kept ones",
    ),
    "chase": NamedMethod(
        chase,
        "Chase",
        "arXiv:2305.19454",
        "smallest |w| of all layers, and whole channels for good",
        "largest |g| of all layers",
    ),
    "gmp": NamedMethod(
        gmp,
        "GMP",
        "arXiv:1710.01878",
        "smallest |w|, up to the sparsity along a cubic",
    ),
    "safe": NamedMethod(
        safe,
        "SAFE",
        "arXiv:2506.06866",
        "smallest |w|, once at the end; until then a penalty pulls them to zero",
    ),
    "ste": NamedMethod(
        ste,
        "STE",
        "arXiv:1308.3432",
        "smallest |w|, chosen anew in every step; all weights train",
    ),
    "ticket": NamedMethod(
        static,
        "lottery ticket",
        "arXiv:1803.03635",
        "smallest |w| after training; then the weights are rewound",
        # All weights are live: `zosam lottery` inserts the masks of the round.
        fixed={"criterion": "magnitude", "sparsity": 0.0, "budget": "uniform"},
    ),
    "dynamic": NamedMethod(dynamic, "your own", "", "any score", "any score"),
}
"""The methods by command-line name."""
