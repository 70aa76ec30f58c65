"""Instruments that show what a training did: sharpness, landscapes, noise, masks.

Each takes a loss and parameters, and knows no model:

    key = jax.random.key(0)
    batches = [(images, labels), ...]  # of one shape
    on = {"masks": masks, "batches": batches}
    top = zs.analysis.hessian_eigenvalues(loss, params, key, **on)
    top.values, top.vectors, top.residuals

`loss(params, batch)` is the mean over a batch. With masks, derivatives and steps are
those of the live weights; without, of all weights. Passes over the batches are loops in
Python: the batches may come from the host, and the functions are not for `jax.jit`.

`analyze(runs)` uses them on trained runs, as `zosam analyze` does.
"""

import importlib
from typing import TYPE_CHECKING, Any

from zosam_jax.analysis.errors import Errors as Errors
from zosam_jax.analysis.errors import LabelErrors as LabelErrors
from zosam_jax.analysis.errors import SegmentationErrors as SegmentationErrors
from zosam_jax.analysis.errors import ValueErrors as ValueErrors
from zosam_jax.analysis.errors import classification_errors as classification_errors
from zosam_jax.analysis.errors import label_errors as label_errors
from zosam_jax.analysis.errors import segmentation_errors as segmentation_errors
from zosam_jax.analysis.errors import value_errors as value_errors
from zosam_jax.analysis.hessian import Eigenpairs as Eigenpairs
from zosam_jax.analysis.hessian import SpectralDensity as SpectralDensity
from zosam_jax.analysis.hessian import Trace as Trace
from zosam_jax.analysis.hessian import hessian_eigenvalues as hessian_eigenvalues
from zosam_jax.analysis.hessian import hessian_trace as hessian_trace
from zosam_jax.analysis.hessian import spectral_density as spectral_density
from zosam_jax.analysis.landscape import Landscape as Landscape
from zosam_jax.analysis.landscape import Plane as Plane
from zosam_jax.analysis.landscape import loss_landscape as loss_landscape
from zosam_jax.analysis.landscape import plane_through as plane_through
from zosam_jax.analysis.landscape import random_direction as random_direction
from zosam_jax.analysis.landscape import roughness as roughness
from zosam_jax.analysis.masks import LayerDensity as LayerDensity
from zosam_jax.analysis.masks import Overlap as Overlap
from zosam_jax.analysis.masks import layer_densities as layer_densities
from zosam_jax.analysis.masks import mask_overlap as mask_overlap
from zosam_jax.analysis.masks import overlap_matrix as overlap_matrix
from zosam_jax.analysis.noise import GradientNoise as GradientNoise
from zosam_jax.analysis.noise import ZerothOrderError as ZerothOrderError
from zosam_jax.analysis.noise import expected_cosine as expected_cosine
from zosam_jax.analysis.noise import gradient_noise as gradient_noise
from zosam_jax.analysis.noise import zeroth_order_error as zeroth_order_error
from zosam_jax.analysis.sharpness import AverageSharpness as AverageSharpness
from zosam_jax.analysis.sharpness import WorstCaseSharpness as WorstCaseSharpness
from zosam_jax.analysis.sharpness import average_sharpness as average_sharpness
from zosam_jax.analysis.sharpness import worst_case_sharpness as worst_case_sharpness

if TYPE_CHECKING:
    from zosam_jax.analysis.of_runs import Progress as Progress
    from zosam_jax.analysis.of_runs import Settings as Settings
    from zosam_jax.analysis.of_runs import analyze as analyze


def __getattr__(name: str) -> Any:
    # They need Flax and Orbax, which the instruments do without.
    if name not in ("Progress", "Settings", "analyze"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("zosam_jax.analysis.of_runs"), name)
