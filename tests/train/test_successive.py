"""The cosine of successive gradients, and the clock of a run that is interrupted."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run

from zosam_jax.train.successive import successive_cosine

FIELDS = {"gradient": "zosam", "successive_cosine": True, "epochs": 2}


def cosine(x, y):
    x, y = (
        np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(t)]) for t in (x, y)
    )
    return float(np.vdot(x, y) / np.linalg.norm(x) / np.linalg.norm(y))


def test_it_is_the_cosine_to_the_gradient_before():
    transformation = successive_cosine()
    gradients = [[3.0, 0.0], [-2.0, 0.0], [0.0, 5.0], [0.0, 0.0], [1.0, 1.0], [1.0, 0]]
    state, found = transformation.init(jnp.zeros(2)), []
    for gradient in map(jnp.array, gradients):
        passed, state = transformation.update(gradient, state)
        np.testing.assert_array_equal(passed, gradient)
        found.append(float(state.cosine))
    # The first has none before it, and a gradient of 0 has no direction.
    np.testing.assert_allclose(found, [0, -1, 0, 0, 0, np.sqrt(0.5)], atol=1e-7)
    assert int(state.steps) == 6
    _, state = transformation.update(jnp.array([jnp.inf, 1]), state)
    assert float(state.cosine) == 0


@pytest.mark.parametrize(("method", "accumulate"), [("rigl", 1), ("dense", 2)])
def test_the_trainer_measures_what_the_update_rule_gets(method, accumulate):
    """Plain gradient descent moves along that gradient, on the mask."""
    rule = {"momentum": 0.0, "weight_decay": 0.0, "schedule": "constant"}
    fields = {**FIELDS, **rule, "gradient": "sam", "method": method}
    if method == "rigl":
        fields["update_interval"] = 100
    fields["accumulate_steps"] = accumulate
    experiment = tiny_run.prepare(tiny_run.config("none", **fields)).experiment
    state, moves, counts = tiny_run.begin(experiment), [], []
    before, step = state.params, tiny_run.advance(experiment)
    for number in range(1, 5):
        state = step(state)
        counts.append(int(state.totals.cosines.steps))
        if number % accumulate == 0:
            moves.append(jax.tree.map(np.subtract, before, state.params))
            before = state.params
    # A batch that is accumulated is no step, and the first step has none before it.
    assert counts == ([0, 1, 2, 3] if accumulate == 1 else [0, 0, 0, 1])
    wanted = sum(cosine(x, y) for x, y in itertools.pairwise(moves))
    assert float(state.totals.cosines.sum) == pytest.approx(wanted, abs=1e-3)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run with cosines, the same interrupted within an epoch, and one without."""
    folder = tmp_path_factory.mktemp("runs")
    tiny_run.again(folder / "whole", **FIELDS)
    stops = tiny_run.Recorder(step=5)
    tiny_run.again(folder / "parts", stops, **FIELDS)
    config = json.loads((folder / "parts" / "config.json").read_text())
    ended = dict(config["sessions"][0])
    config["sessions"][0]["seconds"] += 1000
    (folder / "parts" / "config.json").write_text(json.dumps(config))
    tiny_run.again(folder / "parts", **FIELDS)
    without = {**FIELDS, "successive_cosine": False}
    tiny_run.again(folder / "without", **without)
    return folder, ended


def test_recording_it_changes_no_number_and_a_resume_repeats_it(runs):
    folder, _ = runs
    whole, parts, without = (
        tiny_run.records(folder / name) for name in ("whole", "parts", "without")
    )
    clocks = {"seconds": 0, "images_per_second": 0}
    for a, b, c in zip(whole, parts, without, strict=True):
        assert a | clocks == b | clocks
        recorded = a.pop("successive_cosine", None)
        assert (recorded is not None) == (a["split"] == "train")
        assert recorded is None or -1 < recorded < 1
        assert a | clocks == c | clocks
    state = tiny_run.final(folder / "whole", **FIELDS)
    plain = tiny_run.final(folder / "without", **{**FIELDS, "successive_cosine": False})
    tiny_run.assert_same(state.params, plain.params)


def test_the_clock_goes_on_where_a_session_ended(runs):
    """It ended after the last record, and was made to seem 1000 seconds longer."""
    folder, ended = runs
    assert ended["ended"] >= 5
    first, last = (tiny_run.records(folder / "parts")[i]["seconds"] for i in (0, -1))
    assert first < ended["seconds"]
    assert 1000 + ended["seconds"] < last < 1000 + ended["seconds"] + 60
