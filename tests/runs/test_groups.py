import numpy as np
import pytest
import scipy.stats

from zosam_jax.runs import groups
from zosam_jax.runs.config import TrainConfig
from zosam_jax.runs.errors import RunError
from zosam_jax.runs.groups import FIGURES
from zosam_jax.runs.record import RunRecord


def make(accuracy=0.9, finished=True, origin=None, evaluation=None, **fields):
    config = TrainConfig(**fields).record()
    metrics = [
        {
            "step": e,
            "epoch": e,
            "split": "test",
            "accuracy": accuracy * e / 3,
            "seconds": 10.0 * e + fields.get("seed", 0),
        }
        for e in (1, 2, 3)
    ]
    summary = {"test_accuracy": accuracy} if finished else None
    return RunRecord("run", config, metrics, summary, origin or {}, evaluation)


def labels(runs):
    return [each.label for each in groups.group(runs)]


def test_runs_that_differ_in_seed_alone_are_a_group():
    runs = [
        make(
            gradient=gradient, seed=seed, out=f"{gradient}{seed}", log_every=seed + 1.0
        )
        for seed in (0, 1, 2)
        for gradient in ("zosam", "backprop")
    ]
    found = groups.group(runs)
    assert [each.label for each in found] == ["gradient=zosam", "gradient=backprop"]
    assert [len(each.members) for each in found] == [3, 3]
    assert labels(runs[:1]) == ["digits, resnet20, rigl, 0.9, zosam"]
    assert labels([]) == []


def test_what_else_tells_runs_apart():
    own = {"objects": {"gradient": "mine (given)"}}
    rounds = [{"lottery": {"round": n, "rounds": 3}} for n in (0, 1)]
    runs = [make(), make(origin=own), *(make(origin=each) for each in rounds)]
    assert len(groups.group(runs)) == 4
    # A field that an older version did not record has its default.
    old = make()
    del old.config["probe_fraction"]
    assert len(groups.group([old, make(seed=1)])) == 1
    # JSON has lists where a configuration has tuples.
    read = make(seed=1)
    read.config["milestones"] = list(read.config["milestones"])
    assert len(groups.group([make(), read])) == 1


def test_only_finished_runs_count_and_each_seed_once():
    runs = [
        make(0.5, seed=0, finished=False),
        make(0.6, seed=1),
        make(0.7, seed=0),
        make(0.8, seed=1),
    ]
    (found,) = groups.group(runs)
    assert found.values(FIGURES["test_accuracy"]) == {1: 0.6, 0: 0.7}
    assert found.seeds == 2


def test_the_statistics_of_a_figure_are_those_of_scipy():
    rng = np.random.default_rng(0)
    a, b = rng.uniform(0.8, 0.9, (2, 5))
    # Seeds of the baseline in another order, and one more.
    base = {4 - n: x for n, x in enumerate(b[::-1].tolist())} | {9: 0.1}
    row = groups.row(dict(enumerate(a.tolist())), base)
    test = scipy.stats.ttest_rel(a, b)
    low, high = test.confidence_interval()
    assert row is not None
    assert row.p_value is not None
    assert row.deviation is not None
    assert row.half_width is not None
    assert row.difference_half_width is not None
    assert (row.n, row.pairs) == (5, 5)
    np.testing.assert_allclose(row.mean, np.mean(a))
    np.testing.assert_allclose(row.deviation, scipy.stats.tstd(a))
    np.testing.assert_allclose(row.half_width, 2.7764451 * scipy.stats.sem(a))
    assert row.difference == pytest.approx(np.mean(a - b))
    np.testing.assert_allclose(2 * row.difference_half_width, high - low)
    np.testing.assert_allclose(row.p_value, test.pvalue)


def test_few_values_have_fewer_statistics():
    assert groups.row({}, None) is None
    assert groups.row({0: 0.5}, {0: 0.4}) == (1, 0.5, None, None, 0, None, None, None)
    row = groups.row({0: 0.5, 1: 0.7}, {0: 0.4})
    assert (row.n, row.pairs, row.difference) == (2, 0, None)


def test_the_baseline_of_a_grid_agrees_in_the_other_fields():
    grid = [("backprop", 0.9), ("backprop", 0.98), ("zosam", 0.9), ("zosam", 0.98)]
    runs = [make(gradient=g, sparsity=s, rho=None) for g, s in grid]
    runs.append(make(gradient="zosam", sparsity=0.9, rho=0.1))
    found = groups.group(runs)
    chosen = groups.baselines(found, ["gradient=backprop"])
    assert chosen == [None, None, found[0], found[1], found[0]]
    (dense,) = groups.baselines(groups.group(runs[:1]), ["--gradient=backprop"])
    assert dense is None
    one = groups.baselines(found, ["gradient=backprop", "sparsity=0.9"])
    assert one == [None, *[found[0]] * 4]
    for named, message in (
        (["gradient=sam"], "none of the groups"),
        (["gradient"], "must be FIELD=VALUE"),
        (["colour=red"], "must be FIELD=VALUE"),
    ):
        with pytest.raises(RunError, match=message):
            groups.baselines(found, named)
    other = groups.group([*runs[:2], make(gradient="sam", sparsity=0.5)])
    with pytest.raises(RunError, match="several groups could be the baseline of"):
        groups.baselines(other, ["gradient=backprop"])


def test_curves_are_means_with_deviations_over_common_epochs():
    runs = [make(0.3, seed=0), make(0.6, seed=1), make(0.9, seed=2, finished=False)]
    del runs[2].metrics[2]
    (found,) = groups.group(runs)
    band = found.curve("test", "accuracy")
    assert band.epochs == [1, 2]
    values = np.array([[0.1, 0.2], [0.2, 0.4], [0.3, 0.6]])
    np.testing.assert_allclose(band.means, values.mean(0))
    np.testing.assert_allclose(band.deviations, values.std(0, ddof=1))
    assert found.curve("test", "loss") == ([], [], [])


def test_epochs_to_a_target_count_runs_that_reach_it():
    runs = [make(0.9, seed=0), make(0.6, seed=1), make(0.5, seed=2)]
    (found,) = groups.group(runs)
    figure = groups.epochs_to(0.6)
    assert figure.title == "epochs to 60 %"
    assert found.values(figure) == {0: 2, 1: 3}
    figure = groups.seconds_to(0.6)
    assert figure.title == "seconds to 60 %"
    # Of the first epoch that reaches it, though later ones do too.
    assert found.values(figure) == {0: 20, 1: 31}
