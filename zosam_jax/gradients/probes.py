"""Ascents by forward passes alone: ZO-SAM's, and variants beyond the paper."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from zosam_jax import estimators
from zosam_jax._types import Estimate, Grads, Info, Key, Memory, Params, Scalar, Step
from zosam_jax.gradients.memory import wide
from zosam_jax.gradients.pieces import Ascent, LossLook, OccasionalLook, Point


class Probes(NamedTuple):
    """The options of the probes; see `zosam`."""

    delta: Step | None
    num_directions: int
    directions: str
    two_sided: bool
    chunk_size: int | None = None

    def along_random(self) -> dict[str, Any]:
        """Returns the keyword arguments of `estimators.slopes`."""
        return {
            "delta": self.delta,
            "num_directions": self.num_directions,
            "two_sided": self.two_sided,
            "distribution": self.directions,
        }


def coordinates(probes: Probes, delta: Step) -> Ascent[LossLook]:
    """Returns CGE: finite differences along every live coordinate."""

    def look(point: Point, memory: Memory) -> LossLook:
        seen = estimators.cge(
            point.losses.ascent,
            point.params,
            delta=delta,
            two_sided=probes.two_sided,
            masks=point.support,
        )
        return LossLook(seen.grad, seen, memory=memory)

    return Ascent(look, LossLook)


def random_directions(
    probes: Probes, every: int
) -> Ascent[LossLook] | Ascent[OccasionalLook]:
    """Returns RGE, the ascent of ZO-SAM; with `every` = k it probes every k steps."""
    if every > 1:
        return _reused_directions(probes, every)

    def look(point: Point, memory: Memory) -> LossLook:
        seen, direction = estimators.rge(
            point.losses.ascent,
            point.params,
            point.random(),
            chunk_size=probes.chunk_size,
            masks=point.support,
            **probes.along_random(),
        )
        return LossLook(direction, seen, memory=memory)

    return Ascent(look, LossLook)


def _reused_directions(probes: Probes, every: int) -> Ascent[OccasionalLook]:
    """RGE that reuses its coefficients in the steps between the probes.

    Those steps draw the same directions again from the key of the last probes, so only
    m numbers and a key are kept.
    """

    def init(params: Params) -> Memory:
        del params
        count = jnp.zeros((), jnp.int32)
        coefficients = jnp.zeros(probes.num_directions, jnp.float32)
        return count, jax.random.key_data(jax.random.key(0)), coefficients

    def look(point: Point, memory: Memory) -> OccasionalLook:
        count, data, coefficients = memory
        key = _of_default_implementation(point.random())

        def probe() -> tuple[jax.Array, ...]:
            c, seen = estimators.slopes(
                point.losses.ascent,
                point.params,
                key,
                masks=point.support,
                **probes.along_random(),
            )
            # The key stands for the directions: drawing them again costs less memory
            # than m copies of the parameters. The state holds its raw data, which
            # checkpoints can store.
            data = jax.random.key_data(key)
            value = seen.value.astype(jnp.float32)
            return data, c.astype(jnp.float32), value, seen.info.forward_evaluations

        def reuse() -> tuple[jax.Array, ...]:
            nothing = jnp.zeros((), jnp.float32)
            return data, coefficients, nothing, nothing

        # Both branches of `lax.cond` need one type. Inside `jax.shard_map` the probes
        # vary over the devices, so the reused values must as well.
        due, vary = count % every == 0, point.devices.vary
        data, coefficients, value, forward = jax.lax.cond(
            due, lambda: vary(probe()), lambda: vary(reuse())
        )
        direction = estimators.combine(
            jax.random.wrap_key_data(data),
            coefficients,
            point.params,
            point.support,
            probes.directions,
        )
        memory = count + 1, data, coefficients
        return OccasionalLook(direction, _passes(value, forward), due, memory=memory)

    one_part = (
        f"every={every} remembers the coefficients of one set of directions, and "
        "microbatches={microbatches} draw one each. Say every=1."
    )
    return Ascent(look, OccasionalLook, init, one_part=one_part)


def _of_default_implementation(key: Key) -> Key:
    """The key, or one drawn from it whose data alone makes it known."""
    default = jax.random.key(0)
    if jax.random.key_impl(key) == jax.random.key_impl(default):
        return key
    shape = jax.random.key_data(default).shape
    return jax.random.wrap_key_data(jax.random.bits(key, shape, jnp.uint32))


def _passes(value: jax.Array, forward: jax.Array) -> Estimate:
    """The estimate of forward passes: their loss and their number, no aux."""
    info = Info.zeros()._replace(forward_evaluations=forward)
    return Estimate(value, None, None, info)


def guided(
    probes: Probes,
    delta: Step,
    decays: tuple[float, ...],
    exploration: Scalar,
    every: int,
    disjoint: bool = False,
) -> Ascent[LossLook] | Ascent[OccasionalLook]:
    """Returns guided ZO-SAM: the span of running means of the perturbed gradients.

    Args:
      probes: Options of the probes; `num_directions` slopes are measured in a step.
      delta: Step of the finite difference per coordinate, > 0, or "auto".
      decays: Decays of the running means, in [0, 1); one guide for each.
      exploration: Fraction of a random direction in each guide, in [0, 1].
      every: Interval of the steps with probes, in estimates.
      disjoint: Whether each slope is measured on its own part of the batch.
    """

    def init(params: Params) -> Memory:
        # Copies of an array have its sharding, which a shape does not have.
        means = jax.tree.map(
            lambda w: jnp.stack([jnp.zeros_like(w, jnp.float32)] * len(decays)), params
        )
        slopes = jnp.zeros(len(decays), jnp.float32)
        return means, slopes, jnp.zeros((), jnp.int32)

    def project(point: Point, memory: Memory, m: int) -> tuple[Estimate, jax.Array]:
        means, slopes, count = memory
        apart = disjoint and m > 0
        return estimators.guided(
            point.losses.ascent_parts(m) if apart else point.losses.ascent,
            point.params,
            point.random(),
            means,
            slopes,
            # Only steps with probes take a turn.
            count // every,
            delta=delta,
            num_directions=m,
            exploration=exploration,
            masks=point.support,
        )

    def look(point: Point, memory: Memory) -> LossLook:
        means, _, count = memory
        seen, slopes = project(point, memory, probes.num_directions)
        return LossLook(seen.grad, seen, memory=(means, slopes, count + 1))

    def look_if_due(point: Point, memory: Memory) -> OccasionalLook:
        means, _, count = memory

        def result(m: int) -> tuple[Grads, jax.Array, jax.Array, jax.Array]:
            seen, slopes = project(point, memory, m)
            value = seen.value.astype(jnp.float32)
            # Without directions nothing varies over the devices; with them it does.
            return point.devices.vary(
                (seen.grad, slopes, value, seen.info.forward_evaluations)
            )

        due = count % every == 0
        grad, slopes, value, forward = jax.lax.cond(
            due, lambda: result(probes.num_directions), lambda: result(0)
        )
        memory = means, slopes, count + 1
        return OccasionalLook(grad, _passes(value, forward), due, memory=memory)

    def learn(point: Point, memory: Memory, grad: Grads) -> Memory:
        means, slopes, count = memory

        def mean(old: jax.Array, g: jax.Array) -> jax.Array:
            decay = jnp.asarray(decays, jnp.float32).reshape(-1, *[1] * g.ndim)
            return decay * old + (1 - decay) * g

        new = jax.tree.map(mean, means, wide(grad))
        return new, estimators.aged(slopes, means, new, point.support), count

    if every > 1:
        return Ascent(look_if_due, OccasionalLook, init, learn, by_example=disjoint)
    return Ascent(look, LossLook, init, learn, by_example=disjoint)
