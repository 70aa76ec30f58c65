"""Sparse training: initial budget x drop score x grow score x schedule.

`sparsify` wraps an optimizer. The methods it takes are `rigl`, `set_`, `mest`, `gmp`,
`safe`, `static` and others; `nm`, `srigl`, `units`, `chex` and `chase` prune in a
structure; `blocks` makes a method prune blocks of weights, `product` joins a method for
units and one for weights, `start_from` begins with given masks, and `dynamic` makes a
new method of two `scores`. `masks` reads the masks of a state, `apply_masks` applies
them, and `report` counts weights and FLOPs. `compact` cuts out units that nothing
reads, `accelerate` multiplies by sparse matrices where that is faster, and `cost`
measures a network before and after. `ticket_sparsities`, `prune_ticket` and
`early_bird` are for lottery tickets.
"""

from zosam_jax._types import Units as Units
from zosam_jax.sparsity import budgets as budgets
from zosam_jax.sparsity import scores as scores
from zosam_jax.sparsity.acceleration import Accelerated as Accelerated
from zosam_jax.sparsity.acceleration import LayerTime as LayerTime
from zosam_jax.sparsity.acceleration import accelerate as accelerate
from zosam_jax.sparsity.blocks import blocks as blocks
from zosam_jax.sparsity.compaction import Compact as Compact
from zosam_jax.sparsity.compaction import compact as compact
from zosam_jax.sparsity.mask_trees import apply_masks as apply_masks
from zosam_jax.sparsity.mask_trees import sparsity_of as sparsity_of
from zosam_jax.sparsity.method import SparseMethod as SparseMethod
from zosam_jax.sparsity.method import Topology as Topology
from zosam_jax.sparsity.methods.chase import chase as chase
from zosam_jax.sparsity.methods.chex import chex as chex
from zosam_jax.sparsity.methods.dsr import dsr as dsr
from zosam_jax.sparsity.methods.dynamic import Options as Options
from zosam_jax.sparsity.methods.dynamic import dynamic as dynamic
from zosam_jax.sparsity.methods.gmp import gmp as gmp
from zosam_jax.sparsity.methods.itop import itop as itop
from zosam_jax.sparsity.methods.mest import mest as mest
from zosam_jax.sparsity.methods.nm import nm as nm
from zosam_jax.sparsity.methods.rigl import rigl as rigl
from zosam_jax.sparsity.methods.safe import safe as safe
from zosam_jax.sparsity.methods.set import set_ as set_
from zosam_jax.sparsity.methods.srigl import srigl as srigl
from zosam_jax.sparsity.methods.static import static as static
from zosam_jax.sparsity.methods.ste import ste as ste
from zosam_jax.sparsity.methods.svite import svite as svite
from zosam_jax.sparsity.methods.units import units as units
from zosam_jax.sparsity.moments import mean_second_moments as mean_second_moments
from zosam_jax.sparsity.moments import reset_moments as reset_moments
from zosam_jax.sparsity.packing import pack as pack
from zosam_jax.sparsity.packing import unpack as unpack
from zosam_jax.sparsity.products import Parts as Parts
from zosam_jax.sparsity.products import product as product
from zosam_jax.sparsity.reports.cost import Cost as Cost
from zosam_jax.sparsity.reports.cost import cost as cost
from zosam_jax.sparsity.reports.findings import SparsityReport as SparsityReport
from zosam_jax.sparsity.reports.report import report as report
from zosam_jax.sparsity.starting_masks import start_from as start_from
from zosam_jax.sparsity.tickets import EarlyBird as EarlyBird
from zosam_jax.sparsity.tickets import EarlyBirdState as EarlyBirdState
from zosam_jax.sparsity.tickets import early_bird as early_bird
from zosam_jax.sparsity.tickets import prune_ticket as prune_ticket
from zosam_jax.sparsity.tickets import ticket_sparsities as ticket_sparsities
from zosam_jax.sparsity.transformation import SparsifyState as SparsifyState
from zosam_jax.sparsity.transformation import exploration as exploration
from zosam_jax.sparsity.transformation import explored as explored
from zosam_jax.sparsity.transformation import masks as masks
from zosam_jax.sparsity.transformation import sparsify as sparsify
from zosam_jax.sparsity.unread_units import removable as removable
