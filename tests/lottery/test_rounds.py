"""Rounds of training, pruning and rewinding on a tiny network, in this process."""

import json
import shutil
import signal

import jax
import numpy as np
import optax
import pytest
import tiny_run
from tiny_lottery import Recorder, leaf_masks, search, spy, state_at
from tiny_lottery import template as make_template

from zosam_jax.lottery import tickets
from zosam_jax.runs import files, folder, metrics
from zosam_jax.runs.record import read_all
from zosam_jax.train import RunError

# 3 x 3 x 1 x 8 and 8 x 4 weights are prunable; 60 % of 104 is 62.4.
PRUNABLE, LIVE = 104, [104, 66, 42]


def final_states(path, template):
    return [
        state_at(path / f"round-{j:02}" / "checkpoints", 12, template) for j in range(3)
    ]


def figures(path):
    """The metrics of all rounds but for those of the clock."""
    clock = ("seconds", "images_per_second")
    return [
        {name: value for name, value in record.items() if name not in clock}
        for j in range(3)
        for record in metrics.read(path / f"round-{j:02}" / "metrics.jsonl")
    ]


@pytest.fixture(scope="module")
def template():
    """Shapes of the state, the same in all rounds."""
    return make_template()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted search of three rounds, weights rewound to epoch 1."""
    path = tmp_path_factory.mktemp("whole") / "search"
    with pytest.MonkeyPatch.context() as monkeypatch:
        starts = spy(monkeypatch)
        show = Recorder()
        result = search(path, display=show)
    return result, starts, show


def prune(params, masks, count):
    """The `count` largest live magnitudes of all prunable leaves, by a stable sort."""
    leaves = [np.abs(x) for x in jax.tree.leaves(params)]
    sparse = [i for i, m in enumerate(masks) if m.ndim]
    score = np.concatenate([np.where(masks[i], leaves[i], -1).ravel() for i in sparse])
    kept = np.zeros(score.size, bool)
    kept[np.argsort(-score, kind="stable")[:count]] = True
    new, start = list(masks), 0
    for i in sparse:
        new[i] = kept[start : start + masks[i].size].reshape(masks[i].shape)
        start += masks[i].size
    return new


def test_each_round_has_the_largest_weights_of_the_one_before(whole, template):
    result, _, _ = whole
    finals = final_states(result.folder, template)
    masks = [leaf_masks(state) for state in finals]
    assert all(m.all() for m in masks[0])
    for j, expected in enumerate(LIVE):
        assert sum(int(m.sum()) for m in masks[j] if m.ndim) == expected
        if j:
            for new, own in zip(
                prune(finals[j - 1].params, masks[j - 1], expected),
                masks[j],
                strict=True,
            ):
                np.testing.assert_array_equal(new, own)
        for m, x in zip(masks[j], jax.tree.leaves(finals[j].params), strict=True):
            assert not np.any(x[~m]) or not m.ndim


def test_rewound_weights_are_those_of_the_epoch_on_the_mask(whole, template):
    """All of the state, bit for bit: step 4 of the first round, but for pruned ones."""
    result, starts, _ = whole
    assert starts[0] is None
    early = state_at(result.folder / "rewind", 4, template)
    assert early.step == 4
    for j in (1, 2):
        start = starts[j]
        masks = leaf_masks(start)
        for part in (
            lambda s: s.params,
            lambda s: optax.tree_utils.tree_get(s.opt_state.inner, "trace"),
        ):
            for m, old, new in zip(
                masks,
                jax.tree.leaves(part(early)),
                jax.tree.leaves(part(start)),
                strict=True,
            ):
                np.testing.assert_array_equal(new, np.where(m, old, np.float32(0)))
                assert np.any(old[~m]) or not m.ndim
        rest = early._replace(params=start.params, opt_state=start.opt_state)
        tiny_run.assert_same(start, rest)
        tiny_run.assert_same(start.opt_state.step, early.opt_state.step)
        tiny_run.assert_same(start.opt_state.gradient, early.opt_state.gradient)


def test_a_full_mask_repeats_the_first_round(whole, template):
    """With nothing pruned, rewinding to epoch 1 ends where round 0 ended."""
    path = whole[0].folder
    early = state_at(path / "rewind", 4, template)
    trained = final_states(path, template)[0]
    fresh = state_at(path / "rewind", 0, template)
    same = tickets.ticket(trained, early, fresh, 0.0, rewind="weights")
    tiny_run.assert_same(same, early)


def test_the_record_of_a_search(whole):
    result, _, show = whole
    assert result.status == "finished"
    content = json.loads((result.folder / "lottery.json").read_text())
    assert content["rounds"] == result.rounds
    assert content["config"]["rounds"] == 2
    for j, record in enumerate(result.rounds):
        path = result.folder / record["folder"]
        summary = json.loads((path / "summary.json").read_text())
        assert record["weights_live"] == LIVE[j]
        assert record["density"] == LIVE[j] / PRUNABLE
        assert record["density_nominal"] == pytest.approx(0.4 ** (j / 2), rel=1e-15)
        assert record["test_accuracy"] == summary["test_accuracy"]
        chosen = folder.read_config(path)["config"]
        origin = folder.read_config(path)["lottery"]
        assert (chosen["method"], origin["round"], origin["rounds"]) == ("ticket", j, 2)
        assert (origin["final_sparsity"], origin["rewind_epoch"]) == (0.6, 1)
        assert chosen["sparsity"] == pytest.approx(1 - 0.4 ** (j / 2), rel=1e-15)
        steps = [r["step"] for r in metrics.read(path / "metrics.jsonl")]
        assert steps == ([4, 4] if j == 0 else []) + [8, 8, 12, 12]
        # Only the first round compiles anything.
        assert bool(summary["compile_seconds"]) == (j == 0)
    rates = [
        r["learning_rate"] for r in figures(result.folder) if r["split"] == "train"
    ]
    assert rates[3:5] == rates[5:7] == rates[1:3]
    assert show.said[-1].split()[:2] == ["round-02", "40.38%"]


def test_report_reads_the_rounds(whole, tmp_path):
    path = whole[0].folder
    rounds = sorted(path.glob("round-*"))
    names = [run.name for run in read_all(rounds)]
    assert names == ["round-00", "round-01", "round-02"]
    assert read_all([path]) == read_all(rounds)
    shutil.copytree(rounds[0], tmp_path / "other")
    mixed = read_all([path, tmp_path / "other"])
    assert [run.name for run in mixed][2:] == ["search/round-02", "other"]


def test_a_finished_search_does_nothing(whole):
    result, _, _ = whole
    before = {p: p.stat().st_mtime_ns for p in result.folder.rglob("*")}
    again = search(result.folder, keep=3)
    assert (again.status, again.rounds) == ("unchanged", result.rounds)
    assert before == {p: p.stat().st_mtime_ns for p in result.folder.rglob("*")}


def test_a_search_that_was_killed_before_its_last_record_gets_it(whole, tmp_path):
    path = tmp_path / "search"
    shutil.copytree(whole[0].folder, path)
    record = path / "lottery.json"
    known = json.loads(record.read_text())
    rounds = known["rounds"]
    files.write_json(record, {**known, "rounds": rounds[:-1]})
    (path / "lottery.json.tmp").write_text("{")
    again = search(path)
    assert (again.status, again.rounds) == ("unchanged", rounds)
    assert json.loads(record.read_text())["rounds"] == rounds
    assert not (path / "lottery.json.tmp").exists()


def assert_as_whole(path, whole, template):
    for a, b in zip(
        final_states(path, template),
        final_states(whole[0].folder, template),
        strict=True,
    ):
        tiny_run.assert_same(a, b)
    assert figures(path) == figures(whole[0].folder)


@pytest.mark.parametrize(("round_", "step"), [(0, 6), (1, 9)])
def test_a_search_goes_on_within_a_round(whole, template, tmp_path, round_, step):
    path = tmp_path / "search"
    cut = search(path, display=Recorder(round_, step))
    assert (cut.status, cut.signal) == ("interrupted", signal.SIGTERM)
    assert len(cut.rounds) == round_
    result = search(path)
    assert result.rounds == whole[0].rounds
    assert_as_whole(path, whole, template)


def test_a_search_goes_on_between_rounds_and_after_a_signal_at_the_end_of_one(
    whole, template, tmp_path
):
    path = tmp_path / "search"
    with pytest.raises(KeyboardInterrupt):
        search(path, display=Recorder(1))
    assert not (path / "round-01").exists()

    class AtTheEnd(Recorder):
        def epoch(self, status):
            if status.step == 12:
                signal.raise_signal(signal.SIGTERM)

    cut = search(path, display=AtTheEnd())
    assert (cut.status, cut.signal) == ("interrupted", signal.SIGTERM)
    assert (path / "round-01" / "summary.json").exists()
    assert not (path / "round-02").exists()
    assert search(path).rounds == whole[0].rounds
    assert_as_whole(path, whole, template)


def test_a_killed_round_leaves_nothing_that_the_next_call_needs(
    whole, template, tmp_path
):
    """As if killed before the first checkpoint of round 2, its record half written."""
    path = tmp_path / "search"
    shutil.copytree(whole[0].folder, path)
    last = path / "round-02"
    (last / "summary.json").unlink()
    shutil.rmtree(last / "checkpoints")
    text = (last / "metrics.jsonl").read_text()
    (last / "metrics.jsonl").write_text(text[: len(text) // 3])
    assert search(path).rounds == whole[0].rounds
    assert_as_whole(path, whole, template)


def test_a_damaged_last_checkpoint_is_no_ticket(whole, tmp_path):
    path = tmp_path / "search"
    shutil.copytree(whole[0].folder, path)
    shutil.rmtree(path / "round-02")
    for file in (path / "round-01" / "checkpoints" / "12" / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(b"noise")
    with pytest.raises(RunError, match="step 12") as error:
        search(path)
    assert f"Delete {path / 'round-01' / 'summary.json'}" in str(error.value)
    (path / "round-01" / "summary.json").unlink()
    assert search(path).rounds == whole[0].rounds


def test_rewound_learning_rate_keeps_the_trained_weights(
    tmp_path, template, monkeypatch
):
    path = tmp_path / "search"
    starts = spy(monkeypatch)
    result = search(path, rewind="learning-rate", rewind_epoch=2)
    finals = final_states(path, template)
    assert [r["weights_live"] for r in result.rounds] == LIVE
    for j in (1, 2):
        start, before = starts[j], finals[j - 1]
        masks = leaf_masks(start)
        assert start.step == 8
        assert start.opt_state.step == 8
        for m, old, new in zip(
            masks,
            jax.tree.leaves(before.params),
            jax.tree.leaves(start.params),
            strict=True,
        ):
            np.testing.assert_array_equal(new, np.where(m, old, np.float32(0)))
        tiny_run.assert_same(start.model_state, before.model_state)
        trace = optax.tree_utils.tree_get(start.opt_state.inner, "trace")
        assert not any(np.any(x) for x in jax.tree.leaves(trace))
        assert optax.tree_utils.tree_get(start.opt_state.inner, "count") == 8
        # What comes of it is the last epoch of the schedule.
        records = metrics.read(path / f"round-{j:02}" / "metrics.jsonl")
        assert [r["step"] for r in records] == [12, 12]


def test_per_layer_search_and_a_method_with_memory(tmp_path):
    result = search(tmp_path / "search", per_layer=True, gradient="vasso", rounds=1)
    # 72 - round(43.2) and 32 - round(19.2).
    assert result.rounds[1]["weights_live"] == 29 + 13


def test_other_rounds_are_another_search(whole, tmp_path):
    path = tmp_path / "search"
    shutil.copytree(whole[0].folder, path)
    with pytest.raises(RunError, match="rounds: 2 -> 3"):
        search(path, rounds=3)
    with pytest.raises(RunError, match=r"there is no config\.json"):
        tiny_run.train(path)
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError, match=r"there is no lottery\.json"):
        search(tmp_path, overwrite=True)
    (path / "notes.txt").write_text("mine")
    (path / "round-02" / "notes.txt").write_text("mine")
    result = search(path, rounds=1, rewind_epoch=0, overwrite=True)
    assert [r["weights_live"] for r in result.rounds] == [104, 42]
    assert (path / "notes.txt").exists()
    assert [p.name for p in (path / "round-02").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("rewind", ["weights", "learning-rate"])
def test_the_moving_average_is_rewound_with_the_weights(tmp_path, monkeypatch, rewind):
    """On the new mask: that of the epoch, or, begun anew, the weights themselves."""
    starts = spy(monkeypatch)
    result = search(tmp_path / "a", ema=0.9, rewind=rewind, rounds=1)
    assert result.status == "finished"
    start = starts[1]
    expected = start.params, start.model_state
    if rewind == "weights":
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), start)
        expected = state_at(tmp_path / "a" / "rewind", 4, like).average
    masks = leaf_masks(start)
    for m, old, new in zip(
        masks,
        *(jax.tree.leaves(average[0]) for average in (expected, start.average)),
        strict=True,
    ):
        np.testing.assert_array_equal(new, np.where(m, old, np.float32(0)))
    tiny_run.assert_same(start.average[1], expected[1])
