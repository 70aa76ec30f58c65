"""Sparse networks with flat minima, at the price of one backward pass.

Any sharpness-aware gradient x any sparse-training method x any Optax optimizer, in one
jitted step. Start reading at `zosam_jax/zosam.py`.
"""

from zosam_jax import sparsity as sparsity
from zosam_jax import tree as tree
from zosam_jax._types import Estimate as Estimate
from zosam_jax._types import Info as Info
from zosam_jax.sparsity import SparsifyState as SparsifyState
from zosam_jax.sparsity import sparsify as sparsify
from zosam_jax.transformation import EstimatorState as EstimatorState
from zosam_jax.transformation import as_transformation as as_transformation
from zosam_jax.transformation import backprop as backprop
from zosam_jax.transformation import estimate as estimate
from zosam_jax.zosam import zosam as zosam
from zosam_jax.zosam import zosam_gradient as zosam_gradient

__version__ = "0.1.0"
