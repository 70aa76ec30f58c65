"""Runs that train in one program, against each alone."""

import json
import signal

import jax
import numpy as np
import pytest
import tiny_run

import zosam_jax as zs
from zosam_jax.runs import record
from zosam_jax.train import together
from zosam_jax.train.lanes import Lanes
from zosam_jax.train.objects import Objects
from zosam_jax.train.together import Apart

SEEDS = 0, 3, 2**31 - 1
# Two changes of the topology, at steps 3 and 6 of 9.
RUN = {"gradient": "zosam", "method": "rigl", "validation": 0.2, "label_noise": 0.3}
RUN["successive_cosine"] = True


# The second run has a radius of its own.
RADII = dict(zip(SEEDS, (0.05, 0.5, 0.05), strict=True))


def train(folder, display=None):
    configs = [
        tiny_run.config(folder / f"seed-{seed}", seed=seed, rho=rho, **RUN)
        for seed, rho in RADII.items()
    ]
    given = Objects(tiny_run.dataset(), tiny_run.Net())
    return together.train(configs, given, display=display, command=["zosam"])


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs together, the last of which diverges in its second epoch, and programs."""
    folder, made = tmp_path_factory.mktemp("together"), []

    class Diverging(Lanes):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            made.append(self)

        def totals(self, parts):
            found = super().totals(parts)
            if self.step(parts) == 6:
                found[-1] = found[-1]._replace(bad_step=np.int32(5))
            return found

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(together, "Lanes", Diverging)
        shown = tiny_run.Recorder()
        ended = train(folder, shown)
    return folder, ended, shown, made[0]


def test_each_run_is_that_alone(runs, tmp_path):
    folder, ended, shown, _ = runs
    assert (ended.is_complete, ended.signal) == (True, None)
    for seed in SEEDS[:2]:
        name = f"seed-{seed}"
        tiny_run.again(tmp_path / name, seed=seed, rho=RADII[seed], **RUN)
        own, alone = (tiny_run.final(x / name, **RUN) for x in (folder, tmp_path))
        masks = [zs.sparsity.masks(state.opt_state) for state in (own, alone)]
        tiny_run.assert_same(*masks)
        assert jax.tree.structure(own) == jax.tree.structure(alone)
        pairs = zip(*map(jax.tree.leaves, (own.params, alone.params)), strict=True)
        for a, b in pairs:
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
        found, expected = (record.read(x / name) for x in (folder, tmp_path))
        assert found.config | {"out": ""} == expected.config | {"out": ""}
        for split in ("train", "validation", "test"):
            own_figures = ("successive_cosine",) if split == "train" else ()
            for figure in ("loss", "accuracy", "sparsity", *own_figures):
                np.testing.assert_allclose(
                    found.curve(split, figure), expected.curve(split, figure), rtol=1e-4
                )
        # With label noise, each seed has labels of its own.
        for labels in ("given", "clean"):
            figure = f"train_accuracy_{labels}_labels"
            assert found.summary[figure] == pytest.approx(expected.summary[figure])
        assert set(found.summary) == set(expected.summary)
        assert set(found.metrics[0]) == set(expected.metrics[0])
    said = f"seed-{SEEDS[0]}: finished: test accuracy "
    assert any(line.startswith(said) for line in shown.said)


def test_what_is_left_can_be_used_like_any_run(runs):
    folder, _, _, _ = runs
    path = folder / f"seed-{SEEDS[1]}"
    net = zs.load(path, dataset=tiny_run.dataset(), model=tiny_run.Net())
    data = tiny_run.dataset()
    found = [x.classes[0] for x in net.predict(data.test_images)]
    accuracy = np.mean(np.array(found) == np.array(data.class_names)[data.test_labels])
    assert accuracy == pytest.approx(record.read(path).summary["test_accuracy"])
    (session,) = json.loads((path / "config.json").read_text())["sessions"]
    assert (session["together"], session["command"]) == (3, ["zosam"])


def test_a_run_that_diverges_fails_alone(runs):
    folder, ended, shown, _ = runs
    name = f"seed-{SEEDS[2]}"
    assert list(ended.failures) == [name]
    assert ended.failures[name].startswith("the loss is not finite at step 5 (epoch 2)")
    assert any(line.startswith(f"{name} failed: the loss") for line in shown.said)
    found = record.read(folder / name)
    assert found.summary is None
    assert [line["epoch"] for line in found.metrics if line["split"] == "test"] == [1]
    assert not list((folder / name / "checkpoints").iterdir())


def test_a_lane_of_no_finite_number_leaves_the_others_alone(runs):
    """NaN stays in its lane."""
    _, _, _, lanes = runs
    parts = lanes.init()
    expected = lanes.states(lanes.epoch(lanes.init(), 0))
    own = [x.at[1].set(np.nan) if x.dtype == np.float32 else x for x in parts.own]
    found = lanes.states(lanes.epoch(parts._replace(own=own), 0))
    assert found[1].totals.bad_step == 1
    for lane in (0, 2):
        tiny_run.assert_same(found[lane], expected[lane])


def test_after_a_signal_the_same_call_trains_all_again(runs, tmp_path, monkeypatch):
    folder, _, _, lanes = runs
    monkeypatch.setattr(together, "Lanes", lambda *_: lanes)

    class Interrupting(tiny_run.Recorder):
        def epoch(self, status):
            if status.epoch == 2:
                signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(type(lanes), "totals", Lanes.totals)
    shown = Interrupting()
    ended = train(tmp_path, shown)
    assert (ended.is_complete, ended.signal) == (False, signal.SIGTERM)
    assert shown.said[-1].startswith("interrupted at step 6. ")
    assert len(record.read(tmp_path / "seed-0").metrics) == 6
    assert train(tmp_path).is_complete
    for seed in SEEDS[:2]:
        name = f"seed-{seed}"
        one, other = (tiny_run.final(x / name, **RUN) for x in (folder, tmp_path))
        tiny_run.assert_same(one, other)
    # The last run is not finished in the first folder, and is here.
    assert record.read(tmp_path / f"seed-{SEEDS[2]}").summary["epochs"] == 3
    with pytest.raises(Apart, match="is finished already"):
        train(tmp_path)


def made(path, **fields):
    """The programs of two seeds, not compiled."""
    given = Objects(tiny_run.dataset(), tiny_run.Net())
    configs = [tiny_run.config(path, seed=seed, **fields) for seed in (0, 1)]
    return together._lanes(configs, given)


@pytest.mark.parametrize("loop", ["steps", "scan"])
def test_all_counters_are_shared(tmp_path, loop):
    """An optimizer step every second batch is a branch, and so is a new topology."""
    lanes = made(tmp_path, accumulate_steps=2, method="set", loop=loop)
    batched = jax.eval_shape(
        lanes._all_first, lanes._values, lanes._labels, lanes._images
    )
    common = lanes._apart(lanes.abstract).common
    parts = lanes._apart(batched)._replace(common=common)
    order = jax.eval_shape(lanes._orders, lanes._values, np.int32(0))
    data = lanes._values, lanes._labels, order, lanes._images
    program = str(jax.make_jaxpr(lanes._advance)(parts, np.int32(3), *data))
    assert program.count("cond[") >= 2


def test_weights_that_are_held_and_pruned_are_not_evaluated(tmp_path):
    lanes = made(tmp_path, method="ste", gradient="backprop")
    assert lanes.experiments[0].holds_pruned
    state = lanes._all_first(lanes._values, lanes._labels, lanes._images)
    parts = lanes._apart(state)
    live = lanes._live(parts._replace(common=[x[0] for x in parts.common]))
    masks = zs.sparsity.masks(state.opt_state)["conv"]["kernel"]
    kernel = state.params["conv"]["kernel"]
    np.testing.assert_array_equal(live["conv"]["kernel"], kernel * masks)
    assert 0 < masks.mean() < 1
    assert np.all(kernel != 0)


def test_draws_of_the_kind_rbg_are_refused(tmp_path):
    with jax.default_prng_impl("rbg"), pytest.raises(Apart, match="the kind rbg"):
        train(tmp_path)
    assert not list(tmp_path.iterdir())
