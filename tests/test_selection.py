"""Exact selection, against sorting in NumPy."""

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from zosam_jax import selection

SIZE = 24
select = jax.jit(lambda s, c, k: selection.select([s], [c], [k])[0])


def reference(score, candidates, count):
    """The `count` best by (score, lower index), NaN last among candidates."""
    key = np.where(np.isnan(score), -np.inf, score.astype(np.float32))
    order = sorted(np.flatnonzero(candidates), key=lambda i: (-key[i], i))
    chosen = np.zeros(len(score), bool)
    chosen[order[:count]] = True
    return chosen


# Few distinct values: ties everywhere.
tied = st.sampled_from([-np.inf, -1.0, -0.0, 0.0, 1e-40, 0.5, 1.0, np.inf, np.nan])
anything = st.floats(width=32)


@settings(max_examples=200, deadline=None)
@given(
    score=st.one_of(
        hnp.arrays(np.float32, SIZE, elements=tied),
        hnp.arrays(np.float32, SIZE, elements=anything),
    ),
    candidates=hnp.arrays(bool, SIZE),
    share=st.floats(0, 1),
)
def test_select_is_exact_with_ties_to_the_lower_index(score, candidates, share):
    # XLA flushes denormals to zero; so they tie with it.
    score = np.where(np.abs(score) < np.finfo(np.float32).tiny, 0, score)
    count = round(share * candidates.sum())
    chosen = np.asarray(select(score, candidates, count))
    np.testing.assert_array_equal(chosen, reference(score, candidates, count))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_counts_are_exact_in_every_dtype(dtype):
    score = jax.random.normal(jax.random.key(0), (100, 100)).astype(dtype)
    counts = [0, 1, 3333, 9999, 10_000]
    chosen = selection.select([score] * 5, [jnp.ones((100, 100), bool)] * 5, counts)
    assert [int(c.sum()) for c in chosen] == counts
    kept = np.asarray(score, np.float32)[np.asarray(chosen[2])]
    assert kept.min() >= np.sort(np.asarray(score, np.float32).ravel())[-3333]
