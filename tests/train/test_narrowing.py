"""A training whose network becomes smaller, against the same training uncut."""

import contextlib
import dataclasses
import functools
import json
import time

import jax
import numpy as np
import pytest
import tiny_run

import zosam_jax as zs
from zosam_jax.models import mlp, resnet
from zosam_jax.train import RunError, TrainConfig, cutting, load_run, loop, run
from zosam_jax.train.checkpoint import Checkpoints, snapshot
from zosam_jax.train.objects import Objects

MLP = {"model": "mlp", "model_options": ("hidden=(12, 8)",)}
CHASE = {
    "method": "chase",
    "update_interval": 5,
    "method_options": ("unit_sparsity=0.6", "unit_stop_fraction=0.6"),
}
UNITS = {"method": "units", "update_interval": 3, "stop_fraction": 0.3}


def config(out, **fields):
    """Eight epochs of four steps."""
    usual = {"gradient": "backprop", "epochs": 8, "compact_every": 3}
    return tiny_run.config(out, **{**usual, **MLP, **fields})


def prepared(chosen, **objects):
    """The traced programs."""
    return loop.prepare(chosen, Objects(tiny_run.dataset(), **objects).made())


def assert_close(found, wanted, rtol=2e-4):
    """To rounding, relative to the largest entry; masks and counts exactly."""
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True)
    for x, y in pairs:
        if np.issubdtype(np.asarray(x).dtype, np.floating):
            scale = np.max(np.abs(y), initial=1e-2)
            np.testing.assert_allclose(x, y, rtol=0, atol=rtol * scale)
        else:
            np.testing.assert_array_equal(x, y)


def unread(model, state):
    """The cut of all units that nothing reads."""
    return zs.sparsity.compact(
        model,
        state.params,
        zs.sparsity.masks(state.opt_state),
        model_state=state.model_state,
        fold=False,
    )


def unit_masks(params, rows):
    """Half of all weights, and the first units of some layers whole, are pruned."""
    rng = np.random.default_rng(0)
    masks = jax.tree.map(
        lambda x: rng.random(x.shape) < 0.5 if x.ndim > 1 else True, params
    )
    for path, count in rows.items():
        leaf = masks
        for part in path.split("/"):
            leaf = leaf[part]
        leaf[..., :count, :] = False
    return masks


def fixed(model, rows, **fields):
    """Programs with masks that never change."""
    params, _ = zs.models.initialize(model, jax.random.key(0), (6, 6, 1))
    method = zs.sparsity.static(masks=unit_masks(params, rows))
    chosen = TrainConfig(batch_size=16, epochs=8, compact_every=3, **fields)
    return prepared(chosen, model=model, method=method)


def of_resnet():
    model = resnet.ResNet(blocks=1, num_classes=4, channels=(6,))
    rows = {"stage1_block0/conv2/kernel": 4}
    return fixed(model, rows, gradient="fsam", ema=0.9, clip_norm=0.5)


def of_mlp(gradient):
    model = mlp.MLP(num_classes=4, hidden=(12, 8))
    return fixed(model, {"hidden2/kernel": 7, "head/kernel": 2}, gradient=gradient)


CASES = {
    "resnet, fsam": (of_resnet, 4),
    # Any unit may come back until the last change, in step 9.
    "mlp, units": (lambda: prepared(config("x", **UNITS, nesterov=True)), 12),
}


def advanced(compiled, state, stop):
    """The state at a step."""
    advance = tiny_run.advance(compiled.experiment)
    while state.step < stop:
        state = advance(state)
    return state


@pytest.mark.parametrize("case", CASES)
def test_the_state_is_that_of_the_whole_network(case):
    """Weights, statistics, moments, averages and masks after 30 steps."""
    make, step = CASES[case]
    compiled = make()
    early = snapshot(tiny_run.begin(compiled.experiment))
    if "units" in case:
        assert cutting.cut(compiled, early) is None
    early = snapshot(advanced(compiled, early, step))
    found = cutting.cut(compiled, early)
    assert found.compiled.experiment.network["masks_fixed"]
    narrow = snapshot(advanced(found.compiled, found.state, 30))
    whole = snapshot(advanced(compiled, early, 30))
    small = unread(compiled.experiment.model, whole)
    assert dict(found.compiled.experiment.model.widths) == small.widths
    assert_close(narrow, small.cut(whole))


def test_random_directions_are_others_in_the_shape_of_a_smaller_network():
    """After the cut it is a training of its own, on the same masks."""
    compiled = of_mlp("zosam")
    early = snapshot(advanced(compiled, tiny_run.begin(compiled.experiment), 4))
    found = cutting.cut(compiled, early)
    assert_close(found.state, unread(compiled.experiment.model, early).cut(early), 0)
    narrow = snapshot(advanced(found.compiled, found.state, 12))
    whole = snapshot(advanced(compiled, early, 12))
    expected = unread(compiled.experiment.model, whole).cut(whole)
    masks = [zs.sparsity.masks(x.opt_state) for x in (narrow, expected)]
    assert_close(*masks)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_close(narrow.params, expected.params)
    # Neither strays: both perturb by the same radius, along other directions.
    norms = [x.totals.perturbation_norm / x.totals.steps for x in (narrow, expected)]
    np.testing.assert_allclose(*norms, rtol=1e-3)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(narrow.params))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same training, uncut and cut, as runs in folders; a cut takes an hour."""
    place = tmp_path_factory.mktemp("runs")
    clock, make, hours = time.perf_counter, cutting.cut, []

    def cut(*args):
        found = make(*args)
        if found is not None:
            hours.append(3600)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cutting, "cut", cut)
        patch.setattr(time, "perf_counter", lambda: clock() + sum(hours))
        for name, every in (("whole", None), ("narrow", 3)):
            go(of_run(place / name, every))
    assert hours
    return place


@functools.cache
def of_runs():
    """The programs of the whole network, which all these runs share."""
    return prepared(of_run("x"))


def go(chosen, display=None):
    compiled, data = of_runs().again(), tiny_run.dataset()
    return run(chosen, dataset=data, compiled=compiled, display=display)


def of_run(out, every=3):
    # At larger rates, 30 steps multiply rounding a thousandfold.
    fields = {"gradient": "sam", "ema": 0.9, "keep": 9, "learning_rate": 0.02}
    return config(out, **CHASE, **fields, compact_every=every)


def figures(out):
    return [
        [line[name] for name in ("loss", "accuracy", "sparsity")]
        for line in tiny_run.records(out)
    ]


def last_state(out, compiled):
    """The state in the last checkpoint, and what is said of its network."""
    with contextlib.closing(Checkpoints(out / "checkpoints", 9)) as found:
        network = found.network(found.steps()[-1])
        return found.read(found.steps()[-1], compiled.like(network)), network


def test_a_cut_run_has_the_numbers_of_the_uncut_one(runs):
    np.testing.assert_allclose(
        figures(runs / "narrow"), figures(runs / "whole"), rtol=1e-4
    )
    whole, narrow = (
        json.loads((runs / name / "summary.json").read_text())
        for name in ("whole", "narrow")
    )
    # The clock stands still meanwhile, as for every compilation.
    assert narrow["seconds"] < 3600
    for name in ("parameters", "parameters_live", "parameters_removable", "sparsity"):
        assert narrow[name] == whole[name]
    assert narrow["layers"] == pytest.approx(whole["layers"])
    assert narrow["flops_share"] == pytest.approx(whole["flops_share"], rel=0.05)


def test_units_that_chase_removes_are_cut_while_its_masks_change(runs):
    """Moments, averages and the counts of the method too."""
    compiled = of_runs()
    (whole, none), (narrow, network) = (
        last_state(runs / name, compiled) for name in ("whole", "narrow")
    )
    assert none is None
    assert network["widths"]
    assert not network["masks_fixed"]
    model = compiled.experiment.model
    small = unread(model, whole)
    # What the last steps pruned may be there still, if it was not worth a cut.
    rest = unread(model.clone(widths=network["widths"]), narrow)
    assert rest.widths == small.widths
    memories = [x.opt_state.memory for x in (narrow, whole)]
    for name in ("target", "live"):
        np.testing.assert_array_equal(*(getattr(x, name) for x in memories))
    assert [x.sum() for x in memories[0].rule] == [x.sum() for x in memories[1].rule]
    assert sum(x.size for x in memories[0].rule) < sum(x.size for x in memories[1].rule)
    found, expected = (
        x._replace(opt_state=x.opt_state._replace(memory=()))
        for x in (rest.cut(narrow), small.cut(whole))
    )
    assert_close(found, expected)


def test_a_cut_run_is_loaded_and_exported(runs, tmp_path):
    whole, narrow = (load_run.load(runs / name) for name in ("whole", "narrow"))
    assert narrow.num_parameters < whole.num_parameters
    images = tiny_run.dataset().test_images
    expected = whole.probabilities(images)
    np.testing.assert_allclose(narrow.probabilities(images), expected, atol=1e-4)
    file = narrow.save(tmp_path / "a.safetensors")
    np.testing.assert_allclose(zs.load(file).probabilities(images), expected, atol=1e-4)
    # Each checkpoint has a network of its own.
    past = list(narrow.history())
    sizes = [net.num_parameters for net in past]
    assert sizes == sorted(sizes, reverse=True)
    assert (sizes[0], sizes[-1]) == (whole.num_parameters, narrow.num_parameters)
    tiny_run.assert_same(past[-1].variables, narrow.variables)
    options = [net.config.model_options for net in past]
    assert options[0] == whole.config.model_options
    assert options[-1][-1] == f"widths={dict(narrow.model.widths)!r}"


def test_a_run_resumes_after_a_cut_to_the_same_numbers(runs, tmp_path):
    """Interrupted before a cut and after it."""
    out, compiled = tmp_path / "run", of_runs()
    for step in (6, 20):
        assert go(of_run(out), tiny_run.Recorder(step)).status == "interrupted"
    assert last_state(out, compiled)[1] is not None
    assert go(of_run(out)).status == "finished"
    assert figures(out) == figures(runs / "narrow")
    ends = [last_state(x, compiled)[0] for x in (out, runs / "narrow")]
    tiny_run.assert_same(*ends)


REFUSED = {
    "dense": ({"method": "dense"}, "a dense training prunes nothing"),
    "ste": ({"method": "ste", "update_interval": None}, "trains pruned weights too"),
    "to the end": ({"method": "rigl", "stop_fraction": 1.0}, "optimizer step 30 of"),
    "too rare": ({**UNITS, "compact_every": 8}, "no cut comes after that"),
    "factors": (
        {**CHASE, "model_options": ("hidden=(200, 150)",), "optimizer": "adafactor"},
        "not in the shape of a parameter, .*v_row/hidden2/kernel",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_cut_is_refused(case):
    fields, message = REFUSED[case]
    chosen = config("x", **fields)
    with pytest.raises(RunError, match=f"compact_every=.*{message}"):
        cutting.check(chosen, prepared(dataclasses.replace(chosen, compact_every=None)))


def test_a_model_without_units_is_refused():
    chosen = TrainConfig(batch_size=16, epochs=3, method="random", compact_every=1)
    with pytest.raises(RunError, match="does not say where its units are"):
        prepared(chosen, model=tiny_run.Net())
