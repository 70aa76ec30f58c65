"""Exact selection, against sorting in NumPy."""

import devices
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from zosam_jax import selection

SIZE = 24
TINY = np.finfo(np.float32).tiny
DTYPES = [jnp.bfloat16, jnp.float16, jnp.float32]


def ranked(score, candidates):
    """The places of the candidates by (score, lower index), NaN last."""
    key = np.asarray(score, np.float32).ravel()
    key = np.where(np.isnan(key), -np.inf, key)
    # XLA flushes denormals to zero; so they tie with it.
    key = np.where(np.abs(key) < TINY, 0, key)
    flags = np.asarray(candidates).ravel()
    order = np.lexsort((np.arange(key.size), -key))
    return order[flags[order]]


def reference(score, candidates, count, order=None):
    """The `count` best, of candidates that may be ranked already."""
    order = ranked(score, candidates) if order is None else order
    chosen = np.zeros(np.size(score), bool)
    chosen[order[: int(count)]] = True
    return chosen.reshape(np.shape(score))


def reference_along(score, candidates, counts, axes):
    kept = tuple(1 if i in axes else n for i, n in enumerate(score.shape))
    chosen = np.zeros(score.shape, bool)
    counts = np.broadcast_to(counts, kept)
    for place in np.ndindex(*kept):
        group = tuple(slice(None) if i in axes else place[i] for i in range(len(kept)))
        chosen[group] = reference(score[group], candidates[group], counts[place])
    return chosen


def check(score, candidates, counts, chosen):
    for s, c, k, found in zip(score, candidates, counts, chosen, strict=True):
        np.testing.assert_array_equal(found, reference(s, c, k))


@jax.jit
def choose(score, candidates, count):
    return selection._select([[(score, candidates)]], [count])


def one(score, candidates, count):
    ((chosen,),), reads = choose(score, candidates, count)
    return chosen, int(reads)


# Few distinct values: ties everywhere.
tied = st.sampled_from([-np.inf, -1.0, -0.0, 0.0, 1e-40, 0.5, 1.0, np.inf, np.nan])
anything = st.floats(width=32)
arrays = st.one_of(
    hnp.arrays(np.float32, SIZE, elements=tied),
    hnp.arrays(np.float32, SIZE, elements=anything),
)
flags = hnp.arrays(bool, SIZE)


@settings(max_examples=200, deadline=None)
@given(arrays, flags, st.floats(0, 1), st.sampled_from(DTYPES))
def test_select_is_exact_with_ties_to_the_lower_index(score, candidates, share, dtype):
    count = round(share * candidates.sum())
    with np.errstate(over="ignore"):
        score = jnp.asarray(score, dtype)
    found = one(score, candidates, count)[0]
    np.testing.assert_array_equal(found, reference(score, candidates, count))


across = jax.jit(selection.select_across)


@pytest.mark.quick
@settings(max_examples=100, deadline=None)
@given(arrays, flags, st.integers(0, SIZE))
def test_across_arrays_is_as_if_laid_end_to_end(score, candidates, count):
    def cut(x):
        return [x[:8].reshape(2, 4), x[8:9], x[9:9], x[9:].reshape(3, 1, 5)]

    found = across(cut(score), cut(candidates), count)
    flat = np.concatenate([np.ravel(x) for x in found])
    np.testing.assert_array_equal(flat, reference(score, candidates, count))


along = jax.jit(selection.select_along, static_argnums=3)


@settings(max_examples=60, deadline=None)
@given(arrays, flags, st.integers(0, 6), st.sampled_from([(0,), (1,), (2, 0), (-2,)]))
def test_small_groups_are_exact(score, candidates, count, axes):
    score, candidates = score.reshape(2, 4, 3), candidates.reshape(2, 4, 3)
    found = along(score, candidates, count, axes)
    plain = tuple(axis % 3 for axis in axes)
    expected = reference_along(score, candidates, count, plain)
    np.testing.assert_array_equal(found, expected)


def scores_of(kind, shape, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=shape)
    x = {
        "normal": lambda: x,
        "magnitude": lambda: np.abs(x),
        "uniform": lambda: rng.random(shape),
        "cauchy": lambda: rng.standard_cauchy(shape),
        "log-normal": lambda: np.exp(3 * x),
        "zeros": lambda: np.where(rng.random(shape) < 0.6, 0, np.abs(x)),
        "rounded": lambda: np.round(x),
        "equal": lambda: np.full(shape, 1.5),
        "nan": lambda: np.where(rng.random(shape) < 0.3, np.nan, np.round(x, 1)),
    }[kind]()
    return x.astype(np.float32)


@pytest.mark.parametrize("axes", [(0,), (0, 2), (1,)])
def test_large_groups_are_exact(axes):
    rng = np.random.default_rng(0)
    candidates = rng.random((40, 50, 3)) < 0.7
    kept = tuple(1 if i in axes else n for i, n in enumerate(candidates.shape))
    counts = rng.integers(0, 30, kept)
    for kind in ("normal", "rounded", "nan", "zeros", "equal"):
        score = scores_of(kind, candidates.shape)
        found = along(score, candidates, counts, axes)
        expected = reference_along(score, candidates, counts, axes)
        np.testing.assert_array_equal(found, expected)


LARGE = (300, 1000)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_sampled_array_is_exact(dtype):
    rng = np.random.default_rng(1)
    candidates = rng.random(LARGE) < 0.5
    total = candidates.sum()
    for kind in ("normal", "cauchy", "zeros", "rounded", "equal", "nan"):
        with np.errstate(over="ignore"):
            score = scores_of(kind, LARGE).astype(dtype)
        order = ranked(score, candidates)
        for count in (0, 1, 7, total // 3, total // 2, total - 1, total, total + 5):
            found = one(score, candidates, count)[0]
            expected = reference(score, candidates, count, order)
            np.testing.assert_array_equal(found, expected)


def test_arrays_of_all_sizes_and_dtypes_at_once():
    shapes = [(), (1,), (0, 3), (7,), (5000,), (17, 4096), (3, 3, 64, 128)]
    score = [
        jnp.asarray(scores_of("normal", s, i), DTYPES[i % 3])
        for i, s in enumerate(shapes)
    ]
    candidates = [jnp.abs(s.astype(jnp.float32)) < 1 for s in score]
    counts = [int(c.sum()) // 3 for c in candidates]
    check(
        score, candidates, counts, jax.jit(selection.select)(score, candidates, counts)
    )
    found = across(score, candidates, sum(counts))
    flat = reference(
        np.concatenate([np.asarray(s, np.float32).ravel() for s in score]),
        np.concatenate([np.ravel(c) for c in candidates]),
        sum(counts),
    )
    np.testing.assert_array_equal(np.concatenate([np.ravel(f) for f in found]), flat)


MILLION = (1000, 1000)


@pytest.mark.parametrize(
    ("kind", "most", "mean"),
    [
        # Three reads settle a threshold without ties: after the first about 1000
        # entries are left, after the second about 4, which 13 keys part. A share of
        # them needs one more, and two entries of the same score one for the index.
        ("magnitude", 6, 3.5),
        ("uniform", 6, 3.5),
        ("cauchy", 6, 3.5),
        ("log-normal", 6, 3.5),
        # Ties: one read finds the value that the sample named, the index takes more.
        ("zeros", 7, 4),
    ],
)
def test_a_large_array_is_read_a_few_times(kind, most, mean):
    score = scores_of(kind, MILLION)
    candidates = np.random.default_rng(2).random(MILLION) < 0.5
    total = candidates.sum()
    taken = []
    for share in (0.03, 0.1, 0.2, 0.3, 0.5, 0.6, 0.7, 0.85, 0.97):
        chosen, reads = one(score, candidates, int(share * total))
        assert int(chosen.sum()) == int(share * total)
        taken.append(reads)
    assert max(taken) <= most, taken
    assert np.mean(taken) <= mean, taken


def test_the_reads_of_the_worst_scores_are_bounded():
    # Keys double in distance from one entry to the next: no interpolation holds.
    powers = 2.0 ** np.arange(-100, 100)
    for seed in range(3):
        rng = np.random.default_rng(seed)
        score = (rng.choice(powers, LARGE) * rng.choice([-1, 1], LARGE)).astype("f")
        order = ranked(score, np.ones(LARGE, bool))
        for count in (1, 1000, 100_000, 299_999):
            chosen, reads = one(score, np.ones(LARGE, bool), count)
            expected = reference(score, np.ones(LARGE, bool), count, order)
            np.testing.assert_array_equal(chosen, expected)
            # log 4 of the keys, and of the indices, and the first read of each.
            assert reads <= 16 + 2 + 9 + 2


PROGRAM = r"""
import functools, json, math, re
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from zosam_jax import selection

jit = functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0})
auto = (AxisType.Auto,) * 2
mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=auto)
rng = np.random.default_rng(0)
wide = rng.normal(size=(512, 512)).astype("f")
kernel = np.round(2 * rng.normal(size=(3, 3, 64, 256))).astype("f")
# Long rows, each on all devices: their counts are more than may travel.
tall = rng.normal(size=(2048, 512)).astype("f")
layout = [NamedSharding(mesh, s) for s in
          (P("a", "b"), P(None, None, "b", "a"), P(None, ("a", "b")))]
def chosen(scores, flags, counts):
    a, b, _ = scores
    return (selection.select(scores, flags, counts),
            selection.select_across(scores, flags, sum(counts)),
            selection.select_along(a, flags[0], 9, (0,)),
            selection.select_along(a.reshape(128, 4, 512), a.reshape(128, 4, 512) > 0,
                                   2, (1,)))
scores = [jnp.asarray(x) for x in (wide, kernel, tall)]
flags = [x > -0.5 for x in scores]
counts = [jnp.int32(n) for n in (1234, 30_000, 99_999)]
alone = jit(chosen)(scores, flags, counts)
scores, flags = ([jax.device_put(x, s) for x, s in zip(xs, layout)]
                 for xs in (scores, flags))
program = jit(chosen).lower(scores, flags, counts).compile()
spread = program(scores, flags, counts)
moved = 0
pattern = r"= (.*?) (?:all-gather|all-to-all|collective-permute|all-reduce)"
for found in re.findall(pattern, program.as_text()):
    for dims in re.findall(r"\[([\d,]*)\]", found):
        moved = max(moved, math.prod(int(n) for n in dims.split(",") if n))

line = jax.make_mesh((8,), ("d",), axis_types=auto[:1])
def local(x):
    one, two = selection.select([x, x[:, :9]], [x > 0, x[:, :9] > 0], [50, 5])
    three, = selection.select_across([x], [x > 0], 50)
    four = selection.select_along(x, x > 0, 3, (1,))
    return one, two, three, four
def mapped(x):
    spread = jax.shard_map(local, mesh=line, in_specs=P("d"), out_specs=P("d"))
    return jit(spread)(x)
same = []
for shape in ((64, 64), (1024, 512)):
    x = jnp.asarray(rng.normal(size=shape).astype("f"))
    alone_local = jit(local)
    here = [alone_local(part) for part in jnp.split(x, 8)]
    here = jax.tree.map(lambda *parts: jnp.concatenate(parts), *here)
    same.append(all(bool((a == b).all()) for a, b in zip(mapped(x), here)))
print(json.dumps({
    "equal": [bool((a == b).all()) for a, b in
              zip(jax.tree.leaves(alone), jax.tree.leaves(spread))],
    "specs": [str(x.sharding.spec) for x in spread[0]],
    "moved": moved,
    "mapped": same,
}))
"""


def test_sharded_arrays_are_not_gathered_and_give_the_same_choice():
    found = devices.run(PROGRAM, 8)
    assert all(found["equal"]), found
    assert found["specs"] == [
        *("P('a', 'b')", "P(None, None, 'b', 'a')", "P(None, ('a', 'b'))")
    ]
    # The entries of a sample, the least that is taken, and no more.
    assert found["moved"] <= 4096
    assert found["mapped"] == [True, True]
