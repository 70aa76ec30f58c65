"""What the benchmarks compute besides what they measure."""

import argparse
import doctest
import functools
import importlib
import math
import re
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_run

import zosam_jax as zs
from benchmarks import (
    alignment,
    command_line,
    compile_time,
    grown_moments,
    record,
    side_by_side,
    sparse_table,
    sparsity,
    tables,
    throughput,
)
from benchmarks import sparse_training as training
from benchmarks.side_by_side import Lane
from benchmarks.study_plan import CONTENDERS
from zosam_jax import train
from zosam_jax.gradients.registry import METHODS as GRADIENTS
from zosam_jax.lottery import LotteryConfig
from zosam_jax.runs import intervals
from zosam_jax.sparsity.registry import METHODS
from zosam_jax.train import choices

SETTINGS = {"steps": 10}


def arguments(part: str = "1/1") -> argparse.Namespace:
    methods = [*training.METHODS, training.LOTTERY]
    return argparse.Namespace(
        part=part, methods=methods, sparsities=training.SPARSITIES
    )


@pytest.mark.quick
@pytest.mark.parametrize("parts", [1, 2, 3])
def test_the_parts_are_the_whole(parts):
    dealt = [
        cell
        for part in range(1, parts + 1)
        for cell in training.cells(arguments(f"{part}/{parts}"))
    ]
    sparse = {
        training.Cell(method, gradient, sparsity)
        for method in {*training.METHODS, training.LOTTERY} - {training.DENSE}
        for gradient in sparse_table.GRADIENTS
        for sparsity in (0.9, 0.98)
    }
    dense = {
        training.Cell(training.DENSE, gradient, 0.0)
        for gradient in sparse_table.GRADIENTS
    }
    assert len(dealt) == len(sparse | dense)
    assert set(dealt) == sparse | dense


def test_every_cell_is_a_run_of_its_own_that_can_be_built(tmp_path):
    """Names and options exist, and no two trainings share a folder."""
    folders = []
    for cell in training.cells(arguments()):
        made = training.config(cell, Lane(0.1, 1), tmp_path)
        gradient = CONTENDERS[cell.gradient].gradient(0.1, None)
        if isinstance(made, LotteryConfig):
            assert (made.train.method, made.train.sparsity) == ("dense", cell.sparsity)
        elif cell.sparsity != 0.98:
            chosen = choices.choose(made, gradient=gradient)
            assert (chosen.method is None) == (cell.method == training.DENSE)
        folders.append(made.folder)
    assert len(set(folders)) == len(folders)


def test_every_sparse_method_is_trained():
    named = {fields["method"] for fields in training.METHODS.values()}
    assert named | set(training.LEFT_OUT) == {training.DENSE, *METHODS}
    assert named.isdisjoint(training.LEFT_OUT)


def test_the_radii_of_the_grid_are_next_to_that_of_the_study():
    assert training.radii("SGD") == (0.0,)
    assert training.radii("SAM") == (0.2, 0.5, 1.0)
    # The study chose the largest.
    assert training.radii("ZO-SAM") == (0.5, 1.0, 2.0)
    assert all(len(training.radii(name)) == 3 for name in sparse_table.GRADIENTS[1:])


@pytest.mark.parametrize("method", ["random", "STE"])
def test_the_figures_of_a_cell_are_those_of_its_runs(tmp_path, monkeypatch, method):
    """Side by side, and one by one where pruned weights keep their values."""
    cell = training.Cell(method, "SAM", 0.5)
    fields = training.METHODS[method]

    def config(_: Any, lane: Lane, runs: Any, held_out: float = 0.0) -> Any:
        out = runs / f"{lane.rho}-{lane.seed}"
        own = {"seed": lane.seed, "epochs": 1, "validation": held_out}
        return tiny_run.config(out, **fields, **own)

    given = tiny_run.dataset()
    monkeypatch.setattr(training, "config", config)
    monkeypatch.setattr(training.data, "load", lambda _: given)
    monkeypatch.setattr(training, "radii", lambda _: (0.1, 0.2))
    net = functools.partial(side_by_side.train, model=tiny_run.Net())
    monkeypatch.setattr(training.side_by_side, "train", net)
    run = functools.partial(train.run, model=tiny_run.Net())
    monkeypatch.setattr(training.train, "run", run)
    objects = functools.partial(training.Objects, model=tiny_run.Net())
    monkeypatch.setattr(training, "Objects", objects)
    args = argparse.Namespace(seeds=2, runs=tmp_path)
    executed = training.execute(cell, args)
    assert executed is not None
    rho, found = executed
    gradient = CONTENDERS["SAM"].gradient(rho, None)
    alone = run(
        config(cell, Lane(rho, 1), tmp_path / "alone"), dataset=given, gradient=gradient
    )
    assert found[1].accuracy == pytest.approx(alone.summary["test_accuracy"], abs=0.05)
    line = training.row(cell, rho, found)
    assert line["accuracies"] == [result.accuracy for result in found]
    assert (line["rho"] in (0.1, 0.2), line["diverged"]) == (True, 0)


def test_a_log_goes_on_after_half_a_line(tmp_path):
    log = record.Log(tmp_path / "new" / "log.jsonl", SETTINGS)
    assert log.rows() == []
    log.append({"a": 1})
    with log.path.open("a") as file:
        file.write('{"a": 2, "sett')
    log.append({"a": 3})
    assert [row["a"] for row in log.rows()] == [1, 3]


def test_a_log_of_other_settings_is_refused(tmp_path):
    record.Log(tmp_path / "log.jsonl", SETTINGS).append({"a": 1})
    with pytest.raises(SystemExit, match="other settings"):
        record.Log(tmp_path / "log.jsonl", {"steps": 11}).rows()


def grid_row(method: str, sparsity: float, gradient: str, *accuracies: float) -> dict:
    return {
        "method": method,
        "sparsity": sparsity,
        "gradient": gradient,
        "accuracies": list(accuracies),
    }


GRID = [
    grid_row("dense", 0.0, "SGD", 0.6, 0.6, 0.6),
    grid_row("dense", 0.0, "SAM", 0.7, 0.7, 0.7),
    grid_row("RigL", 0.9, "SGD", 0.50, 0.53, 0.58),
    grid_row("RigL", 0.9, "SAM", 0.60, 0.64, 0.68),
    grid_row("RigL", 0.98, "SGD", 0.4, 0.4, 0.4),
]


@pytest.mark.quick
def test_the_grid_has_accuracies_and_paired_gains():
    found = sparse_table.tables(GRID, methods={})
    assert list(found) == ["sparse-grid-90", "sparse-grid-98"]
    header, dense, rigl = found["sparse-grid-90"]
    assert header[:3] == ["method", "SGD, %", "SAM"]
    unknown = ["not run"] * 3
    assert dense == ["dense", "60.0 ± 0.0", "+10.0 ± 0.0", *unknown]
    # Differences of 10, 11 and 10 points: 4.303 (2 degrees of freedom) / 3.
    assert rigl == ["RigL", "53.7 ± 4.0", "+10.3 ± 1.4", *unknown]
    assert sparse_table.mean_gains(GRID, 0.9) == {"SAM": pytest.approx(0.31 / 3)}
    assert sparse_table.mean_gains(GRID, 0.98) == {}


def test_presets_have_the_seconds_of_their_programs():
    taken = [
        {"cpu": 3.0, "train": 1.0, "init": 0.5},
        {"cpu": 5.0, "train": 2.0, "init": 0.5},
        {"cpu": 4.0, "train": 4.0, "init": 0.0},
    ]
    row = compile_time.preset_row("digits", taken)
    assert row["seconds_each"] == [1.5, 2.5, 4.0]
    file = {"environment": {"versions": {"jax": "1"}}, "presets": [row]}
    older = {"environment": {"versions": {"jax": "0"}}}
    header, line = tables.compiled_presets([older, file])
    assert dict(zip(header, line, strict=True)) == {
        "JAX": "1",
        "preset": "digits",
        "step": "2.0",
        "first state": "0.5",
        "all": "2.5",
        "CPU seconds": "4.0",
    }


def test_a_sparse_method_without_a_measurement_is_not_run():
    rigl = METHODS["rigl"]
    added = {"rigl": rigl, "new": rigl._replace(label="NEW")}
    header, *lines = sparse_table.tables(GRID, added)["sparse-grid-90"]
    assert lines[-1] == ["NEW", *["not run"] * (len(header) - 1)]
    assert [line[0] for line in lines].count("RigL") == 1
    assert tables.sparse_choice(added)[-1][:2] == ["NEW", "`new`"]


@pytest.mark.parametrize(
    ("size", "weights", "kernels"),
    [("25", 25_557_032, 54), ("100", 14 * 7_087_872, 56), ("100-one", 100_010_000, 1)],
)
def test_the_sizes_are_those_of_real_networks(size, weights, kernels):
    leaves = jax.tree.leaves(sparsity.shapes(size))
    assert sum(math.prod(x.shape) for x in leaves) == weights
    assert sum(len(x.shape) > 1 for x in leaves) == kernels


def test_the_average_counts_changes_by_their_interval():
    seconds = {"dense": [1.0], "ordinary": [1.1], "changing": [3.1]}
    assert sparsity.average(seconds, 100, "") == pytest.approx(120.0, rel=1e-9)
    assert sparsity.average(seconds, 1, "") == pytest.approx(2100.0, rel=1e-9)
    assert sparsity.average(seconds, None, "") == pytest.approx(100.0, rel=1e-9)


def test_every_gradient_is_timed_under_its_label():
    timed = throughput.methods()
    assert {row.label for row in GRADIENTS.values()} <= set(timed)
    assert set(throughput.PERIODS) | set(throughput.PROBES) <= set(timed)
    for make, options in timed.values():
        assert make(**options).gradient is not None


def test_the_time_of_aesam_is_that_of_its_two_kinds_of_steps():
    plain, sam = throughput.PLAIN_STEP, throughput.SAM_STEP
    compiled = throughput.Step(None, None, 1.0, 1, 1, 1.0)
    steps, passes = {plain: compiled, sam: compiled}, {}
    seconds = {plain: [1.0, 2.0], sam: [2.0, 6.0]}
    throughput.put_together(steps, seconds, passes, 0.25)
    assert seconds["AE-SAM"] == [1.25, 3.0]
    assert passes["AE-SAM"] == [(0.0, 1.25)]
    # In another selection of steps it is left out.
    alone = {plain: compiled}
    throughput.put_together(alone, {plain: [1.0]}, {}, 0.25)
    assert list(alone) == [plain]
    made = {name: throughput.methods()[name] for name in (plain, sam)}
    for name, (make, options) in made.items():
        found = make(**options).gradient(lambda w: w @ w, jnp.ones(2), step=0)
        assert found.info.backward_evaluations == (1 if name == plain else 2)


def test_the_rules_of_the_alignment_are_those_of_its_table_and_picture():
    assert set(alignment.SHOWN) <= set(alignment.RULES)
    assert {rule for rule, _ in tables.PROBES} == set(alignment.RULES)
    for rule in alignment.RULES.values():
        assert alignment.constructor(rule)(**rule.options, has_aux=True) is not None


def test_alignment_is_averaged_over_steps_before_seeds():
    rows = [
        {"rule": rule, "seed": seed, "step": step}
        | dict.fromkeys(alignment.FIELDS, 10.0 * seed + step - 5.0)
        for rule in alignment.RULES
        for seed in (0, 1)
        for step in (2, 4)
    ]
    row = alignment.summarize(rows)[0]
    # Means over the steps: -2 and 8; without them the deviation would be 5.89.
    assert (row["rule"], row["cosine_large"]) == ("SAM", 3.0)
    assert row["cosine_large_std"] == pytest.approx(50**0.5)
    assert row["downhill"] == 0.5


def test_the_control_without_a_probe_points_along_the_mean_of_its_gradients():
    w = jnp.array([3.0, 1.0])
    tx = alignment.running_mean(0.75, rho=0.5)
    state, mean = tx.init(w), jnp.zeros(2)
    for _ in range(3):
        grad, state = tx.update(None, state, w, value_fn=lambda w: w @ w)
        length = jnp.linalg.norm(mean)
        eps = 0.5 * mean / jnp.where(length > 0, length, 1)
        np.testing.assert_allclose(jnp.asarray(grad), 2 * (w + eps), rtol=1e-6)
        mean = 0.75 * mean + 0.25 * grad
        w = w - 0.1 * grad


def test_every_sparse_method_is_timed():
    timed = sparsity.measured()
    names = {method.name for method in timed.values()}
    assert names | set(sparsity.LEFT_OUT) == set(METHODS)
    assert names.isdisjoint(sparsity.LEFT_OUT)
    assert set(sparsity.PACKED) <= set(timed)
    for method in timed.values():
        assert method.make().straight_through == (method.name == "ste")


@pytest.mark.parametrize(
    ("file", "rows", "key", "known"),
    [
        (tables.THROUGHPUT, "steps", "step", throughput.methods),
        (tables.ASCENT_PART, "steps", "step", throughput.methods),
        (tables.ALIGNMENT, "rules", "rule", lambda: alignment.RULES),
        (tables.SPARSITY, "rows", "method", sparsity.measured),
    ],
)
def test_what_was_measured_can_be_measured_again(file, rows, key, known):
    """A method without a measurement is no error; a measurement without one is."""
    measured = {row[key] for row in tables.load(file)[rows]}
    others = {"loss only", "SGD + RigL", "ZO-SAM + RigL"}
    others |= {sparsity.SELECTION, sparsity.RESNET}
    assert measured - others <= set(known())


@pytest.mark.parametrize("resets", [True, False])
def test_the_control_keeps_the_moments_of_grown_weights(resets):
    """Of Adam's second moment, by its recursion; the plain rule starts anew at 0."""
    grads = {"w": jnp.arange(1.0, 65.0).reshape(8, 8)}
    rule = optax.adam(0.1, b2=0.75)
    rule = rule if resets else grown_moments.without_paths(rule)
    tx = zs.sparsify(rule, zs.sparsity.set_(0.5, 100, interval=1, drop_fraction=0.25))
    state, moment, grown = tx.init(grads), jnp.zeros((8, 8)), 0
    masks = zs.sparsity.masks(state)
    params = zs.sparsity.apply_masks(grads, masks)
    for _ in range(3):
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        old, masks = masks, zs.sparsity.masks(state)
        before, after = old["w"], masks["w"]
        grown += int((after & ~before).sum())
        moment = jnp.where((before ^ after) & resets, 0.0, moment)
        moment = 0.75 * moment + 0.25 * (grads["w"] * after) ** 2
        *_, found = jax.tree.leaves(state.inner)
        assert jnp.allclose(found, moment, rtol=1e-6)
    assert grown > 8


def test_the_interval_of_paired_differences():
    """By the table of Student's t: 2.776 for four degrees of freedom."""
    found = intervals.interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert found.mean == 3.0
    half = 2.776 * math.sqrt(2.5 / 5)
    assert found.half_width == pytest.approx(half, rel=1e-3)
    row = {"task": "vit", "test_accuracy": 0.5, "train_loss": 1.0}
    values = {"fresh": (2.0, 3.0), "mean": (1.0, 4.0), "keep": (2.0, 3.0)}
    rows = [
        {**row, "rule": rule, "seed": seed, "test_loss": values[rule][seed]}
        for rule in values
        for seed in (0, 1)
    ]
    lone = {**row, "rule": "mean", "seed": 2, "test_loss": 9.0}
    first, *_ = grown_moments.summarize([*rows, lone])
    assert first["seeds"] == [0, 1]
    assert first["means"] == {"fresh": 2.5, "mean": 2.5, "keep": 2.5}
    assert first["differences"]["mean - fresh"]["mean"] == 0.0
    assert first["differences"]["keep - fresh"] == {"mean": 0.0, "half_width": 0.0}


WITH_EXAMPLES = (
    "collectives",
    "command_line",
    "convergence_theory",
    "house",
    "record",
    "rounding",
    "study",
    "study_report",
)


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_the_examples_in_docstrings_are_right(name):
    found = doctest.testmod(importlib.import_module(f"benchmarks.{name}"))
    assert found.attempted
    assert not found.failed


PROGRAMS = (
    "aesam",
    "alignment",
    "compact_every",
    "compare",
    "compile_time",
    "convergence",
    "grown_moments",
    "guided",
    "house",
    "inference",
    "norms",
    "others",
    "paper",
    "seeds_together",
    "segmentation",
    "sharded_step",
    "sparse_training",
    "sparsity",
    "study",
    "throughput",
)


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_help_explains_every_option(name, monkeypatch, capsys):
    options = []
    add = argparse.ArgumentParser.add_argument

    def noted(self, *names, **given):
        options.append(add(self, *names, **given))
        return options[-1]

    monkeypatch.setattr(argparse.ArgumentParser, "add_argument", noted)
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    module = importlib.import_module(f"benchmarks.{name}")
    with pytest.raises(SystemExit):
        module.main()
    page = capsys.readouterr().out
    assert [x.option_strings for x in options if not x.help] == []
    assert (module.__doc__ or "").splitlines()[0] in page
    # No Python objects, and no folder of this machine.
    assert not re.search(r"default: (None|\[|\(|/)|PosixPath", page)


def test_a_finished_part_names_the_command_that_merges():
    words = ["--methods", "SGD", "RST, 1/2", "--part=1/2", "--seeds", "2"]
    assert command_line.merging("benchmarks.study", words) == (
        "python -m benchmarks.study --methods SGD 'RST, 1/2' --seeds 2 --merge"
    )
