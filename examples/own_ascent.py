"""A sharpness-aware gradient of your own: here SAM in the maximum norm, by signs.

python examples/own_ascent.py
"""

import jax
import jax.numpy as jnp
import optax

import zosam_jax as zs
from zosam_jax.gradients import Ascent, GradientLook, Row, geometries


def signs(point, memory):
    """Looks along sign(g): to first order, a corner of the cube around w is highest."""
    clean = zs.gradients.exact_gradient(point.losses.ascent, point.params)
    direction = jax.tree.map(jnp.sign, clean.grad)
    return GradientLook(direction, clean, memory=memory)


def sign_sam(rho=0.1, **options):
    """The gradient at w + rho sign(g), with all shared options: `include`, `seed`..."""
    row = Row(Ascent(signs, gives=GradientLook), geometries.as_it_is())
    return zs.gradients.sharpness_aware("sign_sam", row, rho, **options)


def main() -> tuple[float, float]:
    """Fits a product of two factors; returns the curvature where SGD and this end.

    Wherever the product is right the loss is 0; the curvature there is the sum of the
    factors' squares, which is least, 2, where they are equal.
    """

    def loss(w):
        return (w[0] * w[1] - 1) ** 2 / 2

    curvatures = []
    for gradient in (zs.backprop(), sign_sam(rho=0.1)):
        tx = optax.chain(gradient, optax.sgd(0.01))
        w = jnp.asarray([4.0, 0.2])
        state = tx.init(w)

        @jax.jit
        def step(w, state, tx=tx):
            updates, state = tx.update(None, state, w, value_fn=loss)
            return optax.apply_updates(w, updates), state

        for _ in range(20_000):
            w, state = step(w, state)
        curvatures.append(float(w @ w))
    print(f"curvature: SGD {curvatures[0]:.1f}, sign-SAM {curvatures[1]:.1f}")
    return curvatures[0], curvatures[1]


if __name__ == "__main__":
    main()
