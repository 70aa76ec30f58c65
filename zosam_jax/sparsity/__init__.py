"""Sparse training: initial budget x drop score x grow score x schedule.

`sparsify` wraps an optimizer; `rigl`, `set_` and `static` are the methods it takes;
`dynamic` makes new ones from two scores; `masks` and `apply_masks` read and apply.
"""

from zosam_jax.sparsity.budgets import erk as erk
from zosam_jax.sparsity.budgets import uniform as uniform
from zosam_jax.sparsity.dynamic import dynamic as dynamic
from zosam_jax.sparsity.dynamic import rigl as rigl
from zosam_jax.sparsity.dynamic import set_ as set_
from zosam_jax.sparsity.masks import apply_masks as apply_masks
from zosam_jax.sparsity.masks import sparsity_of as sparsity_of
from zosam_jax.sparsity.method import SparseMethod as SparseMethod
from zosam_jax.sparsity.sparsify import SparsifyState as SparsifyState
from zosam_jax.sparsity.sparsify import masks as masks
from zosam_jax.sparsity.sparsify import sparsify as sparsify
from zosam_jax.sparsity.static import static as static
