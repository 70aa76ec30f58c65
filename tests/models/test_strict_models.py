"""Every family under JAX's strict promotion of dtypes and without that of ranks.

Traced alone, module by module: both settings act while a program is traced, and Optax's
AdamW fails under the first, so that they cannot hold for all tests (in conftest.py).
"""

import contextlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
import small_models

from zosam_jax import models


def _standard(function):
    """The function of another library, which mixes bfloat16 and float32 itself."""

    def call(*arguments, **options):
        with jax.numpy_dtype_promotion("standard"):
            return function(*arguments, **options)

    return call


def _norms_as_they_are(next_, arguments, options, context):
    norm = isinstance(context.module, nn.BatchNorm | nn.LayerNorm)
    return (_standard(next_) if norm else next_)(*arguments, **options)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", small_models.FAMILIES)
def test_it_mixes_neither_dtypes_nor_ranks(family, dtype, monkeypatch):
    fields = {"dtype": dtype}
    if family in ("vit", "deit", "tinylm", "tied"):
        fields |= {"dropout": 0.1, "stochastic_depth": 0.1}
    model, x = small_models.make(family, **fields), small_models.inputs(family)

    def passes(key):
        params, state = models.initialize(model, key, x.shape[1:])

        def loss(params):
            out, new = model.apply(
                {"params": params, **state},
                x,
                train=True,
                mutable=list(state),
                rngs={"dropout": key},
            )
            return jax.tree.reduce(jnp.add, jax.tree.map(jnp.sum, out)), new

        grads, _ = jax.grad(loss, has_aux=True)(params)
        return grads, model.apply({"params": params, **state}, x, train=False)

    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.numpy_rank_promotion("raise"))
        stack.enter_context(jax.numpy_dtype_promotion("strict"))
        if dtype == "bfloat16":
            attend = _standard(jax.nn.dot_product_attention)
            monkeypatch.setattr(jax.nn, "dot_product_attention", attend)
            stack.enter_context(nn.intercept_methods(_norms_as_they_are))
        _, logits = jax.eval_shape(passes, jax.random.key(0))
    assert logits.dtype == jnp.float32
