"""The table of gradients, which the command line, documentation and tests read.

Methods that only choose the steps of another gradient, such as RST (arXiv:2203.09962),
are functions of it: see `zosam_jax.gradients.timing`.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from zosam_jax._types import Estimate
from zosam_jax.gradients.methods import (
    aesam,
    asam,
    backprop,
    cram,
    esam,
    fsam,
    gsam,
    looksam,
    msam,
    rwp,
    s2sam,
    sam,
    sampa,
    ssam,
    vasso,
    wsam,
    zeroth_order,
    zosam,
)
from zosam_jax.gradients.transformation import GradientEstimator


class Variant(NamedTuple):
    """A method with certain options, which has a row of its own in the tables.

    Attributes:
      options: Keyword arguments of the constructor.
      label: Its name in tables and results.
      when: When to choose it, in one line.
    """

    options: Mapping[str, Any]
    label: str
    when: str


class GradientMethod(NamedTuple):
    """A gradient.

    Attributes:
      make: Its constructor.
      gradient: The same gradient as a pure function.
      label: Its name in tables and results.
      title: Its name in words.
      paper: Its source; "" for none.
      when: When to choose it, in one line.
      variants: Variants that have rows of their own in the tables.
    """

    make: Callable[..., GradientEstimator]
    gradient: Callable[..., Estimate]
    label: str
    title: str
    paper: str
    when: str
    variants: tuple[Variant, ...] = ()


METHODS: dict[str, GradientMethod] = {
    "backprop": GradientMethod(
        backprop.backprop,
        backprop.backprop_gradient,
        "SGD",
        "the plain gradient",
        "",
        "The baseline: no perturbation.",
    ),
    "sam": GradientMethod(
        sam.sam,
        sam.sam_gradient,
        "SAM",
        "sharpness-aware minimization",
        "arXiv:2010.01412",
        "The standard method, if you can afford two backward passes.",
    ),
    "sampa": GradientMethod(
        sampa.sampa,
        sampa.sampa_gradient,
        "SAMPa",
        "SAM parallelized",
        "arXiv:2410.10683",
        "SAM whose two gradients do not wait for each other.",
    ),
    "asam": GradientMethod(
        asam.asam,
        asam.asam_gradient,
        "ASAM",
        "adaptive SAM",
        "arXiv:2102.11600",
        "Layers differ much in scale; rho transfers between networks.",
    ),
    "gsam": GradientMethod(
        gsam.gsam,
        gsam.gsam_gradient,
        "GSAM",
        "surrogate gap guided SAM",
        "arXiv:2203.08065",
        "Large networks; rho can follow the learning rate.",
    ),
    "fsam": GradientMethod(
        fsam.fsam,
        fsam.fsam_gradient,
        "F-SAM",
        "friendly SAM",
        "arXiv:2403.12350",
        "Small batches: perturbs along the noise of the gradient.",
    ),
    "vasso": GradientMethod(
        vasso.vasso,
        vasso.vasso_gradient,
        "VaSSO",
        "variance-suppressed SAM",
        "arXiv:2309.15639",
        "Small batches: perturbs along a running mean of gradients.",
    ),
    "wsam": GradientMethod(
        wsam.wsam,
        wsam.wsam_gradient,
        "WSAM",
        "weighted SAM",
        "arXiv:2305.15817",
        "Sharpness needs more or less weight than in SAM.",
    ),
    "esam": GradientMethod(
        esam.esam,
        esam.esam_gradient,
        "ESAM",
        "efficient SAM",
        "arXiv:2110.03141",
        "The losses of single examples are available.",
    ),
    "looksam": GradientMethod(
        looksam.looksam,
        looksam.looksam_gradient,
        "LookSAM, k=5",
        "SAM with reused gradients",
        "arXiv:2203.02714",
        "A second backward pass in every k-th step; alpha needs tuning.",
    ),
    "aesam": GradientMethod(
        aesam.aesam,
        aesam.aesam_gradient,
        "AE-SAM",
        "SAM by an adaptive policy",
        "ICLR 2023",
        "LookSAM, but the gradient norm selects the SAM steps.",
    ),
    "ssam": GradientMethod(
        ssam.ssam,
        ssam.ssam_gradient,
        "SSAM-F",
        "sparse SAM",
        "arXiv:2210.05177",
        "To study which weights need a perturbation.",
        (
            Variant(
                {"mask": "dynamic"}, "SSAM-D", "Like SSAM-F, without a Fisher matrix."
            ),
        ),
    ),
    "cram": GradientMethod(
        cram.cram,
        cram.cram_gradient,
        "CrAM",
        "compression-aware minimizer",
        "arXiv:2207.14200",
        "The network will be pruned after the training, once.",
    ),
    "s2sam": GradientMethod(
        s2sam.s2sam,
        s2sam.s2sam_gradient,
        "S2-SAM",
        "single-step SAM",
        "NeurIPS 2024",
        "One backward pass; SGD with little or no momentum.",
    ),
    "msam": GradientMethod(
        msam.msam,
        msam.msam_gradient,
        "MSAM",
        "momentum SAM",
        "arXiv:2401.12033",
        "One backward pass; perturbs along the next momentum step.",
    ),
    "rwp": GradientMethod(
        rwp.rwp,
        rwp.rwp_gradient,
        "RWP",
        "random weight perturbation",
        "arXiv:2211.13489",
        "One backward pass; a control with random perturbations.",
    ),
    "mrwp": GradientMethod(
        rwp.mrwp,
        rwp.mrwp_gradient,
        "mRWP",
        "mixed random weight perturbation",
        "arXiv:2211.13489",
        "Two devices, each with its own batch.",
    ),
    "arwp": GradientMethod(
        rwp.arwp,
        rwp.arwp_gradient,
        "ARWP",
        "adaptive random weight perturbation",
        "arXiv:2404.00357",
        "Like RWP, with less noise where gradients were large.",
    ),
    "zosam": GradientMethod(
        zosam.zosam,
        zosam.zosam_gradient,
        "ZO-SAM",
        "zeroth-order SAM",
        "arXiv:2603.13115",
        "The published method; its perturbation is nearly random.",
        (
            Variant(
                {"directions": "guided"},
                "guided ZO-SAM",
                "Costs as much as ZO-SAM; its perturbation is closer to SAM's.",
            ),
        ),
    ),
    "random_sign": GradientMethod(
        zosam.random_sign,
        zosam.random_sign_gradient,
        "random, random sign",
        "a control without probes",
        "",
        "The control for ZO-SAM: no probes, a random sign.",
    ),
    "zeroth_order": GradientMethod(
        zeroth_order.zeroth_order,
        zeroth_order.zeroth_order_gradient,
        "ZO-SGD",
        "gradient by forward passes alone",
        "Nesterov and Spokoiny (2017)",
        "A backward pass is impossible or needs too much memory.",
    ),
}
"""The gradients by the names of their constructors."""
