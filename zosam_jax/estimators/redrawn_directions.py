"""RGE that draws a direction again for each use of it, and so holds none."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from zosam_jax import _check, tree
from zosam_jax._programs import draw, once, parts, zero_after
from zosam_jax._types import (
    Aux,
    Estimate,
    Key,
    Masks,
    Params,
    Scalar,
    Step,
    ValueFn,
)
from zosam_jax.estimators.losses import difference_step, scalar_loss
from zosam_jax.estimators.rge_random_directions import DISTRIBUTIONS, info_of


def redrawn(
    value_fn: ValueFn,
    params: Params,
    key: Key,
    *,
    delta: Step = "auto",
    num_directions: int = 1,
    distribution: str = "gaussian",
    two_sided: bool = True,
    masks: Masks | None = None,
    has_aux: bool = False,
) -> Estimate:
    r"""Returns the estimate of `rge`, in less memory.

    `rge` holds a direction in float32 from the first evaluation of the loss to the
    result. Here it is drawn for each evaluation, and once more for the result: three
    draws in place of one, and four on the sphere. A leaf of more than 65,536 entries is
    drawn when the one before it is done, so that a compiled program can free each leaf
    of :math:`w \pm \delta u` once the loss has used it.

    Programs take longer to compile: every large leaf has three draws of its own. Layers
    that are stacked in one leaf, for `jax.lax.scan`, are one.

    MeZO (arXiv:2305.17333, algorithm 1) draws again too. It moves the parameters in
    place and back, which rounds them; here they stay as they are.

    Args:
      value_fn: `params -> loss`, or `params -> (loss, aux)` with `has_aux`.
      params: Pytree of floating point arrays, w.
      key: One PRNG key; directions are those of `rge`.
      delta: Step of the finite difference, > 0, or "auto"; see `difference_step`.
      num_directions: m.
      distribution: "gaussian", "sphere" or "rademacher".
      two_sided: Central or forward differences.
      masks: Mask tree: u is zero off the mask.
      has_aux: Whether `value_fn` returns `(loss, aux)`.

    Returns:
      The `Estimate` of `rge` up to rounding, but `grad` has the dtypes of `params`.
    """
    _check.trainable(params)
    loss = scalar_loss(value_fn, has_aux)
    step = difference_step(delta, loss, params)
    directions = _Directions(key, params, masks, distribution)
    clean = None if two_sided else loss(params)

    def coefficient(i: Scalar) -> tuple[jax.Array, jax.Array, Aux]:
        factor = directions.factor(i)
        up, aux = loss(directions.moved(i, step * factor, 0.0))
        if clean is not None:
            return factor * (up - clean[0]) / step, clean[0], clean[1]
        down, _ = loss(directions.moved(i, -step * factor, up))
        return factor * (up - down) / (2 * step), (up + down) / 2, aux

    coefficients, value, aux = _each(coefficient, num_directions)
    grad, norm = directions.combined(once(coefficients))
    evaluations = 2 * num_directions if two_sided else num_directions + 1
    info = info_of(evaluations, norm)
    return Estimate(value / num_directions, grad, aux, info)


def _each(
    coefficient: Callable[[Scalar], tuple[jax.Array, jax.Array, Aux]], m: int
) -> tuple[jax.Array, jax.Array, Aux]:
    """Returns the coefficients `[m]` of all i < m, the sum of the losses, and aux."""
    # The first direction supplies aux, and one direction compiles without a loop.
    c, value, aux = coefficient(0)
    found = jnp.zeros(m, c.dtype).at[0].set(c)

    def add(
        i: jax.Array, carry: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        found, total = carry
        c, more, _ = coefficient(i)
        return found.at[i].set(c), total + more

    if m > 1:
        found, value = jax.lax.fori_loop(1, m, add, (found, value))
    return found, value, aux


class _Directions:
    """Directions that are drawn where they are used.

    A part of the leaves is drawn when a number is known, which keeps XLA from drawing
    all of them at once.
    """

    def __init__(
        self, key: Key, params: Params, masks: Masks | None, distribution: str
    ):
        _check.key(key)
        self._key, self._params, self._masks = key, params, masks
        self._leaves, self._structure = jax.tree.flatten(params)
        self._shapes = [jnp.shape(x) for x in self._leaves]
        self._sampler, self._is_sphere = (
            DISTRIBUTIONS[distribution],
            distribution == "sphere",
        )

    def moved(self, i: Scalar, step: Scalar, after: Scalar) -> Params:
        """Returns w plus `step` times the entries of direction i, after a number."""

        def use(members: list[int], zero: jax.Array) -> list[jax.Array]:
            u = self._masked(self._drawn(i, members, zero), members)
            return tree.add_scaled([self._leaves[j] for j in members], step, u)

        return self._structure.unflatten(self._in_turn(use, after))

    def combined(self, coefficients: jax.Array) -> tuple[Params, jax.Array]:
        """Returns the mean of coefficients times entries, like w, and its norm."""
        m, norms = len(coefficients), list[jax.Array]()

        def scaled(i: Scalar, members: list[int], zero: jax.Array) -> list[jax.Array]:
            c = coefficients[i]
            return [c.astype(u.dtype) * u for u in self._drawn(i, members, zero)]

        def use(members: list[int], zero: jax.Array) -> list[jax.Array]:
            total = scaled(0, members, zero)
            if m > 1:
                total = jax.lax.fori_loop(
                    1,
                    m,
                    lambda i, x: jax.tree.map(jnp.add, x, scaled(i, members, zero)),
                    total,
                )
            mean = self._masked([x / m for x in total], members)
            # The norm of each part is taken while the part is there.
            norms.append(tree.norm(mean))
            pairs = zip(mean, members, strict=True)
            return [g.astype(self._leaves[j].dtype) for g, j in pairs]

        grad = self._structure.unflatten(self._in_turn(use, coefficients[-1]))
        return grad, tree.norm(norms)

    def factor(self, i: Scalar) -> jax.Array | float:
        """Returns what makes u_i of its entries: 1, or what puts it on the sphere."""
        if not self._is_sphere:
            return 1.0
        norms: list[jax.Array] = []

        def use(members: list[int], zero: jax.Array) -> list[jax.Array]:
            norms.append(
                tree.norm(self._masked(self._drawn(i, members, zero), members))
            )
            return [norms[-1]] * len(members)

        self._in_turn(use, 0.0)
        length = tree.norm(norms)
        live = tree.live_count(self._params, self._masks)
        return jnp.sqrt(live) / jnp.where(length > 0, length, 1)

    def _drawn(self, i: Scalar, members: list[int], zero: jax.Array) -> list[jax.Array]:
        """Returns the entries, normal or signs, of some leaves of direction i."""
        key = jax.random.fold_in(self._key, jnp.asarray(i, jnp.uint32) + zero)
        return draw(self._sampler, key, self._shapes, members)

    def _masked(self, x: list[jax.Array], members: list[int]) -> list[jax.Array]:
        """Returns leaves of a direction, zero off the mask."""
        if self._masks is None:
            return x
        masks = jax.tree.leaves(self._masks)
        return tree.mask(x, [masks[j] for j in members])

    def _in_turn(
        self, use: Callable[[list[int], jax.Array], list[jax.Array]], after: Scalar
    ) -> list[jax.Array]:
        """Returns an array for each leaf, part after part.

        Args:
          use: `(indices of leaves, zero) -> arrays`. The zero is known when those of
            the part before are.
          after: What the first part waits for.
        """
        done: dict[int, jax.Array] = {}
        for members in parts(self._shapes):
            arrays = use(members, zero_after(jnp.asarray(after)))
            done |= zip(members, arrays, strict=True)
            # Of an entry, JAX would not know in which part of a sharded leaf it lies.
            after = jnp.max(arrays[-1])
        return [done[j] for j in range(len(done))]
