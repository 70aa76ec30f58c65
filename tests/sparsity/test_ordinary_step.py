"""What a step copies that leaves the masks as they are."""

import re

import jax
import jax.numpy as jnp
import optax
import pytest

import zosam_jax as zs

SHAPE = (96, 200)


def copied(tx):
    """The arrays of `SHAPE` that a compiled update copies outside of a change."""
    like = {"kernel": jax.ShapeDtypeStruct(SHAPE, jnp.float32)}
    state = jax.eval_shape(tx.init, like)

    def update(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    jitted = jax.jit(update, donate_argnums=(0, 1))
    text = jitted.lower(like, state, like).compile().as_text() or ""
    bodies = dict(re.findall(r"^(?:ENTRY )?%(\S+) .*?\{\n(.*?)^\}", text, re.M | re.S))
    (name,) = re.findall(r"^ENTRY %(\S+)", text, re.M)
    main = bodies[name]
    (unchanged,) = re.findall(r"branch_computations=\{%(\S+), %\S+\}", main)
    copies = r"= (\w+)\[96,200\]\S* copy\("
    return re.findall(copies, main) + re.findall(copies, bodies[unchanged])


@pytest.mark.parametrize("name", ["rigl", "gmp"])
def test_an_ordinary_step_copies_neither_masks_nor_moments(name):
    method = getattr(zs.sparsity, name)(0.9, 1000)
    assert copied(zs.sparsify(optax.sgd(0.1, momentum=0.9), method)) == []
