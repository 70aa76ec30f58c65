"""ZO-SAM with all options, and its control; see `zosam_algorithm` for the algorithm."""

from collections.abc import Sequence
from typing import Unpack

import jax
import numpy as np

from zosam_jax import _check, _streams, estimators, tree, zosam_algorithm
from zosam_jax._options import passes_options_to
from zosam_jax._types import (
    Estimate,
    Key,
    Memory,
    Params,
    Radius,
    Scalar,
    SharedOptions,
    Step,
    ValueFn,
)
from zosam_jax.gradients import geometries
from zosam_jax.gradients.constructor import (
    PureOptions,
    pure_form,
    sharpness_aware,
    static_count,
)
from zosam_jax.gradients.pieces import (
    Ascent,
    Descent,
    Look,
    Point,
    Row,
    WrittenOut,
)
from zosam_jax.gradients.probes import Probes, coordinates, guided, random_directions
from zosam_jax.gradients.transformation import GradientEstimator


@passes_options_to(sharpness_aware)
def zosam(
    rho: Radius = 0.05,
    *,
    delta: Step | None = "auto",
    num_directions: int = 1,
    directions: str = "gaussian",
    two_sided: bool = True,
    chunk_size: int | None = None,
    every: int = 1,
    guides: Sequence[float] = (0.5, 0.9),
    exploration: Scalar = 0.0,
    disjoint: bool = False,
    layerwise: bool = False,
    descent: str = "backprop",
    **options: Unpack[SharedOptions],
) -> GradientEstimator:
    r"""ZO-SAM: an ascent step by forward passes alone, then one backward pass.

    .. math::
      \hat g = \frac{1}{m} \sum_{i=1}^m
               \frac{L(w + \delta u_i) - L(w - \delta u_i)}{2 \delta} \, u_i, \quad
      \epsilon = \rho \, \hat g / |\hat g|, \quad g = \nabla L(w + \epsilon)

    arXiv:2603.13115; `zosam_jax/zosam_algorithm.py` is the published method on one
    page. It ignores the incoming gradient: `updates` may be None, zeros or any
    gradient. In front of `sparsify` in a chain it does not know the masks: use
    `gradient=` of `sparsify`, or pass `masks=`.

    `value` is the mean of the two-sided probes, L(w) + O(delta^2), or L(w) if they are
    one-sided. It is the loss of the second pass in a step without probes, or if the
    direction is zero or not finite.

    Args:
      rho: Radius, or a schedule of it over the number of estimates; inside `sparsify`,
        over optimizer steps.
      delta: Step of the finite difference, > 0, per unit of u. "auto": 0.001 in
        float32, 0.04 in bfloat16; see `zs.estimators.difference_step`. None: the exact
        directional derivative by `jax.jvp`, three forward passes a direction.
      num_directions: m, the number of directions that are averaged. For "guided", at
        most the number of guides.
      directions: "gaussian", "sphere" or "rademacher", drawn anew in every step;
        "coordinates", all d of them (CGE: the exact gradient at d times the cost); or
        "guided", within the span of running means of past gradients (beyond the paper,
        after guided evolution strategies, arXiv:1806.10230). "guided" takes
        as many passes and keeps one float32 vector of all weights for each guide.
      two_sided: Central differences, 2m forward passes; else m + 1.
      chunk_size: None evaluates one probe after another. k evaluates the probes of k
        directions in one `jax.vmap`; on a CPU that is slower for convolutions.
      every: k: probe in every k-th estimate and reuse the coefficients in between.
      guides: Decays of the running means of past gradients that span the subspace. Each
        step measures `num_directions` slopes in turn and reuses the others, times the
        cosine by which their guides have turned.
      exploration: Fraction of a random direction in each guide, in [0, 1]. It costs
        alignment: 2.5 % of the cosine at 0.05.
      disjoint: Measure the slopes along all guides in each step with probes, each on
        its own part of the batch, for the 2 passes of `num_directions=1`. None is
        reused. `value_fn` is called as with microbatches.
      layerwise: Perturb every leaf l by `rho (|w_l| / |w|) g_l / |g_l|`.
      descent: "backprop", or "zeroth_order" for a step without a backward pass, which
        takes 2m (one-sided m + 1) more forward passes; its gradient is zero off the
        mask.

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
    _check.flags(two_sided=two_sided, layerwise=layerwise, disjoint=disjoint)
    probes = Probes(delta, num_directions, directions, two_sided, chunk_size)
    _check_probes(probes, every, descent)
    if disjoint and (directions != "guided" or num_directions != 1):
        raise ValueError(
            'disjoint=True measures the slopes along all guides: directions="guided" '
            "and num_directions=1, its default."
        )
    if disjoint and options.get("aux_from") == "ascent":
        raise ValueError(
            'disjoint=True: aux_from="ascent" would be of a part of the batch. Say '
            'aux_from="descent".'
        )
    _check.number("exploration", exploration, least=0, most=1)
    written_out = None
    is_published = every == 1 and descent == "backprop" and not layerwise
    if is_published and directions == "gaussian" and delta is not None:
        written_out = published(probes, delta)
    row = Row(
        _ascent(probes, every, guides, exploration, disjoint),
        geometries.l2(layerwise),
        Descent() if descent == "backprop" else without_backward_pass(probes),
        written_out=written_out,
    )
    return sharpness_aware("zosam", row, rho, **options)


@pure_form(zosam)
def zosam_gradient(
    value_fn: ValueFn,
    params: Params,
    key: Key | None = None,
    rho: Radius = 0.05,
    *,
    delta: Step | None = "auto",
    num_directions: int = 1,
    directions: str = "gaussian",
    two_sided: bool = True,
    chunk_size: int | None = None,
    every: int = 1,
    guides: Sequence[float] = (0.5, 0.9),
    exploration: Scalar = 0.0,
    disjoint: bool = False,
    layerwise: bool = False,
    descent: str = "backprop",
    **options: Unpack[PureOptions],
) -> Estimate:
    """Returns ZO-SAM's gradient as a pure function; see `zosam`.

    Example:
      >>> import jax, jax.numpy as jnp, zosam_jax as zs
      >>> w = jnp.array([3.0, 4.0])
      >>> found = zs.zosam_gradient(lambda w: w @ w, w, jax.random.key(0), 0.05)
      >>> print(found.info.forward_evaluations, found.info.backward_evaluations)
      2.0 1.0
    """
    ...


def published(probes: Probes, delta: Step) -> WrittenOut:
    """Returns the gradient by `zosam_algorithm.published_gradient`."""

    def gradient(
        point: Point, radius: Scalar, norm_over: str, aux_from: str
    ) -> Estimate:
        return zosam_algorithm.published_gradient(
            point.losses.descent,
            point.params,
            point.random(),
            rho=radius,
            delta=delta,
            num_directions=probes.num_directions,
            two_sided=probes.two_sided,
            chunk_size=probes.chunk_size,
            masks=point.masks,
            aux_from=aux_from,
            norm_over=norm_over,
        )

    return gradient


def without_backward_pass(probes: Probes) -> Descent:
    """Returns the descent by random gradient estimation at the perturbed point."""

    def descend(point: Point, look: Look, params: Params) -> Estimate:
        del look
        # New directions, different from those of the ascent.
        key = jax.random.fold_in(point.random(), _streams.DESCENT)
        seen, _ = estimators.rge(
            point.losses.descent,
            params,
            key,
            delta=probes.delta,
            num_directions=probes.num_directions,
            two_sided=probes.two_sided,
            distribution=probes.directions,
            masks=point.masks,
        )
        grad = jax.tree.map(lambda g, w: g.astype(w.dtype), seen.grad, params)
        info = seen.info._replace(descent_value=seen.value)
        return seen._replace(grad=grad, info=info)

    return Descent(descend, dense=False)


def _ascent(
    probes: Probes,
    every: int,
    guides: Sequence[float],
    exploration: Scalar,
    disjoint: bool,
) -> Ascent:
    """The ascent that `directions` names."""
    if probes.directions in estimators.DISTRIBUTIONS:
        return random_directions(probes, every)
    delta = probes.delta
    if delta is None:
        raise ValueError(
            "delta=None, the exact derivative, goes with random directions and without "
            "chunk_size. Give a number."
        )
    if probes.directions == "coordinates":
        return coordinates(probes, delta)
    decays = tuple(float(decay) for decay in np.atleast_1d(guides))
    for decay in decays:
        _check.number("guides", decay, least=0, below=1)
    if not decays or len(set(decays)) < len(decays):
        raise ValueError(f"guides={guides!r} must be one or more different decays.")
    if probes.num_directions > len(decays):
        raise ValueError(
            f"num_directions={probes.num_directions} is more than the {len(decays)} "
            "guides: there is nothing else to measure."
        )
    if disjoint:
        probes = probes._replace(num_directions=len(decays))
    return guided(probes, delta, decays, exploration, every, disjoint)


def _check_probes(probes: Probes, every: int, descent: str) -> None:
    """Raises `ValueError` for options that are out of range or do not go together."""
    known = (*estimators.DISTRIBUTIONS, "coordinates", "guided")
    _check.one_of("directions", probes.directions, known)
    _check.one_of("descent", descent, ("backprop", "zeroth_order"))
    estimators.check_step(probes.delta)
    estimators.check_chunks(probes.num_directions, probes.chunk_size)
    static_count("every", every)
    is_guided = probes.directions == "guided"
    if every > 1 or is_guided:
        static_count("num_directions", probes.num_directions)
    if probes.delta is None and probes.chunk_size is not None:
        raise ValueError(
            "delta=None, the exact derivative, goes with random directions and without "
            "chunk_size. Give a number."
        )
    if every > 1 and probes.chunk_size is not None:
        raise ValueError(f"every={every} probes one after another: no chunk_size.")
    if probes.directions == "coordinates" and every != 1:
        raise ValueError('directions="coordinates" needs every=1.')
    if is_guided and (probes.chunk_size is not None or not probes.two_sided):
        raise ValueError(
            'directions="guided" is two-sided and evaluates one probe after another.'
        )
    if descent == "zeroth_order" and probes.directions not in estimators.DISTRIBUTIONS:
        raise ValueError(
            'descent="zeroth_order" draws at random: '
            f"directions={probes.directions!r} must be one of "
            f"{', '.join(estimators.DISTRIBUTIONS)}."
        )


@passes_options_to(sharpness_aware)
def random_sign(
    rho: Radius = 0.05, **options: Unpack[SharedOptions]
) -> GradientEstimator:
    r"""A random direction with a random sign: ZO-SAM without its probes.

    .. math::
      \epsilon = \rho \, u / |u|, \quad u \sim N(0, I)

    A control for the probes of ZO-SAM at m = 1: it has the same direction and radius,
    but takes one pass of each kind. `value` is the loss at w + eps.

    Randomized sharpness-aware training, RST (arXiv:2203.09962), is another method:
    `zs.randomly(zs.sam(...), probability)`.

    Args:
      rho: Radius, or a schedule.

    Returns:
      As `sam`.
    """
    return sharpness_aware("random_sign", Row(unprobed()), rho, **options)


@pure_form(random_sign)
def random_sign_gradient(
    value_fn: ValueFn,
    params: Params,
    key: Key | None = None,
    rho: Radius = 0.05,
    **options: Unpack[PureOptions],
) -> Estimate:
    """Returns the gradient of `random_sign` as a pure function."""
    ...


def unprobed() -> Ascent[Look]:
    """Returns the direction that ZO-SAM probes first, without its sign."""

    def look(point: Point, memory: Memory) -> Look:
        key = jax.random.fold_in(point.random(), 0)
        return Look(tree.normal_like(key, point.params), memory=memory)

    return Ascent(look, Look)
