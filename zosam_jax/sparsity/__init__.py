"""Sparse training: initial budget x drop score x grow score x schedule.

`sparsify` wraps an optimizer; `rigl`, `set_`, `mest`, `gmp`, `static`, ..., and with a
structure `nm`, `srigl` and `units`, are the methods it takes; `dynamic` makes new ones
from two `scores`; `masks` and `apply_masks` read and apply; `report` says what they
amount to; `ticket_sparsities`, `prune_ticket` and `early_bird` choose lottery tickets.
"""

from zosam_jax._types import Units as Units
from zosam_jax.sparsity import budgets as budgets
from zosam_jax.sparsity import scores as scores
from zosam_jax.sparsity._dense_to_sparse import gmp as gmp
from zosam_jax.sparsity._dense_to_sparse import ste as ste
from zosam_jax.sparsity._dsr import dsr as dsr
from zosam_jax.sparsity._dynamic import Options as Options
from zosam_jax.sparsity._dynamic import dynamic as dynamic
from zosam_jax.sparsity._dynamic import itop as itop
from zosam_jax.sparsity._dynamic import rigl as rigl
from zosam_jax.sparsity._dynamic import set_ as set_
from zosam_jax.sparsity._dynamic import svite as svite
from zosam_jax.sparsity._findings import SparsityReport as SparsityReport
from zosam_jax.sparsity._masks import apply_masks as apply_masks
from zosam_jax.sparsity._masks import sparsity_of as sparsity_of
from zosam_jax.sparsity._mest import mest as mest
from zosam_jax.sparsity._method import SparseMethod as SparseMethod
from zosam_jax.sparsity._method import Topology as Topology
from zosam_jax.sparsity._nm import nm as nm
from zosam_jax.sparsity._packing import pack as pack
from zosam_jax.sparsity._packing import unpack as unpack
from zosam_jax.sparsity._report import report as report
from zosam_jax.sparsity._sparsify import SparsifyState as SparsifyState
from zosam_jax.sparsity._sparsify import exploration as exploration
from zosam_jax.sparsity._sparsify import explored as explored
from zosam_jax.sparsity._sparsify import masks as masks
from zosam_jax.sparsity._sparsify import sparsify as sparsify
from zosam_jax.sparsity._srigl import srigl as srigl
from zosam_jax.sparsity._static import static as static
from zosam_jax.sparsity._tickets import EarlyBird as EarlyBird
from zosam_jax.sparsity._tickets import EarlyBirdState as EarlyBirdState
from zosam_jax.sparsity._tickets import early_bird as early_bird
from zosam_jax.sparsity._tickets import prune_ticket as prune_ticket
from zosam_jax.sparsity._tickets import ticket_sparsities as ticket_sparsities
from zosam_jax.sparsity._units import removable as removable
from zosam_jax.sparsity._units import units as units
