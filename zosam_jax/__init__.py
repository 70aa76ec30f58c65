"""Sharpness-aware gradients and sparse training for JAX, as Optax transformations.

Any gradient, any sparse method and any Optax optimizer combine in one jitted step:

    tx = zs.sparsify(optax.sgd(0.1), zs.sparsity.rigl(0.9, total_steps=10_000),
                     gradient=zs.zosam(rho=0.05))
    updates, state = tx.update(None, state, params, value_fn=loss)

Gradients, each an Optax transformation `zs.NAME()` and a pure function
`zs.NAME_gradient`:

  backprop            the plain gradient
  zosam, random_sign  ZO-SAM, which looks uphill by forward passes, and its control
  sam, asam, gsam, fsam, vasso, wsam, esam, looksam, aesam, ssam, cram, s2sam, msam
  sampa               sharpness-aware, by backward passes
  rwp, mrwp, arwp     random perturbations
  zeroth_order        no backward pass; zo_sgd, zo_signsgd and zo_adam are optimizers

When and how:         late, every, randomly, when; tied_radius, decoupled; estimate
                      reads the results of the last step; as_transformation and
                      zs.gradients make new methods
Sparse training:      sparsify; zs.sparsity has the methods, masks and reports
Types:                GradientEstimator, Estimate, EstimatorState, Facts, Info,
                      Decoupled, SparsifyState
Use a run:            load, which needs the trainer
Modules:              zs.gradients, zs.sparsity, zs.tree
Imported when used:   zs.models, zs.data, zs.train, zs.lottery, zs.evaluate,
                      zs.analysis

The algorithm of ZO-SAM is in `zosam_jax/zosam_algorithm.py`.
"""

import importlib
from typing import TYPE_CHECKING, Any

from zosam_jax import gradients as gradients
from zosam_jax import sparsity as sparsity
from zosam_jax import tree as tree
from zosam_jax._types import Decoupled as Decoupled
from zosam_jax._types import Estimate as Estimate
from zosam_jax._types import EstimatorState as EstimatorState
from zosam_jax._types import Facts as Facts
from zosam_jax._types import Info as Info
from zosam_jax._version import __version__ as __version__
from zosam_jax.gradients.methods.aesam import aesam as aesam
from zosam_jax.gradients.methods.aesam import aesam_gradient as aesam_gradient
from zosam_jax.gradients.methods.asam import asam as asam
from zosam_jax.gradients.methods.asam import asam_gradient as asam_gradient
from zosam_jax.gradients.methods.backprop import backprop as backprop
from zosam_jax.gradients.methods.backprop import backprop_gradient as backprop_gradient
from zosam_jax.gradients.methods.cram import cram as cram
from zosam_jax.gradients.methods.cram import cram_gradient as cram_gradient
from zosam_jax.gradients.methods.esam import esam as esam
from zosam_jax.gradients.methods.esam import esam_gradient as esam_gradient
from zosam_jax.gradients.methods.fsam import fsam as fsam
from zosam_jax.gradients.methods.fsam import fsam_gradient as fsam_gradient
from zosam_jax.gradients.methods.gsam import gsam as gsam
from zosam_jax.gradients.methods.gsam import gsam_gradient as gsam_gradient
from zosam_jax.gradients.methods.gsam import tied_radius as tied_radius
from zosam_jax.gradients.methods.looksam import looksam as looksam
from zosam_jax.gradients.methods.looksam import looksam_gradient as looksam_gradient
from zosam_jax.gradients.methods.msam import msam as msam
from zosam_jax.gradients.methods.msam import msam_gradient as msam_gradient
from zosam_jax.gradients.methods.rwp import arwp as arwp
from zosam_jax.gradients.methods.rwp import arwp_gradient as arwp_gradient
from zosam_jax.gradients.methods.rwp import mrwp as mrwp
from zosam_jax.gradients.methods.rwp import mrwp_gradient as mrwp_gradient
from zosam_jax.gradients.methods.rwp import rwp as rwp
from zosam_jax.gradients.methods.rwp import rwp_gradient as rwp_gradient
from zosam_jax.gradients.methods.s2sam import s2sam as s2sam
from zosam_jax.gradients.methods.s2sam import s2sam_gradient as s2sam_gradient
from zosam_jax.gradients.methods.sam import sam as sam
from zosam_jax.gradients.methods.sam import sam_gradient as sam_gradient
from zosam_jax.gradients.methods.sampa import sampa as sampa
from zosam_jax.gradients.methods.sampa import sampa_gradient as sampa_gradient
from zosam_jax.gradients.methods.ssam import ssam as ssam
from zosam_jax.gradients.methods.ssam import ssam_gradient as ssam_gradient
from zosam_jax.gradients.methods.vasso import vasso as vasso
from zosam_jax.gradients.methods.vasso import vasso_gradient as vasso_gradient
from zosam_jax.gradients.methods.wsam import decoupled as decoupled
from zosam_jax.gradients.methods.wsam import wsam as wsam
from zosam_jax.gradients.methods.wsam import wsam_gradient as wsam_gradient
from zosam_jax.gradients.methods.zeroth_order import zeroth_order as zeroth_order
from zosam_jax.gradients.methods.zeroth_order import (
    zeroth_order_gradient as zeroth_order_gradient,
)
from zosam_jax.gradients.methods.zeroth_order import zo_adam as zo_adam
from zosam_jax.gradients.methods.zeroth_order import zo_sgd as zo_sgd
from zosam_jax.gradients.methods.zeroth_order import zo_signsgd as zo_signsgd
from zosam_jax.gradients.methods.zosam import random_sign as random_sign
from zosam_jax.gradients.methods.zosam import (
    random_sign_gradient as random_sign_gradient,
)
from zosam_jax.gradients.methods.zosam import zosam as zosam
from zosam_jax.gradients.methods.zosam import zosam_gradient as zosam_gradient
from zosam_jax.gradients.timing import every as every
from zosam_jax.gradients.timing import late as late
from zosam_jax.gradients.timing import randomly as randomly
from zosam_jax.gradients.timing import when as when
from zosam_jax.gradients.transformation import GradientEstimator as GradientEstimator
from zosam_jax.gradients.transformation import as_transformation as as_transformation
from zosam_jax.gradients.transformation import estimate as estimate
from zosam_jax.sparsity import SparsifyState as SparsifyState
from zosam_jax.sparsity import sparsify as sparsify

if TYPE_CHECKING:
    from zosam_jax import analysis as analysis
    from zosam_jax import data as data
    from zosam_jax import evaluate as evaluate
    from zosam_jax import lottery as lottery
    from zosam_jax import models as models
    from zosam_jax import train as train
    from zosam_jax.train.load_run import load as load

# They need Flax, Orbax, TFDS or Matplotlib, which the library does without.
_LAZY = ("analysis", "data", "evaluate", "lottery", "models", "train")


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return importlib.import_module(f"{__name__}.{name}")
    if name == "load":
        return importlib.import_module(f"{__name__}.train.load_run").load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY, "load"})
