"""Estimators of a gradient, exact and zeroth-order, as pure functions.

Each is `(value_fn, params, ...) -> Estimate`. Sharpness-aware methods use them for the
ascent step, and zeroth-order optimizers step along them.
"""

from zosam_jax.estimators.cge_coordinates import cge as cge
from zosam_jax.estimators.guided_directions import aged as aged
from zosam_jax.estimators.guided_directions import guided as guided
from zosam_jax.estimators.losses import Loss as Loss
from zosam_jax.estimators.losses import backprop as backprop
from zosam_jax.estimators.losses import check_function as check_function
from zosam_jax.estimators.losses import check_step as check_step
from zosam_jax.estimators.losses import difference_step as difference_step
from zosam_jax.estimators.losses import in_float32 as in_float32
from zosam_jax.estimators.losses import scalar_loss as scalar_loss
from zosam_jax.estimators.redrawn_directions import redrawn as redrawn
from zosam_jax.estimators.rge_random_directions import DISTRIBUTIONS as DISTRIBUTIONS
from zosam_jax.estimators.rge_random_directions import check_chunks as check_chunks
from zosam_jax.estimators.rge_random_directions import combine as combine
from zosam_jax.estimators.rge_random_directions import rge as rge
from zosam_jax.estimators.rge_random_directions import slopes as slopes
