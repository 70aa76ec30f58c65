"""ZO-SAM in general, and its control."""

from collections.abc import Sequence
from typing import Any, Unpack

import numpy as np

from zosam_jax import _check
from zosam_jax._types import Radius, Scalar
from zosam_jax.estimators import DISTRIBUTIONS, check_chunks
from zosam_jax.gradients import ascents, descents, geometries
from zosam_jax.gradients.composition import Row
from zosam_jax.gradients.pieces import Ascent
from zosam_jax.gradients.shared_options import Options, fixed, method
from zosam_jax.gradients.sharpness_aware import pure, transform
from zosam_jax.gradients.transformation import GradientEstimator


@method
def zosam(
    rho: Radius = 0.05,
    *,
    delta: Scalar | None = 1e-3,
    num_directions: int = 1,
    directions: str = "gaussian",
    two_sided: bool = True,
    chunk_size: int | None = None,
    every: int = 1,
    guides: Sequence[float] = (0.5, 0.9),
    exploration: Scalar = 0.05,
    layerwise: bool = False,
    descent: str = "backprop",
    **options: Unpack[Options],
) -> GradientEstimator:
    r"""ZO-SAM: looks uphill with forward passes alone; one backward pass.

    .. math::
      \hat g = \frac{1}{m} \sum_{i=1}^m
               \frac{L(w + \delta u_i) - L(w - \delta u_i)}{2 \delta} \, u_i, \quad
      \epsilon = \rho \, \hat g / |\hat g|, \quad g = \nabla L(w + \epsilon)

    arXiv:2603.13115; `zs.zosam_gradient` is the published method on one page. Needs no
    incoming gradient: `updates` may be None, zeros or any gradient, and is unused. In
    front of `sparsify` in a chain it knows no masks; say `gradient=`, or pass `masks=`.

    `value` is the mean of the two-sided probes, L(w) + O(delta^2); L(w) when one-sided;
    the loss at w + eps in a step without probes, or where the direction is useless.

    Args:
      rho: Radius, or a schedule of it over the estimates made; inside `sparsify`, over
        optimizer steps.
      delta: Step of the finite difference, > 0, per unit of u. None: the exact
        directional derivative by `jax.jvp`, three forward passes a direction.
      num_directions: m, the directions that are averaged; for "guided" at most the
        number of guides.
      directions: "gaussian", "sphere" or "rademacher", drawn anew in every step;
        "coordinates", all d of them (CGE: the exact gradient at d times the price); or
        "guided": within the span of what training already holds, its own past gradients
        (beyond the paper, after guided evolution strategies, arXiv:1806.10230). Guided
        costs the same passes, and for each guide one float32 vector of all weights.
      two_sided: Central differences, 2m forward passes; else forward ones, m + 1.
      chunk_size: None: one probe after another. k: the probes of k directions in one
        `jax.vmap`. On a CPU a vmapped convolution costs several sequential ones.
      every: k: probe in every k-th estimate, and use the coefficients again between.
      guides: Decays of the running means of past gradients that span the subspace. Each
        step measures `num_directions` slopes in turn and remembers the others.
      exploration: Share of a random direction in each guide, in [0, 1].
      layerwise: Perturb every leaf l by `rho (|w_l| / |w|) g_l / |g_l|`.
      descent: "backprop", or "zeroth_order" for a step without any backward pass, by
        2m (m + 1) more forward ones; its gradient is zero off the mask.

    Returns:
      As `sam`.

    Example:
      >>> import jax, jax.numpy as jnp, optax, zosam_jax as zs
      >>> loss = lambda w: jnp.sum((w - 3.0) ** 2)
      >>> tx = optax.chain(zs.zosam(rho=0.05), optax.sgd(0.1))
      >>> params = jnp.zeros(2)
      >>> state = tx.init(params)
      >>> for _ in range(3):
      ...     updates, state = tx.update(None, state, params, value_fn=loss)
      ...     params = optax.apply_updates(params, updates)
      ...     print(f"{zs.estimate(state).value:.1f}")
      18.0
      11.5
      7.3
    """
    known = (*DISTRIBUTIONS, "coordinates", "guided")
    _check.one_of("directions", directions, known)
    _check.one_of("descent", descent, ("backprop", "zeroth_order"))
    if delta is not None:
        _check.number("delta", delta, above=0)
    check_chunks(num_directions, chunk_size)
    fixed("every", every)
    if every > 1 or directions == "guided":
        fixed("num_directions", num_directions)
    _check.number("exploration", exploration, least=0, most=1)
    parts = options.get("microbatches", 1)
    if every > 1 and parts > 1 and directions in DISTRIBUTIONS:
        raise ValueError(
            f"every={every} remembers the coefficients of one set of directions, and "
            f"microbatches={parts} draw one each. Say every=1."
        )
    if delta is None and (chunk_size is not None or directions == "guided"):
        raise ValueError(
            "delta=None, the exact derivative, goes with random directions and without "
            "chunk_size. Give a number."
        )
    if every > 1 and chunk_size is not None:
        raise ValueError(f"every={every} probes one after another: no chunk_size.")
    ascent = _ascent(
        directions,
        delta,
        num_directions,
        two_sided,
        chunk_size,
        every,
        guides,
        exploration,
    )
    second = descents.backprop
    if descent == "zeroth_order":
        if directions not in DISTRIBUTIONS:
            raise ValueError(
                f'descent="zeroth_order" draws at random: directions={directions!r} '
                f"must be one of {', '.join(DISTRIBUTIONS)}."
            )
        second = descents.zeroth_order(
            delta=delta,
            num_directions=num_directions,
            two_sided=two_sided,
            distribution=directions,
        )
    row = Row(
        ascent,
        geometries.l2(layerwise),
        second,
        aux_from="descent",
        looks=every == 1,
        dense=descent == "backprop",
    )
    return transform("zosam", row, rho, options)


def _ascent(
    directions: str,
    delta: Any,
    num_directions: int,
    two_sided: bool,
    chunk_size: int | None,
    every: int,
    guides: Sequence[float],
    exploration: Any,
) -> Ascent:
    if directions == "coordinates":
        if every != 1 or delta is None:
            raise ValueError('directions="coordinates" needs every=1 and a delta.')
        return ascents.coordinates(delta, two_sided)
    if directions != "guided":
        return ascents.random_directions(
            every=every,
            chunk_size=chunk_size,
            delta=delta,
            num_directions=num_directions,
            two_sided=two_sided,
            distribution=directions,
        )
    decays = tuple(float(decay) for decay in np.atleast_1d(guides))
    for decay in decays:
        _check.number("guides", decay, least=0, below=1)
    if not decays or len(set(decays)) < len(decays):
        raise ValueError(f"guides={guides!r} must be one or more different decays.")
    if num_directions > len(decays):
        raise ValueError(
            f"num_directions={num_directions} is more than the {len(decays)} guides: "
            "there is nothing else to measure."
        )
    if chunk_size is not None or not two_sided:
        raise ValueError(
            'directions="guided" is two-sided and evaluates one probe after another.'
        )
    return ascents.guided(
        decays,
        delta=delta,
        num_directions=num_directions,
        exploration=exploration,
        every=every,
    )


@method
def rst(rho: Radius = 0.05, **options: Unpack[Options]) -> GradientEstimator:
    r"""A random direction, whose sign is random too: ZO-SAM without its probes.

    .. math::
      \epsilon = \rho \, u / |u|, \quad u \sim N(0, I)

    The control that tells whether the probes of ZO-SAM at m = 1 do anything; the same
    direction, the same radius, one pass. `value` is the loss at w + eps.

    Args:
      rho: Radius, or a schedule.

    Returns:
      As `sam`.
    """
    row = Row(ascents.random_sign(), aux_from="descent", looks=False)
    return transform("rst", row, rho, options)


rst_gradient = pure(rst)
