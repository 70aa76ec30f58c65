"""The examples run as they stand, and reach what they show."""

import itertools
import json
import runpy
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
import pytest
from flax import nnx
from matplotlib import pyplot as plt

import zosam_jax as zs

EXAMPLES = Path(__file__).parents[1] / "examples"
REACHED = {
    "zosam_by_hand": lambda result: result is None,
    "sparse_loop": lambda accuracy: accuracy > 0.95,
    "flax_linen": lambda loss: loss < 0.1,
    "flax_nnx": lambda loss: loss < 0.1,
    "equinox_model": lambda loss: loss < 0.1,
    "own_grow_rule": lambda share: share > 0.95,
    "own_ascent": lambda ends: ends[0] > 15 and ends[1] < 3,
}

# A third of the steps is enough.
SHORTER = {"sparse_loop": {"STEPS": 200}}


def loaded(name):
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))


@pytest.mark.parametrize("name", list(REACHED))
def test_example(name):
    main = loaded(name)["main"]
    main.__globals__.update(SHORTER.get(name, {}))
    assert REACHED[name](main())


STANDS = 3


def standing(statistics):
    """The first steps have learning rate 0; the topology changes right after them.

    The radius is 0, so that `value` and `descent_value` are losses of one point.
    """
    return zs.sparsify(
        optax.sgd(lambda count: jnp.where(count < STANDS, 0.0, 0.1)),
        zs.sparsity.rigl(0.8, total_steps=10, interval=STANDS),
        gradient=zs.sam(0.0, has_aux=True, aux_like=statistics),
    )


def linen(make, steps):
    example = loaded("flax_linen")
    state, (x, y) = example["create"](make), example["data"](jax.random.key(2))
    yield state.params, state.batch_stats, state.opt_state
    for _ in range(steps):
        state = example["step"](state, x, y)
        yield state.params, state.batch_stats, state.opt_state


def through_nnx(make, steps):
    example = loaded("flax_nnx")
    model, optimizer = example["create"](make)
    batch = example["data"](jax.random.key(2))
    for i in range(steps + 1):
        params, statistics = (
            nnx.state(model, nnx.Param),
            nnx.state(model, nnx.BatchStat),
        )
        # Copies: the model is updated in place.
        seen = nnx.as_pure((params, statistics, optimizer.opt_state))
        yield jax.tree.map(jnp.array, seen)
        if i < steps:
            example["step"](model, optimizer, *batch)


def equinox(make, steps):
    example = loaded("equinox_model")
    model, statistics, tx, state = example["create"](make)
    batch = example["data"](jax.random.key(2))
    for i in range(steps + 1):
        yield eqx.filter(model, eqx.is_inexact_array), statistics, state
        key = jax.random.fold_in(jax.random.key(1), i)
        if i < steps:
            args = model, statistics, tx, state, batch, key
            model, statistics, state = example["step"](*args)


FRAMEWORKS = {"linen": linen, "nnx": through_nnx, "equinox": equinox}


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_dropout_masks_statistics_and_sparse_masks_move_as_they_should(name):
    """While the parameters stand still, the loss changes by the dropout mask alone.

    BatchNorm normalises by the batch. One mask that all steps draw, or two in the
    passes of one step, would show in these losses.
    """
    start, *steps = history = list(FRAMEWORKS[name](standing, STANDS + 2))
    still = steps[:STANDS]
    jax.tree.map(np.testing.assert_array_equal, start[0], still[-1][0])
    losses = [zs.estimate(state).value for _, _, state in still]
    assert len(set(map(float, losses))) == STANDS
    for _, _, state in still:
        seen = zs.estimate(state)
        np.testing.assert_allclose(seen.info.descent_value, seen.value, rtol=1e-6)
    for (_, before, _), (_, after, _) in itertools.pairwise(history):
        pairs = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
        assert all(np.any(np.asarray(a) != np.asarray(b)) for a, b in pairs)
    for params, _, state in history:
        masked = zs.sparsity.apply_masks(params, zs.sparsity.masks(state))
        jax.tree.map(np.testing.assert_array_equal, params, masked)
    first, last = (zs.sparsity.masks(history[i][2]) for i in (0, -1))
    same = jax.tree.map(lambda a, b: bool((a == b).all()), first, last)
    assert not all(jax.tree.leaves(same))
    assert zs.sparsity.sparsity_of(first) == zs.sparsity.sparsity_of(last)
    grown = jax.tree.map(lambda w, m, n: w[n & ~m], steps[-1][0], first, last)
    assert any(np.any(np.asarray(w)) for w in jax.tree.leaves(grown))


def test_the_train_state_accumulates_and_follows_both_schedules():
    example = loaded("flax_linen")

    def falling(statistics):
        return zs.sparsify(
            optax.sgd(optax.piecewise_constant_schedule(0.1, {1: 0.0})),
            zs.sparsity.static(0.8),
            gradient=zs.sam(
                optax.piecewise_constant_schedule(0.5, {1: 0.5}),
                has_aux=True,
                aux_like=statistics,
            ),
            accumulate_steps=2,
        )

    state, (x, y) = example["create"](falling), example["data"](jax.random.key(2))
    moved, norms = [], []
    for _ in range(4):
        before, state = state.params, example["step"](state, x, y)
        same = jax.tree.map(lambda a, b: bool((a == b).all()), before, state.params)
        moved.append(not all(jax.tree.leaves(same)))
        norms.append(float(zs.estimate(state.opt_state).info.perturbation_norm))
    assert moved == [False, True, False, False]
    np.testing.assert_allclose(norms, [0.5, 0.5, 0.25, 0.25], rtol=1e-4)
    assert (int(state.step), int(state.opt_state.step)) == (4, 2)


def test_every_example_is_tested():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(REACHED)


def notebook():
    return json.loads((EXAMPLES / "digits.ipynb").read_text())["cells"]


def test_the_notebook_runs_with_smaller_numbers():
    matplotlib.use("agg")
    usual, small = "STEPS, SEEDS = 600, 5", "STEPS, SEEDS = 40, 1"
    codes = ["".join(c["source"]) for c in notebook() if c["cell_type"] == "code"]
    assert usual in codes[0]
    namespace: dict = {}
    for code in codes:
        exec(compile(code.replace(usual, small), "digits.ipynb", "exec"), namespace)
    plt.close("all")
    for runs in namespace["results"].values():
        _, _, _, (accuracy, _) = runs[0]
        assert accuracy[-1] > 0.6


def test_the_notebook_holds_the_results_of_its_cells():
    codes = [c for c in notebook() if c["cell_type"] == "code"]
    assert [c["execution_count"] for c in codes] == list(range(1, len(codes) + 1))
    outputs = [o for c in codes for o in c["outputs"]]
    assert all(o["output_type"] in ("stream", "display_data") for o in outputs)
    assert sum("image/png" in o.get("data", {}) for o in outputs) == 3
    text = "".join("".join(o["text"]) for o in outputs if "text" in o)
    for name in ("plain", "SAM", "ZO-SAM", "guided ZO-SAM"):
        assert f"{name:14} test accuracy" in text
