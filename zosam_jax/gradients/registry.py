"""Every gradient, in one table from which the rest of the project reads."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from zosam_jax._types import Estimate
from zosam_jax.gradients.methods import (
    aesam,
    asam,
    backprop,
    esam,
    fsam,
    gsam,
    looksam,
    msam,
    rwp,
    s2sam,
    sam,
    ssam,
    vasso,
    wsam,
    zeroth_order,
    zosam,
)
from zosam_jax.gradients.transformation import GradientEstimator


class Variant(NamedTuple):
    """A method with options under which the tables name it apart.

    Attributes:
      options: Those of the constructor.
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
      gradient: The same as a pure function.
      label: Its name in tables and results.
      paper: Its source; "" where there is none.
      when: When to choose it, in one line.
      variants: Forms of it that the tables name apart.
    """

    make: Callable[..., GradientEstimator]
    gradient: Callable[..., Estimate]
    label: str
    paper: str
    when: str
    variants: tuple[Variant, ...] = ()


METHODS: dict[str, GradientMethod] = {
    "backprop": GradientMethod(
        backprop.backprop,
        backprop.backprop_gradient,
        "SGD",
        "",
        "The reference.",
    ),
    "sam": GradientMethod(
        sam.sam,
        sam.sam_gradient,
        "SAM",
        "arXiv:2010.01412",
        "Two passes are affordable; the best understood.",
    ),
    "asam": GradientMethod(
        asam.asam,
        asam.asam_gradient,
        "ASAM",
        "arXiv:2102.11600",
        "Layers differ much in scale; rho carries over between nets.",
    ),
    "gsam": GradientMethod(
        gsam.gsam,
        gsam.gsam_gradient,
        "GSAM",
        "arXiv:2203.08065",
        "SAM, with rho tied to the learning rate; large nets.",
    ),
    "fsam": GradientMethod(
        fsam.fsam,
        fsam.fsam_gradient,
        "F-SAM",
        "arXiv:2403.12350",
        "Small batches: perturbs along their noise alone.",
    ),
    "vasso": GradientMethod(
        vasso.vasso,
        vasso.vasso_gradient,
        "VaSSO",
        "arXiv:2309.15639",
        "Small batches: perturbs along a calmer direction.",
    ),
    "wsam": GradientMethod(
        wsam.wsam,
        wsam.wsam_gradient,
        "WSAM",
        "arXiv:2305.15817",
        "Sharpness should weigh more, or less, than in SAM.",
    ),
    "esam": GradientMethod(
        esam.esam,
        esam.esam_gradient,
        "ESAM",
        "arXiv:2110.03141",
        "Losses of single examples are at hand.",
    ),
    "looksam": GradientMethod(
        looksam.looksam,
        looksam.looksam_gradient,
        "LookSAM, k=5",
        "arXiv:2203.02714",
        "SAM at little more than SGD's price; alpha wants tuning.",
    ),
    "aesam": GradientMethod(
        aesam.aesam,
        aesam.aesam_gradient,
        "AE-SAM",
        "ICLR 2023",
        "As LookSAM, with the steps chosen by the gradient's norm.",
    ),
    "ssam": GradientMethod(
        ssam.ssam,
        ssam.ssam_gradient,
        "SSAM-F",
        "arXiv:2210.05177",
        "To ask which weights need perturbing.",
        (Variant({"mask": "dynamic"}, "SSAM-D", "The same without a Fisher matrix."),),
    ),
    "s2sam": GradientMethod(
        s2sam.s2sam,
        s2sam.s2sam_gradient,
        "S2-SAM",
        "NeurIPS 2024",
        "One pass only; plain SGD or little momentum.",
    ),
    "msam": GradientMethod(
        msam.msam,
        msam.msam_gradient,
        "MSAM",
        "arXiv:2401.12033",
        "One pass only; looks where the momentum leads.",
    ),
    "rwp": GradientMethod(
        rwp.rwp,
        rwp.rwp_gradient,
        "RWP",
        "arXiv:2211.13489",
        "One pass only; the control that knows nothing of the loss.",
    ),
    "mrwp": GradientMethod(
        rwp.mrwp,
        rwp.mrwp_gradient,
        "mRWP",
        "arXiv:2211.13489",
        "Two batches on two devices.",
    ),
    "arwp": GradientMethod(
        rwp.arwp,
        rwp.arwp_gradient,
        "ARWP",
        "arXiv:2404.00357",
        "RWP, less where gradients have been large.",
    ),
    "zosam": GradientMethod(
        zosam.zosam,
        zosam.zosam_gradient,
        "ZO-SAM",
        "arXiv:2603.13115",
        "The published method; nearly random directions.",
        (
            Variant(
                {"directions": "guided"},
                "guided ZO-SAM",
                "ZO-SAM's price, most of SAM's direction.",
            ),
        ),
    ),
    "rst": GradientMethod(
        zosam.rst,
        zosam.rst_gradient,
        "random, random sign",
        "",
        "The control: ZO-SAM without its probes.",
    ),
    "zeroth_order": GradientMethod(
        zeroth_order.zeroth_order,
        zeroth_order.zeroth_order_gradient,
        "ZO-SGD",
        "Nesterov and Spokoiny (2017)",
        "No backward pass is possible, or no memory for one.",
    ),
}
"""The gradients by the names of their constructors."""
