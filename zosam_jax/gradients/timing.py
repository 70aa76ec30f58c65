r"""Which steps a sharpness-aware gradient perturbs; the others take the plain gradient.

.. math::
  g_t = \nabla L(w_t + \epsilon_t) \;\text{if step } t \text{ is due, else }\;
  \nabla L(w_t)

Each function takes a gradient and returns the same gradient with fewer perturbed steps,
so they nest: `late(every(sam(), 2), 100)`. A plain step costs one backward pass.
`info.perturbation_norm` is 0 in it, and `info.backward_evaluations` is 1. The memory of
the method learns from its gradient, and is kept otherwise.
"""

import jax
import jax.numpy as jnp

from zosam_jax import _check, _streams
from zosam_jax._options import checks_arguments
from zosam_jax._types import Predicate, Scalar, Schedule, Seed
from zosam_jax.gradients.transformation import GradientEstimator


@checks_arguments
def when(gradient: GradientEstimator, predicate: Predicate) -> GradientEstimator:
    """Returns the gradient, perturbed only in the steps that a predicate selects.

    Args:
      gradient: A sharpness-aware gradient, such as `zs.sam(rho=0.05)`.
      predicate: Optimizer step, int32 scalar, -> bool scalar. Where the gradient has a
        predicate already, both must hold.

    Raises:
      ValueError: The gradient perturbs nothing, as `backprop` and `zeroth_order`.
      TypeError: The predicate is no function.

    Example:
      >>> import jax.numpy as jnp, optax, zosam_jax as zs
      >>> gradient = zs.when(zs.sam(rho=0.5), lambda step: step % 2 == 1)
      >>> w = jnp.array([3.0, 4.0])
      >>> for step in range(2):
      ...     print(gradient.gradient(lambda w: w @ w, w, step=step).grad)
      [6. 8.]
      [6.6 8.8]
    """
    is_estimator = isinstance(gradient, GradientEstimator)
    if not is_estimator or not gradient.takes("when"):
        name = f"zs.{gradient.name}" if is_estimator else type(gradient).__name__
        raise ValueError(
            f"{name} has no perturbation to leave out. Take a sharpness-aware "
            "gradient, such as zs.sam(rho=0.05), and chain an optimizer behind it."
        )
    if not callable(predicate):
        raise TypeError(
            f"predicate={predicate!r} must be a function of the optimizer step, as "
            "lambda step: step >= 100."
        )
    _check.callable_as("predicate", predicate, "(step) -> bool")
    before = gradient.when
    if before is None:
        return gradient.with_options(when=predicate)

    def both(step: jax.Array) -> jax.Array:
        return jnp.logical_and(before(step), predicate(step))

    return gradient.with_options(when=both)


@checks_arguments
def late(gradient: GradientEstimator, start: Scalar) -> GradientEstimator:
    """Returns the gradient, perturbed from an optimizer step on.

    Perturbations in the last part of a training alone can be as good as in all of it
    (Zhou et al., arXiv:2410.10373).

    Args:
      gradient: A sharpness-aware gradient.
      start: First perturbed step, >= 0; for the last quarter, `0.75 * total_steps`.

    Raises:
      ValueError: `start` is negative, or the gradient perturbs nothing.

    Example:
      >>> import jax.numpy as jnp, zosam_jax as zs
      >>> gradient = zs.late(zs.sam(rho=0.5), start=100)
      >>> w = jnp.array([3.0, 4.0])
      >>> for step in (99, 100):
      ...     print(gradient.gradient(lambda w: w @ w, w, step=step).grad)
      [6. 8.]
      [6.6 8.8]
    """
    _check.number("start", start, least=0)
    if not _check.is_traced(start) and 0 < start < 1:
        raise ValueError(
            f"start={start} must be a step, not a fraction of the training: for the "
            "last quarter, say 0.75 * total_steps."
        )
    return when(gradient, lambda step: step >= start)


@checks_arguments
def every(gradient: GradientEstimator, interval: int) -> GradientEstimator:
    """Returns the gradient, perturbed in every k-th optimizer step, the first included.

    Args:
      gradient: A sharpness-aware gradient.
      interval: k, a positive integer.

    Raises:
      ValueError: `interval` is no positive integer, or the gradient perturbs nothing.

    Example:
      >>> import jax.numpy as jnp, zosam_jax as zs
      >>> gradient = zs.every(zs.sam(rho=0.5), 2)
      >>> w = jnp.array([3.0, 4.0])
      >>> for step in (0, 1):
      ...     print(gradient.gradient(lambda w: w @ w, w, step=step).grad)
      [6.6 8.8]
      [6. 8.]
    """
    _check.whole("interval", interval)
    return when(gradient, lambda step: step % interval == 0)


@checks_arguments
def randomly(
    gradient: GradientEstimator, probability: Scalar | Schedule, *, seed: Seed = 0
) -> GradientEstimator:
    """Returns the gradient, perturbed in each step with a probability.

    With SAM this is randomized sharpness-aware training, RST (Zhao et al.,
    arXiv:2203.09962, algorithm 1).

    Args:
      gradient: A sharpness-aware gradient.
      probability: Probability of a perturbed step, in [0, 1], or a schedule of it over
        optimizer steps.
      seed: Integer >= 0, which may be traced. The draw of a step depends on the seed
        and the step alone, so a resumed run repeats it.

    Raises:
      ValueError: An argument is out of range, or the gradient perturbs nothing.
    """
    if callable(probability):
        _check.callable_as("probability", probability, "(step) -> probability")
    else:
        _check.number("probability", probability, least=0, most=1)
    _check.whole("seed", seed, least=0)

    def drawn(step: jax.Array) -> jax.Array:
        share = probability(step) if callable(probability) else probability
        # A stream of its own: the gradient may have the same seed.
        key = jax.random.fold_in(jax.random.key(seed), step)
        return jax.random.bernoulli(jax.random.fold_in(key, _streams.TIMING), share)

    return when(gradient, drawn)
