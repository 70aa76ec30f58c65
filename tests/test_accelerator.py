"""How the minutes of an accelerator are spent, with made-up pieces and clock."""

import argparse
import dataclasses
import json
from pathlib import Path

import pytest

from benchmarks import accelerator, accelerator_tables, record, tables, throughput
from benchmarks.accelerator import GRACE, LEAST, Piece
from zosam_jax.train import choices, preset


class Machine:
    """Pieces that take a known time, on a clock that only they move."""

    def __init__(self, folder: Path, times: dict[str, float]):
        self.now, self.times, self.ran = 0.0, times, []
        self.failing: set[str] = set()
        self.written = 0
        self.log = record.Log(folder / "pieces.jsonl", {"small": True, "device": "x"})

    def run(self, group: list[Piece], seconds: float) -> list[accelerator.Outcome]:
        names = [piece.name for piece in group]
        self.ran.append(" ".join(names))
        self.now += min(max(self.times[name] for name in names), seconds)
        return [
            "cut"
            if self.times[name] > seconds
            else ("failed" if name in self.failing else "done")
            for name in names
        ]

    def finished(self):
        self.written += 1
        assert len(self.log.rows()) == self.written

    def spend(self, plan: list[Piece], seconds: float, at_once: int = 1) -> list[str]:
        """Returns the pieces of one call; names of those side by side have a space."""
        self.ran, start, self.written = [], self.now, len(self.log.rows())
        given = self.log, seconds, self.run, self.finished, at_once
        accelerator.spend(lambda: plan, *given, lambda: self.now)
        assert self.now - start <= seconds - GRACE
        return self.ran


def piece(name: str, seconds: float, **fields) -> Piece:
    return Piece(name, fields.pop("kind", name), seconds, (), **fields)


def test_the_first_that_fits_is_taken_and_nothing_is_done_twice(tmp_path):
    plan = [piece("a", 100), piece("large", 900), piece("b", 50), piece("c", 10)]
    machine = Machine(tmp_path, {"a": 100, "large": 900, "b": 50, "c": 10})
    assert machine.spend(plan, 175 + GRACE) == ["a", "b", "c"]
    assert machine.spend(plan, 175 + GRACE) == []
    assert machine.spend(plan, 900 + GRACE) == ["large"]


def test_a_piece_that_was_cut_is_repeated_and_one_that_failed_is_tried_again(tmp_path):
    plan = [piece("slow", 10), piece("wrong", 10)]
    machine = Machine(tmp_path, {"slow": 70, "wrong": 10})
    machine.failing = {"wrong"}
    assert machine.spend(plan, 60 + GRACE) == ["slow"]
    assert machine.log.rows() == []
    assert machine.spend(plan, 200 + GRACE) == ["slow", "wrong"]
    outcomes = [(row["piece"], row["outcome"]) for row in machine.log.rows()]
    assert outcomes == [("slow", "done"), ("wrong", "failed")]
    machine.failing = set()
    assert machine.spend(plan, 200 + GRACE) == ["wrong"]


def test_pieces_that_are_done_correct_the_guesses_of_their_kind(tmp_path):
    plan = [piece(name, 10, kind="timing") for name in "abc"] + [piece("d", 10)]
    machine = Machine(tmp_path, {"a": 30, "b": 30, "c": 30, "d": 10})
    # After a, 25 s are left: b would take 30 s, and d, of another kind, its guess.
    assert machine.spend(plan, 55 + GRACE) == ["a", "d"]
    assert accelerator.expected(plan[1], machine.log.rows()) == 30.0


def test_a_training_starts_in_less_time_than_it_takes_and_goes_on(tmp_path):
    training = piece("train", 1_000, goes_on=True)
    plan = [training, piece("evaluate", 10, after="train"), piece("other", 5)]
    machine = Machine(tmp_path, {"train": 1_000, "evaluate": 10, "other": 5})
    assert machine.spend(plan, LEAST - 1 + GRACE) == ["other"]
    assert machine.spend(plan, LEAST + GRACE) == ["train"]
    machine.times["train"] = 200.0  # what is left of it
    assert machine.spend(plan, 300 + GRACE) == ["train", "evaluate"]


def test_trainings_run_side_by_side_and_timings_alone(tmp_path):
    plan = [piece("time", 10)]
    for name in "abc":
        plan.append(piece(name, 100, kind="train", goes_on=True))
        plan.append(piece(f"of-{name}", 10, kind="evaluate", goes_on=True, after=name))
    plan.append(piece("last", 10))
    times = {"time": 10, "a": 100, "b": 900, "c": 100, "last": 10}
    machine = Machine(tmp_path, {**times, "of-a": 10, "of-b": 10, "of-c": 10})
    # b is cut, and the others of its group are done.
    assert machine.spend(plan, 200 + GRACE, 3) == ["time", "a b c"]
    assert [row["piece"] for row in machine.log.rows()] == ["time", "a", "c"]
    machine.times["b"] = 50
    found = machine.spend(plan, 200 + GRACE, 3)
    assert found == ["of-a", "b", "of-b of-c", "last"]


def arguments(folder: Path, small: bool = False) -> argparse.Namespace:
    return argparse.Namespace(out=folder, dataset=None, seeds=2, small=small)


@pytest.mark.parametrize("small", [True, False])
def test_every_piece_has_a_name_and_what_it_needs_before_it(tmp_path, small):
    plan = accelerator.pieces(arguments(tmp_path, small))
    names = [each.name for each in plan]
    assert len(set(names)) == len(names)
    assert names[0] == "correctness"
    for place, each in enumerate(plan):
        assert each.seconds > 0
        assert not each.after or each.after in names[:place]
        assert not set(each.name) & set("/:, ")


def test_every_gradient_and_training_of_the_plan_exists(tmp_path):
    plan = accelerator.pieces(arguments(tmp_path))
    timed: dict[str, set[str]] = {}
    for each in plan:
        if each.kind == "throughput":
            words = dict(zip(each.command[1::2], each.command[2::2], strict=True))
            cell = words["--width"], words["--batch"]
            timed.setdefault(cell, set()).update(words["--only"].split(";"))
    known = {*throughput.methods(), "SGD + RigL", "ZO-SAM + RigL"}
    assert timed["2", "64"] == timed["1", "128"] == known - {"SGD", "ZO-SAM"}
    config = preset(accelerator.PRESET).config
    assert (config.method, config.sparsity) == ("rigl", 0.9)
    for training in accelerator_tables.TRAININGS.values():
        assert training.step in known
        words = dict(zip(training.flags[::2], training.flags[1::2], strict=True))
        fields = {"gradient": words.pop("--gradient")}
        if share := words.pop("--probe-fraction", None):
            fields["probe_fraction"] = float(share)
        assert not words
        choices.check(dataclasses.replace(config, **fields))


def test_a_training_is_expected_to_take_what_its_step_was_timed_at(tmp_path):
    name = f"throughput-{accelerator_tables.cells()[0].name}"
    steps = [{"step": "SGD", "images_per_second": 20_000.0}]
    record.replace(tmp_path / "pieces" / f"{name}.json", {"steps": steps})
    found = {p.name: p.seconds for p in accelerator.pieces(arguments(tmp_path))}
    assert found["train-sgd-s1"] == pytest.approx(60 + 1.1 * 160 * 50_000 / 20_000)
    assert found["train-sam-s1"] == 9 * 160 * 2


def test_the_file_is_made_of_the_pieces_that_are_done(tmp_path, monkeypatch):
    args = arguments(tmp_path)
    log = record.Log(tmp_path / "pieces.jsonl", {"small": False, "device": "x"})
    cell = accelerator_tables.cells()[0]
    settings = {"model": "resnet32", "width": 2.0, "batch": 64, "image_size": 32}
    settings["matmul_precision"] = "default"
    row = {"share_of_sgd": 1.0, "compile_seconds": 3.0, "peak_mib": 100.0}
    for part in ("", "-1"):
        steps = [{**row, "step": f"SGD{part}", "images_per_second": 1_000.0}]
        path = tmp_path / "pieces" / f"throughput-{cell.name}{part}.json"
        record.replace(path, {"settings": settings, "steps": steps})
    runs = {("sgd", 0): 0.8, ("sgd", 1): 0.9, ("sam", 0): 0.83, ("sam", 1): 0.91}
    for (name, seed), accuracy in runs.items():
        folder = tmp_path / "runs" / f"{name}-s{seed}"
        summary = {"test_accuracy": accuracy, "seconds": 540, "compile_seconds": 60}
        summary |= {"parameters": 10, "parameters_live": 1}
        record.replace(folder / "summary.json", summary)
        record.replace(folder / "config.json", {"sessions": [{"commit": "c"}]})
    done = [f"throughput-{cell.name}", "train-sgd-s0", "train-sgd-s1"]
    for name in (*done, "train-sam-s0", "train-sam-s1"):
        line = {"piece": name, "kind": "k", "guess": 1, "took": 1}
        log.append({**line, "outcome": "done"})
    found = json.loads(json.dumps(accelerator.merged(args, log)))
    # The timing that is not done is left out.
    assert [p["steps"][0]["step"] for p in found["throughput"]] == ["SGD"]
    made = accelerator_tables.tables(found)
    costs = ["SGD", "1000", "1.00", "3.0", "100"]
    assert made["accelerator-throughput"][1][5:] == costs
    assert made["accelerator-throughput"][2][5:] == ["all", *["not run"] * 4]
    sgd, sam, zosam, _ = made["accelerator-trainings"][1:]
    # Student's t for one degree of freedom is 12.706; the deviation of 2 values is
    # their difference over the root of 2.
    assert sgd[1:] == ["2", "85.00 ± 63.53", "-", "10.0", "not run"]
    assert sam[3] == "+2.00 ± 12.71"
    assert zosam[1:] == ["not run"] * 5
    # The page takes the file as soon as it is there.
    monkeypatch.setattr(tables, "ACCELERATOR", str(tmp_path / "accelerator.json"))
    assert tables.tables()["accelerator-trainings"][1][1] == "not run"
    record.replace(tmp_path / "accelerator.json", found)
    assert tables.tables()["accelerator-trainings"][1] == sgd
    assert tables.tables()["accelerator-changes"][1][1:] == ["not run", "not run"]


def test_wrong_results_are_shown():
    row = {"comparison": "SAM", "precision": "float32", "error": 0.25, "bound": 0.1}
    found = {"correctness": {"rows": [{**row, "right": False}]}}
    found["settings"] = {"device": "H100"}
    assert accelerator_tables.correctness(found) == [
        ["comparison, on H100", "float32"],
        ["SAM", "0.2 WRONG"],
    ]


def test_a_process_is_ended_when_its_time_is_over(tmp_path):
    sleeper = piece("sleeper", 1)._replace(
        command=("timeit", "-n", "1", "import time; time.sleep(60)")
    )
    assert accelerator.execute([sleeper], 0.5, tmp_path) == ["cut"]
    wrong = piece("wrong", 1)._replace(command=("timeit", "-n", "1", "1 / 0"))
    share = "import os; assert os.environ['XLA_CLIENT_MEM_FRACTION'] == '0.450'"
    half = piece("half", 1)._replace(command=("timeit", "-n", "1", share))
    found = accelerator.execute([wrong, half], 30, tmp_path)
    assert found == ["failed", "done"]
    right = piece("right", 1)._replace(command=("timeit", "-n", "1", "1"))
    assert accelerator.execute([right], 30, tmp_path) == ["done"]
