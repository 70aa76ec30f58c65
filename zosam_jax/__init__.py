"""Sparse networks with flat minima, at the price of one backward pass.

Any sharpness-aware gradient x any sparse-training method x any Optax optimizer, in one
jitted step. Start reading at `zosam_jax/zosam.py`.
"""

from zosam_jax import sparsity as sparsity
from zosam_jax import tree as tree
from zosam_jax._types import Estimate as Estimate
from zosam_jax._types import Info as Info
from zosam_jax.sharpness import Decoupled as Decoupled
from zosam_jax.sharpness import aesam as aesam
from zosam_jax.sharpness import aesam_gradient as aesam_gradient
from zosam_jax.sharpness import arwp as arwp
from zosam_jax.sharpness import arwp_gradient as arwp_gradient
from zosam_jax.sharpness import asam as asam
from zosam_jax.sharpness import asam_gradient as asam_gradient
from zosam_jax.sharpness import decoupled as decoupled
from zosam_jax.sharpness import esam as esam
from zosam_jax.sharpness import esam_gradient as esam_gradient
from zosam_jax.sharpness import fsam as fsam
from zosam_jax.sharpness import fsam_gradient as fsam_gradient
from zosam_jax.sharpness import gsam as gsam
from zosam_jax.sharpness import gsam_gradient as gsam_gradient
from zosam_jax.sharpness import looksam as looksam
from zosam_jax.sharpness import looksam_gradient as looksam_gradient
from zosam_jax.sharpness import mrwp as mrwp
from zosam_jax.sharpness import mrwp_gradient as mrwp_gradient
from zosam_jax.sharpness import msam as msam
from zosam_jax.sharpness import msam_gradient as msam_gradient
from zosam_jax.sharpness import rst as rst
from zosam_jax.sharpness import rst_gradient as rst_gradient
from zosam_jax.sharpness import rwp as rwp
from zosam_jax.sharpness import rwp_gradient as rwp_gradient
from zosam_jax.sharpness import s2sam as s2sam
from zosam_jax.sharpness import s2sam_gradient as s2sam_gradient
from zosam_jax.sharpness import sam as sam
from zosam_jax.sharpness import sam_gradient as sam_gradient
from zosam_jax.sharpness import ssam as ssam
from zosam_jax.sharpness import ssam_gradient as ssam_gradient
from zosam_jax.sharpness import tied_radius as tied_radius
from zosam_jax.sharpness import vasso as vasso
from zosam_jax.sharpness import vasso_gradient as vasso_gradient
from zosam_jax.sharpness import wsam as wsam
from zosam_jax.sharpness import wsam_gradient as wsam_gradient
from zosam_jax.sparsity import SparsifyState as SparsifyState
from zosam_jax.sparsity import sparsify as sparsify
from zosam_jax.transformation import EstimatorState as EstimatorState
from zosam_jax.transformation import GradientEstimator as GradientEstimator
from zosam_jax.transformation import as_transformation as as_transformation
from zosam_jax.transformation import backprop as backprop
from zosam_jax.transformation import estimate as estimate
from zosam_jax.zo_optimizers import zeroth_order as zeroth_order
from zosam_jax.zo_optimizers import zo_adam as zo_adam
from zosam_jax.zo_optimizers import zo_sgd as zo_sgd
from zosam_jax.zo_optimizers import zo_signsgd as zo_signsgd
from zosam_jax.zosam import zosam as zosam
from zosam_jax.zosam import zosam_gradient as zosam_gradient

__version__ = "0.1.0"
