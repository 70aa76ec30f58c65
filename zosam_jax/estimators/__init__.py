"""Estimators of a gradient, exact and zeroth-order, as pure functions.

Each is `(value_fn, params, ...) -> Estimate`; sharpness-aware methods look uphill with
them, and zeroth-order optimizers step along them.
"""

from zosam_jax.estimators._coordinates import cge as cge
from zosam_jax.estimators._guided import guided as guided
from zosam_jax.estimators._loss import Loss as Loss
from zosam_jax.estimators._loss import backprop as backprop
from zosam_jax.estimators._loss import check_function as check_function
from zosam_jax.estimators._loss import scalar_loss as scalar_loss
from zosam_jax.estimators._random import DISTRIBUTIONS as DISTRIBUTIONS
from zosam_jax.estimators._random import check_chunks as check_chunks
from zosam_jax.estimators._random import combine as combine
from zosam_jax.estimators._random import rge as rge
from zosam_jax.estimators._random import slopes as slopes
