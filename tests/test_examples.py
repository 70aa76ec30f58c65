"""The examples run as they stand, and reach what they show."""

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.parametrize(
    ("name", "reached"),
    [
        ("zosam_by_hand", lambda result: result is None),
        ("sparse_loop", lambda accuracy: accuracy > 0.95),
        ("flax_nnx", lambda loss: loss < 0.1),
        ("own_grow_rule", lambda share: share > 0.95),
        ("own_ascent", lambda ends: ends[0] > 15 and ends[1] < 3),
    ],
)
def test_example(name, reached):
    assert reached(runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]())


def test_every_example_is_tested():
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    assert names == {
        "zosam_by_hand",
        "sparse_loop",
        "flax_nnx",
        "own_grow_rule",
        "own_ascent",
    }
