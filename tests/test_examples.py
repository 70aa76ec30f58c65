"""The examples run as they stand, and reach what they show."""

import json
import runpy
from pathlib import Path

import matplotlib
import pytest
from matplotlib import pyplot as plt

EXAMPLES = Path(__file__).parents[1] / "examples"
REACHED = {
    "zosam_by_hand": lambda result: result is None,
    "sparse_loop": lambda accuracy: accuracy > 0.95,
    "flax_nnx": lambda loss: loss < 0.1,
    "own_grow_rule": lambda share: share > 0.95,
    "own_ascent": lambda ends: ends[0] > 15 and ends[1] < 3,
}


@pytest.mark.parametrize("name", list(REACHED))
def test_example(name):
    reached = REACHED[name]
    assert reached(runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]())


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
