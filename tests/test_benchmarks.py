"""What the benchmarks compute besides what they measure."""

import argparse
import math
import statistics

import jax
import pytest

from benchmarks import alignment, record, sparse_grid, sparsity, tables, throughput
from benchmarks import sparse_training as training
from zosam_jax.gradients.registry import METHODS as GRADIENTS
from zosam_jax.sparsity.registry import METHODS

SETTINGS = {"steps": 10}


def arguments(part: str) -> argparse.Namespace:
    return argparse.Namespace(
        part=part, gradients=["sgd", "zosam"], sparsities=[0.9, 0.98], seeds=2
    )


@pytest.mark.quick
@pytest.mark.parametrize("parts", [1, 2, 3])
def test_the_parts_are_the_whole(parts):
    methods = [*training.METHODS, training.LOTTERY]
    dealt = [
        unit
        for part in range(1, parts + 1)
        for unit in sparse_grid.units(methods, arguments(f"{part}/{parts}"))
    ]
    whole = {(m, g, s) for m in methods for g in ("sgd", "zosam") for s in (0, 1)}
    assert len(dealt) == len(whole)
    assert set(dealt) == whole


def test_the_first_seed_comes_first():
    seeds = [seed for *_, seed in sparse_grid.units(["RigL"], arguments("1/1"))]
    assert seeds == sorted(seeds)


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


def training_row(method: str, sparsity: float, seed: int, accuracy: float) -> dict:
    return {
        "kind": "grid",
        "method": method,
        "gradient": "sgd",
        "sparsity": sparsity,
        "seed": seed,
        "rho": 0.0,
        "accuracy": accuracy,
        "live": 10 if sparsity else 100,
        "sparsified": 100,
        "parameters": 120,
        "seconds": 1.0,
    }


@pytest.mark.quick
def test_the_grid_has_mean_and_sample_deviation():
    values = [0.5, 0.53, 0.58]
    rows = [training_row("RigL", 0.9, seed, x) for seed, x in enumerate(values)]
    rows += [training_row("dense", 0.0, seed, 0.6) for seed in range(3)]
    dense, rigl = sparse_grid.cells(rows, "grid")
    assert dense["method"] == "dense"
    assert rigl["seeds"] == [0, 1, 2]
    assert rigl["accuracy_mean"] == pytest.approx(statistics.fmean(values), rel=1e-12)
    assert rigl["accuracy_std"] == pytest.approx(statistics.stdev(values), rel=1e-12)
    assert rigl["sparsity_exact"] == pytest.approx(0.9, rel=1e-12)
    assert rigl["sparsity_all"] == pytest.approx(90 / 120, rel=1e-12)
    assert tables.grid_rows([dense, rigl]) == [
        ["method", "90%, SGD"],
        ["dense", "60.0 ± 0.0"],
        ["RigL", "53.7 ± 4.0"],
    ]


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


def test_every_ascent_is_asked():
    rules = alignment.rules()
    asked = {rule.name for rule in rules.values()}
    assert asked | set(alignment.SHARED) == set(GRADIENTS)
    assert asked.isdisjoint(alignment.SHARED)
    assert set(alignment.SHOWN) | set(alignment.OWN_RHO) <= set(rules)
    for rule in rules.values():
        assert GRADIENTS[rule.name].make(**rule.options, has_aux=True) is not None


def test_every_sparse_method_is_timed():
    timed = sparsity.measured()
    names = {method.name for method in timed.values()}
    assert names | set(sparsity.LEFT_OUT) == set(METHODS)
    assert names.isdisjoint(sparsity.LEFT_OUT)
    assert set(sparsity.PACKED) <= set(timed)
    for method in timed.values():
        assert (method.make().straight_through is not None) == (method.name == "ste")


@pytest.mark.parametrize(
    ("file", "rows", "key", "known"),
    [
        (tables.THROUGHPUT, "steps", "step", throughput.methods),
        (tables.ALIGNMENT, "rules", "rule", alignment.rules),
        (tables.SPARSITY, "rows", "method", sparsity.measured),
    ],
)
def test_what_was_measured_can_be_measured_again(file, rows, key, known):
    """A method without a measurement is no error; a measurement without one is."""
    measured = {row[key] for row in tables.load(file)[rows]}
    others = {"loss only", "SGD + RigL", "ZO-SAM + RigL"}
    others |= {sparsity.SELECTION, sparsity.RESNET}
    assert measured - others <= set(known())
