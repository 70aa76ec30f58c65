"""The pieces of the sharpness-aware gradients, to build your own.

A gradient is a `Row` of an ascent, a geometry, a descent and a combination, and
`sharpness_aware` makes an Optax transformation of it. Each method of the library is a
file in `methods/` and an entry of the table `registry.METHODS`.
"""

from zosam_jax.gradients import ascents as ascents
from zosam_jax.gradients import combinations as combinations
from zosam_jax.gradients import geometries as geometries
from zosam_jax.gradients import timing as timing
from zosam_jax.gradients.constructor import PureOptions as PureOptions
from zosam_jax.gradients.constructor import pure_form as pure_form
from zosam_jax.gradients.constructor import sharpness_aware as sharpness_aware
from zosam_jax.gradients.devices import Devices as Devices
from zosam_jax.gradients.pieces import Ascent as Ascent
from zosam_jax.gradients.pieces import Combination as Combination
from zosam_jax.gradients.pieces import Descent as Descent
from zosam_jax.gradients.pieces import ExampleLook as ExampleLook
from zosam_jax.gradients.pieces import Geometry as Geometry
from zosam_jax.gradients.pieces import GradientLook as GradientLook
from zosam_jax.gradients.pieces import Intermittent as Intermittent
from zosam_jax.gradients.pieces import Look as Look
from zosam_jax.gradients.pieces import Losses as Losses
from zosam_jax.gradients.pieces import LossLook as LossLook
from zosam_jax.gradients.pieces import OccasionalLook as OccasionalLook
from zosam_jax.gradients.pieces import Point as Point
from zosam_jax.gradients.pieces import Row as Row
from zosam_jax.gradients.pieces import exact_gradient as exact_gradient
from zosam_jax.gradients.registry import METHODS as METHODS
from zosam_jax.gradients.registry import GradientMethod as GradientMethod
