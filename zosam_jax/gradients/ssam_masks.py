"""The mask of coordinates that SSAM perturbs, and how it changes."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from zosam_jax import tree
from zosam_jax.gradients import ascents
from zosam_jax.gradients.pieces import Ascent, Look, Point, wide, zeros
from zosam_jax.selection import select_across

Change = Callable[[Point, Look, Any, Any, jax.Array, jax.Array], Any]
"""`(point, look, mask, live, kept, steps so far) -> (mask, backward passes)`.

The mask is of `kept` live entries; the passes are counted in batches.
"""


def masked_gradient(interval: Any, sparsity: Any, change: Change) -> Ascent:
    """The gradient, and a mask that `change` makes anew every `interval` steps."""
    plain = ascents.gradient()

    def look(point: Point, memory: Any) -> Look:
        count, mask = memory
        seen = plain.look(point, ())
        live = jax.tree.map(lambda x: jnp.ones(x.shape, bool), point.params)
        live = tree.mask(live, point.support)
        left_out = jnp.round(sparsity * _count(live)).astype(jnp.int32)
        kept = _count(live) - left_out
        mask, passes = jax.lax.cond(
            count % interval == 0,
            lambda: point.vary(change(point, seen, mask, live, kept, count)),
            lambda: point.vary((mask, jnp.zeros((), jnp.float32))),
        )
        factor = jax.tree.map(lambda m: m.astype(jnp.float32), mask)
        memory = count + 1, mask
        return seen._replace(memory=memory, factor=factor, backward=passes)

    def init(params: Any) -> Any:
        mask = jax.tree.map(lambda x: jnp.zeros(jnp.shape(x), bool), params)
        return jnp.zeros((), jnp.int32), mask

    return Ascent(look, init)


def by_fisher(num_examples: int) -> Change:
    """SSAM-F: the coordinates of the largest squared gradients of single examples."""

    def change(
        point: Point, seen: Look, mask: Any, live: Any, kept: Any, count: Any
    ) -> Any:
        del seen, mask, count
        assert point.losses is not None
        losses_of = point.losses
        batch = point.examples
        if batch is None:
            shape = jax.eval_shape(
                lambda p: losses_of(p, "ascent", None)[0], point.params
            )
            batch = jnp.arange(shape.size)
        front = batch[:num_examples]

        def squares(n: jax.Array) -> Any:
            loss = lambda p: jnp.sum(losses_of(p, "ascent", n[None])[0])  # noqa: E731
            return jax.tree.map(jnp.square, wide(jax.grad(loss)(point.params)))

        def add(k: jax.Array, total: Any) -> Any:
            return jax.tree.map(jnp.add, total, squares(front[k]))

        fisher = jax.lax.fori_loop(0, front.size, add, point.vary(zeros(point.params)))
        share = jnp.float32(front.size / batch.size)
        return _highest(point.pool(fisher), live, kept), share

    return change


def by_replacement(total_steps: Any, drop_fraction: Any, grow: str) -> Change:
    """SSAM-D: drops what has the smallest gradient, grows others; starts at random."""

    def change(
        point: Point, seen: Look, mask: Any, live: Any, kept: Any, count: Any
    ) -> Any:
        drawn = tree.uniform_like(point.random(), point.params)
        size = jax.tree.map(jnp.abs, point.pool(seen.direction))
        # Sparse training may have pruned some of the mask, and grown weights beside it.
        held = jax.tree.map(jnp.logical_and, mask, live)
        done = jnp.minimum(point.step / total_steps, 1.0)
        share = drop_fraction * (1 + jnp.cos(jnp.pi * done)) / 2
        have, all_live = _count(held), _count(live)
        # What is dropped does not come back at once, so there must be others to grow.
        dropped = jnp.round(share * have).astype(jnp.int32)
        dropped = jnp.minimum(dropped, all_live - kept)
        stay = jnp.minimum(kept, have - dropped)
        free = jax.tree.map(lambda a, b: a & ~b, live, held)
        by = drawn
        if grow == "gradient":
            by = tree.where(count == 0, drawn, size)
        grown = _highest(by, free, kept - stay)
        mask = jax.tree.map(jnp.logical_or, _highest(size, held, stay), grown)
        return mask, jnp.zeros((), jnp.float32)

    return change


def _count(flags: Any) -> jax.Array:
    leaves = [jnp.sum(x, dtype=jnp.int32) for x in jax.tree.leaves(flags)]
    return jnp.sum(jnp.stack(leaves))


def _highest(scores: Any, candidates: Any, count: Any) -> Any:
    """The `count` highest scores among the candidates of all leaves, ties in order."""
    flags, treedef = jax.tree.flatten(candidates)
    return treedef.unflatten(select_across(jax.tree.leaves(scores), flags, count))
