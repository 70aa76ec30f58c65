"""The study of `benchmarks`: its plan, its choice of radii and its statistics."""

import argparse
import itertools
import json
import math

import numpy as np
import pytest
import scipy.stats
from matplotlib import pyplot as plt

from benchmarks import record, study, study_flatness, study_plan, study_report
from benchmarks.side_by_side import Result
from benchmarks.study import Study
from benchmarks.study_plan import CONTENDERS, PROBLEMS, SAM, SGD, Training
from zosam_jax.runs.errors import Divergence

SHORTER = {f"SGD, 1/{n} of the epochs": 1.0 for n in (2, 4)}
"""The prices of the shorter trainings, which take the steps of SGD."""


@pytest.fixture
def args(tmp_path):
    return argparse.Namespace(
        problems=["digits-noise40"],
        methods=[SGD, SAM, "SAM, last half"],
        part="1/1",
        seeds=3,
        rounds=2,
        data_dir=None,
        runs=tmp_path / "runs",
        results=tmp_path,
    )


@pytest.fixture
def planned(args, monkeypatch):
    """A study with prices, and whose results the test says."""
    found = Study("digits-noise40", args)
    path = found.folder / "prices.json"
    path.parent.mkdir(parents=True)
    path.write_text(
        json.dumps({SGD: [1, 1, 1], SAM: [1.9, 2.0, 2.1], "SAM, last half": [2, 2, 3]})
    )
    known = {}
    monkeypatch.setattr(Study, "done", lambda self: known)
    return found, known


def flat(groups):
    return list(itertools.chain(*groups))


def ended(accuracy):
    return Result(accuracy, diverged=False)


def test_every_method_with_a_radius_tries_as_many(args):
    args.methods = list(CONTENDERS)
    tuning = flat(Study("digits-noise40", args).tuning())
    counts = {}
    for training in tuning:
        counts[training.method] = counts.get(training.method, 0) + 1
    assert set(counts.values()) == {len(study_plan.RADII) * len(study.TUNE_SEEDS)}
    assert counts.keys() == {m for m, row in CONTENDERS.items() if row.radii}
    # Radii are chosen by other seeds than those that are reported.
    assert not {t.seed for t in tuning} & set(range(100))
    configs = [Study("digits-noise40", args).config(t) for t in tuning]
    assert len({c.out for c in configs}) == len(configs)
    assert {c.validation for c in configs} == {study.HELD_OUT}


def test_all_contenders_can_be_made():
    for label, row in CONTENDERS.items():
        gradient = row.gradient(0.1, 100)
        assert (gradient.when is not None) == (row.share < 1), label
        assert row.gradient(0.1, None).when is None


def test_parts_share_the_trainings(args):
    args.methods = list(CONTENDERS)
    tuning = list(Study("digits-noise40", args).tuning())
    parts = [record.own_part(tuning, f"{i}/3") for i in (1, 2, 3)]
    assert sorted(flat(parts)) == sorted(tuning)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_the_radius_is_the_best_on_held_out_images(planned):
    found, known = planned
    assert found.radii() == {SGD: 0}
    tuning = [t for t in flat(found.tuning()) if t.method == SAM]
    for training in tuning[:-1]:
        known[training] = ended(0.9 if training.rho == 0.5 else 0.8)
    assert found.radii() == {SGD: 0}
    assert {t.method for t in flat(found.finals(found.methods))} == {SGD}
    # 0.8 and 0.95 at another radius: the mean over the seeds decides, not the best.
    known[tuning[-1]] = ended(0.95)
    assert found.radii() == {SGD: 0, SAM: 0.5}


def test_no_two_parts_train_one_method(planned):
    """Also while radii become known, one after another."""
    found, known = planned
    parts = [record.own_part(found.methods, f"{i}/2") for i in (1, 2)]
    seen = [set(), set()]
    for trainings in found.tuning():
        known |= dict.fromkeys(trainings, ended(0.5))
        for part, methods in enumerate(parts):
            seen[part] |= set(flat(found.finals(methods)))
    assert not seen[0] & seen[1]
    assert seen[0] | seen[1] == set(flat(found.finals(found.methods)))


def test_cheaper_methods_train_longer_at_equal_time(planned):
    found, known = planned
    known |= dict.fromkeys(flat(found.tuning()), ended(0.5))
    # A step of which half are perturbed, at 2 times SGD's cost, costs 1.5.
    assert found.prices() == {SGD: 1, SAM: 2, "SAM, last half": 1.5} | SHORTER
    found.methods = [*found.methods, "SGD, 1/2 of the epochs"]
    epochs = {(t.stage, t.method): t.epochs for t in flat(found.finals(found.methods))}
    whole = PROBLEMS["digits-noise40"].fields["epochs"]
    assert epochs == {
        ("epochs", SGD): whole,
        ("epochs", SAM): whole,
        ("epochs", "SAM, last half"): whole,
        ("time", SGD): 2 * whole,
        ("time", "SAM, last half"): round(whole * 2 / 1.5),
        ("epochs", "SGD, 1/2 of the epochs"): whole // 2,
    }


@pytest.mark.parametrize("part", ["3/2", "0/2", "x", "1", "1/x"])
def test_a_part_that_is_none_is_said(part):
    with pytest.raises(SystemExit, match="say i/n"):
        record.own_part("ab", part)


def test_a_study_that_is_not_done_is_not_merged(planned, args):
    found, known = planned
    with pytest.raises(SystemExit, match="0 of 30 trainings are done, and none to"):
        study.merge(args)
    known |= dict.fromkeys(flat(found.tuning()), ended(0.5))
    with pytest.raises(SystemExit, match=r"24 of 39 trainings are done\. Run"):
        study.merge(args)
    assert not (found.folder / study_report.RESULT).exists()


def test_gains_are_paired_by_seed(planned):
    found, known = planned
    known |= dict.fromkeys(flat(found.tuning()), ended(0.5))
    values = {SGD: (0.7, 0.8, 0.9), SAM: (0.75, 0.86, 0.94)}
    for training in flat(found.finals(found.methods)):
        if training.stage == "epochs" and training.method in values:
            known[training] = ended(values[training.method][training.seed])
    rows = {(r["stage"], r["method"]): r for r in study._rows(found)}
    assert rows.keys() == {("epochs", SGD), ("epochs", SAM)}
    row = rows["epochs", SAM]
    assert row["mean"] == pytest.approx(0.85)
    low, high = scipy.stats.ttest_rel(values[SAM], values[SGD]).confidence_interval()
    assert row["gain"]["mean"] == pytest.approx(0.05)
    assert 2 * row["gain"]["half_width"] == pytest.approx(high - low)
    assert rows["epochs", SGD]["to_sam"]["mean"] == pytest.approx(-0.05)
    (line,) = (x for x in study_report.table(list(rows.values())) if x[0] == SAM)
    own = ["+5.00 ± 2.48", "100 %", "", "", ""]
    assert line == [SAM, "0.05", "2.00", "", "85.00", *own]


def test_the_front_holds_what_no_other_beats():
    points = {"dear": (3, 5), "best": (2, 5), "cheap": (1, 1), "worse": (1, 0)}
    assert study_report.front(points) == ["cheap", "best"]


def test_a_picture_shows_every_method(planned, tmp_path):
    found, known = planned
    known |= dict.fromkeys(flat(found.tuning()), ended(0.5))
    for training in flat(found.finals(found.methods)):
        known[training] = ended(0.5 + 0.1 * training.seed + training.rho)
    rows = study._rows(found)
    study_report.draw(rows, tmp_path / "study.png")
    assert (tmp_path / "study.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("half_widths", "hidden"), [((0.01, 0.02), False), ((0.01, 0.6), True)]
)
def test_an_interval_is_cut_only_where_it_hides_the_others(half_widths, hidden):
    rows = [
        {"method": method, "time": price, "gain": {"mean": gain, "half_width": half}}
        for method, price, gain, half in zip(
            ("ASAM", SAM), (1.9, 2.0), (0.02, 0.06), half_widths, strict=True
        )
    ]
    _, axis = plt.subplots()
    study_report._panel(axis, rows, "time")
    bottom, top = axis.get_ylim()
    plt.close()
    assert top > 6 + 100 * half_widths[1]
    # In percentage points: five below the least gain, 2.
    assert (bottom == pytest.approx(-3)) == hidden
    assert (bottom < 6 - 100 * half_widths[1]) == (not hidden)


def test_times_of_a_busy_machine_are_not_kept(args, monkeypatch, capsys):
    """SGD against itself is the control."""
    found = small(args, monkeypatch)
    monkeypatch.setattr(study, "count_passes", lambda *_: {SGD: 1.0})
    again = [1.0, 1.3, 1.5]
    timed = {SGD: [1.0], SAM: [2.0], study.AGAIN: again}
    monkeypatch.setattr(study, "time_steps", lambda *_: timed)
    found.measure()
    assert found.prices() is None
    assert "SGD took 1.30 times as long as SGD" in capsys.readouterr().out
    again[1:] = [1.05, 1.1]
    found.measure()
    assert found.prices() == {SGD: 1, SAM: 2} | SHORTER


def test_the_time_of_a_step_is_that_of_its_steps(args, monkeypatch):
    """Windows are as long as asked for, and the ratios those of the clock."""
    clock, pace = [0.0], {SGD: 1 / 64, SAM: 3 / 64}
    found = small(args, monkeypatch)

    def program(_, label):
        def step(state):
            clock[0] += pace[label]
            return state + 1

        return step, 0

    monkeypatch.setattr(study, "_program", program)
    monkeypatch.setattr(study.time, "perf_counter", lambda: clock[0])
    ratios = study.time_steps(found, [SGD, SAM], 2)
    assert ratios.keys() == {SGD, SAM, study.AGAIN}
    np.testing.assert_allclose(ratios[SAM], [3, 3])
    np.testing.assert_allclose(ratios[study.AGAIN], [1, 1])
    # One step of each, then three rounds of windows, of which one warms up.
    assert clock[0] * 64 == (1 + 3 + 1) * (1 + 3 * math.ceil(study.WINDOW * 64))


@pytest.mark.parametrize(
    ("label", "gradients"),
    [
        (SGD, 1),
        ("SAM, 1/4 of the batch", 1.25),
        ("LookSAM, k=5", 1.2),
        ("ZO-SAM", 5 / 3),
    ],
)
def test_the_gradients_of_a_step_are_counted(args, monkeypatch, label, gradients):
    counted = study.count_passes(small(args, monkeypatch), [label])
    assert counted == {label: pytest.approx(gradients)}


SMALL = {**PROBLEMS["digits-noise40"].fields, "model_options": ("hidden=(8,)",)}


def small(args, monkeypatch, **fields):
    problem = study_plan.Problem({**SMALL, "epochs": 2}, train=130, **fields)
    monkeypatch.setitem(PROBLEMS, "digits-noise40", problem)
    return Study("digits-noise40", args)


def test_trainings_side_by_side_are_those_one_by_one(args, monkeypatch):
    """Seeds and radii in one program: the accuracies of runs of the trainer."""
    lanes = [(0.1, 3), (2.0, 3), (2.0, 4)]
    trainings = [
        Training("digits-noise40", "epochs", "SAM, last half", rho, seed, 2)
        for rho, seed in lanes
    ]
    alone = small(args, monkeypatch)
    assert alone.execute(trainings)
    args.results = args.results / "together"
    together = small(args, monkeypatch, side_by_side=True)
    assert together.execute(trainings[:1])
    assert together.execute(trainings)
    assert together.done() == alone.done()
    assert len(together.log.rows()) == 3
    assert len({r.accuracy for r in together.done().values()}) == 3


def test_a_training_is_made_once(args, monkeypatch):
    found = small(args, monkeypatch)
    training = Training("digits-noise40", "epochs", SGD, 0.0, 3, 2)
    assert found.execute([training])
    (result,) = found.done().values()
    assert 0 < result.accuracy < 1
    monkeypatch.setattr(study, "run", None)
    assert found.execute([training])
    config = found.config(training)
    assert (config.label_noise, config.seed, config.validation) == (0.4, 3, 0.0)


def test_a_training_that_diverges_counts_as_guessing(args, monkeypatch):
    found = small(args, monkeypatch)

    def diverging(*_, **__):
        raise Divergence("the loss is not finite at step 3")

    monkeypatch.setattr(study, "run", diverging)
    training = Training("digits-noise40", "epochs", SGD, 0.0, 3, 2)
    assert found.execute([training])
    assert found.done() == {training: Result(0.1, diverged=True)}


@pytest.mark.quick
def test_flatness_has_means_and_deviations_of_what_did_not_diverge():
    figures = {"accuracy": 0.9, "corrupted": 0.5, "eigenvalue": 20.0, "rise": 0.25}
    rows = [
        {"method": "SAM", "rho": 0.5, "diverged": False, **figures, "accuracy": x}
        for x in (0.8, 0.9, 1.0)
    ]
    rows.append({"method": "SAM", "rho": 0.5, "diverged": True})
    header, line = study_report.flatness(rows)
    assert header[:3] == ["method", "rho", "top-1, %"]
    assert line[:3] == ["SAM", "0.5", "90.0 ± 10.0"]
    assert line[3:] == ["50.0 ± 0.0", "20.0 ± 0.0", "0.25 ± 0", "1"]


def test_the_networks_that_are_looked_at_have_the_radii_of_the_study(args):
    found = study_flatness.chosen(Study("digits-noise40", args))
    assert set(found) == set(study_flatness.METHODS)
    assert found["SGD"] == (0.0, 60)
    assert found["SGD, 1/4 of the epochs"] == (0.0, 15)
    assert found["SAM"] == (0.5, 60)
