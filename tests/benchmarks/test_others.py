"""What is said of several implementations of SAM, from given times and losses."""

import pytest

from benchmarks import others

SECONDS = {
    others.PLAIN: [1.0, 2.0, 3.0],
    others.OURS: [2.0, 4.0, 9.0],
    "SGD, PyTorch, eager": [0.5, 1.0, 1.5],
    "SAM, PyTorch, eager": [1.5, 4.0, 3.0],
}


def call(*losses):
    """Steps of known losses, the last of which stays."""
    left = list(losses)

    def steps(count):
        return [left.pop(0) if left[1:] else left[0] for _ in range(count)], 1.0

    return steps


def test_the_table_has_the_fastest_rounds():
    losses = {name: [1.0] for name in SECONDS}
    header, *lines = others.lines(others.rows("mlp", SECONDS, losses))
    found = {line[0]: line[1:] for line in lines}
    assert found[others.OURS] == ["2000", "1.00", "2.00"]
    # Of 1.5 s, against 2 s of ours and 0.5 s of PyTorch's own SGD.
    assert found["SAM, PyTorch, eager"] == ["1500", "0.75", "3.00"]
    assert len(header) == 4


def test_implementations_that_compute_something_else_are_refused():
    same = {others.PLAIN: call(3.0, 2.0, 1.0), others.OURS: call(3.0, 2.5, 2.0)}
    losses = others.checked({**same, "SAM, PyTorch, eager": call(3.0, 2.5, 2.001)})
    assert losses[others.OURS] == [3.0, 2.5, 2.0]
    same = {others.PLAIN: call(3.0, 2.0, 1.0), others.OURS: call(3.0, 2.5, 2.0)}
    with pytest.raises(SystemExit, match="SAM, PyTorch, eager has the losses"):
        others.checked({**same, "SAM, PyTorch, eager": call(3.0, 2.0, 1.0)})
