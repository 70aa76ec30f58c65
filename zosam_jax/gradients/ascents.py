"""Ascents: where the methods look uphill, and what they remember for it."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from zosam_jax import estimators, tree
from zosam_jax.gradients.geometries import filter_norms
from zosam_jax.gradients.pieces import Ascent, Look, Point, average, exact, wide, zeros


def gradient() -> Ascent:
    """The exact gradient at w: SAM's."""
    return Ascent(lambda point, _: _looked(exact(point.ascent, point.params)))


def gradient_of_examples() -> Ascent:
    """The same, with the losses of the single examples: ESAM's first pass."""

    def look(point: Point, memory: Any) -> Look:
        del memory
        assert point.losses is not None
        losses_of = point.losses

        def loss(params: Any) -> tuple[jax.Array, Any]:
            losses, aux = losses_of(params, "ascent", point.examples)
            return jnp.mean(losses), (losses, aux)

        clean = exact(loss, point.params)
        losses, aux = clean.aux
        return _looked(clean._replace(aux=aux))._replace(losses=losses)

    return Ascent(look)


def _looked(clean: Any) -> Look:
    return Look(clean.grad, clean=clean, value=clean.value, aux=clean.aux)


def friendly(sigma: Any, decay: Any) -> Ascent:
    """F-SAM: `g_t - sigma m_{t-1}`, `m_t = decay m_{t-1} + (1 - decay) g_t`."""

    def look(point: Point, memory: Any) -> Look:
        mean, started = memory
        clean = exact(point.ascent, point.params)
        g = wide(clean.grad)
        # The first step has no mean yet: it perturbs along g, and the mean starts at g.
        direction = tree.where(started, tree.add_scaled(g, -sigma, mean), g)
        mean = tree.where(started, average(mean, decay, g), g)
        memory = mean, jnp.ones_like(started)
        return _looked(clean)._replace(direction=direction, memory=memory)

    return Ascent(look, lambda params: (zeros(params), jnp.zeros((), bool)))


def averaged(theta: Any) -> Ascent:
    """VaSSO: `d_t = (1 - theta) d_{t-1} + theta g_t`."""

    def look(point: Point, memory: Any) -> Look:
        clean = exact(point.ascent, point.params)
        mean = average(memory, 1 - theta, clean.grad)
        return _looked(clean)._replace(direction=mean, memory=mean)

    return Ascent(look, zeros)


def previous() -> Ascent:
    """S2-SAM: the gradient of the step before, taken at its perturbed point."""
    return Ascent(
        look=lambda _, memory: Look(memory, memory),
        init=zeros,
        learn=lambda _, __, grad: wide(grad),
    )


def momentum(decay: Any) -> Ascent:
    """MSAM: against the momentum, `v_t = decay v_{t-1} + g_t`, kept here."""
    return Ascent(
        look=lambda _, memory: Look(jax.tree.map(jnp.negative, memory), memory),
        init=zeros,
        learn=lambda _, memory, grad: tree.mix(decay, memory, 1.0, grad),
    )


def noise(*, clean: bool = False) -> Ascent:
    """RWP: Gaussian, of standard deviation `|w_f|` in every filter f.

    With `clean` there is a backward pass at w beside it, for mixing.
    """

    def look(point: Point, memory: Any) -> Look:
        drawn = _filter_noise(point, filter_norms(point.params))
        if not clean:
            return Look(drawn, memory)
        return _looked(exact(point.ascent, point.params))._replace(direction=drawn)

    return Ascent(look)


def adaptive_noise(eta: Any, beta: Any) -> Ascent:
    """ARWP: the same over `sqrt(1 + eta F_f)`, F_f the filter's decayed sum of g^2."""

    def look(point: Point, memory: Any) -> Look:
        scales = jax.tree.map(
            lambda n, f: n / jnp.sqrt(1 + eta * f), filter_norms(point.params), memory
        )
        return Look(_filter_noise(point, scales), memory)

    return Ascent(
        look,
        init=lambda params: jax.tree.map(jnp.zeros_like, filter_norms(params)),
        learn=lambda point, memory, grad: jax.tree.map(
            lambda f, n: beta * f + jnp.square(n),
            memory,
            filter_norms(tree.mask(grad, point.masks)),
        ),
    )


def _filter_noise(point: Point, scales: Any) -> Any:
    z = tree.normal_like(point.random(), point.params)
    return jax.tree.map(jnp.multiply, scales, z)


def partly(beta: Any, ascent: Ascent) -> Ascent:
    """ESAM's weight perturbation: each coordinate with probability beta, over beta."""

    def look(point: Point, memory: Any) -> Look:
        seen = ascent.look(point, memory)
        drawn = tree.uniform_like(point.random(), point.params)
        kept = jax.tree.map(lambda u: jnp.where(u < beta, 1 / beta, 0.0), drawn)
        return seen._replace(factor=kept)

    return Ascent(look, ascent.init, ascent.learn)


def random_sign() -> Ascent:
    """The direction that ZO-SAM probes first, without its sign: the control."""
    return Ascent(
        lambda point, _: Look(
            tree.normal_like(jax.random.fold_in(point.random(), 0), point.params)
        )
    )


def coordinates(delta: Any, two_sided: bool) -> Ascent:
    """CGE: finite differences along every live coordinate."""

    def look(point: Point, memory: Any) -> Look:
        del memory
        seen = estimators.cge(
            point.ascent,
            point.params,
            delta=delta,
            two_sided=two_sided,
            masks=point.support,
            has_aux=True,
        )
        forward = seen.info.forward_evaluations
        return Look(seen.grad, value=seen.value, aux=seen.aux, forward=forward)

    return Ascent(look)


def random_directions(*, every: int, chunk_size: int | None, **options: Any) -> Ascent:
    """RGE: ZO-SAM's; with `every` = k probes in every k-th step alone.

    Between them the directions are drawn anew from the key of the last probes, and
    their coefficients used again: m numbers and a key are all that is remembered.
    """

    def measure(point: Point, memory: Any) -> Look:
        seen, direction = estimators.rge(
            point.ascent,
            point.params,
            point.random(),
            chunk_size=chunk_size,
            masks=point.support,
            has_aux=True,
            **options,
        )
        return Look(
            direction,
            memory,
            value=seen.value,
            aux=seen.aux,
            forward=seen.info.forward_evaluations,
        )

    if every == 1:
        return Ascent(measure)

    def init(params: Any) -> Any:
        del params
        count = jnp.zeros((), jnp.int32)
        coefficients = jnp.zeros(options["num_directions"], jnp.float32)
        return count, jax.random.key_data(jax.random.key(0)), coefficients

    def look(point: Point, memory: Any) -> Look:
        count, data, coefficients = memory
        if jax.random.key_data(point.random()).shape != data.shape:
            raise ValueError(
                "every > 1 remembers keys of JAX's default implementation."
            )

        def probe() -> Any:
            c, seen = estimators.slopes(
                point.ascent,
                point.params,
                point.random(),
                masks=point.support,
                has_aux=True,
                **options,
            )
            data = jax.random.key_data(point.random())
            value = seen.value.astype(jnp.float32)
            return data, c.astype(jnp.float32), value, seen.info.forward_evaluations

        def reuse() -> Any:
            nothing = jnp.zeros((), jnp.float32)
            return data, coefficients, nothing, nothing

        due = count % every == 0
        data, coefficients, value, forward = jax.lax.cond(
            due, lambda: point.vary(probe()), lambda: point.vary(reuse())
        )
        direction = estimators.combine(
            jax.random.wrap_key_data(data),
            coefficients,
            point.params,
            point.support,
            options["distribution"],
        )
        memory = count + 1, data, coefficients
        return Look(direction, memory, value=value, forward=forward, seen=due)

    return Ascent(look, init)


def guided(
    decays: tuple[float, ...],
    *,
    delta: Any,
    num_directions: int,
    exploration: Any,
    every: int,
) -> Ascent:
    """Guided ZO-SAM: in the span of running means of the perturbed gradients."""

    def init(params: Any) -> Any:
        means = jnp.zeros((len(decays), tree.size(params)), jnp.float32)
        slopes = jnp.zeros(len(decays), jnp.float32)
        return means, slopes, jnp.zeros((), jnp.int32)

    def look(point: Point, memory: Any) -> Look:
        means, slopes, count = memory

        def project(m: int) -> Any:
            return estimators.guided(
                point.ascent,
                point.params,
                point.random(),
                means,
                slopes,
                count // every,
                delta=delta,
                num_directions=m,
                exploration=exploration,
                masks=point.support,
                has_aux=True,
            )

        def result(m: int) -> Any:
            seen, found = project(m)
            value = seen.value.astype(jnp.float32)
            return seen.grad, found, value, seen.info.forward_evaluations

        if every == 1:
            seen, slopes = project(num_directions)
            due, aux = True, seen.aux
            grad, value = seen.grad, seen.value
            forward = seen.info.forward_evaluations
        else:
            due, aux = count % every == 0, None
            grad, slopes, value, forward = jax.lax.cond(
                due,
                lambda: point.vary(result(num_directions)),
                lambda: point.vary(result(0)),
            )
        return Look(
            grad,
            (means, slopes, count + 1),
            value=value,
            aux=aux,
            forward=forward,
            seen=due,
        )

    def learn(point: Point, memory: Any, grad: Any) -> Any:
        del point
        means, slopes, count = memory
        flat, _ = ravel_pytree(wide(grad))
        decay = jnp.asarray(decays, jnp.float32)[:, None]
        return decay * means + (1 - decay) * flat, slopes, count

    return Ascent(look, init, learn)
