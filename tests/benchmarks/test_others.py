"""What is said of several implementations of SAM, from given times and losses."""

import pytest

from benchmarks import others

SECONDS = {
    others.PLAIN: [1.0, 2.0, 3.0],
    others.OURS: [2.0, 4.0, 9.0],
    "SGD, PyTorch, eager": [0.5, 1.0, 1.5],
    "SAM, PyTorch, eager": [2.0, 4.0, 3.0],
}


def call(*losses):
    """Steps of known losses, the last of which stays."""
    left = list(losses)

    def steps(count):
        return [left.pop(0) if left[1:] else left[0] for _ in range(count)], 1.0

    return steps


def test_ratios_are_taken_within_a_round():
    losses = {name: [1.0] for name in SECONDS}
    found = {row["step"]: row for row in others.rows("mlp", SECONDS, losses)}
    ours, torch = found[others.OURS], found["SAM, PyTorch, eager"]
    assert (ours["milliseconds"], ours["of_ours"], ours["of_own_sgd"]) == (4000, 1, 2)
    # Of rounds with 1, 1 and 1/3; and of PyTorch's own SGD with 4, 4 and 2.
    assert (torch["of_ours"], torch["of_own_sgd"]) == (1, 4)
    header, *lines = others.lines(list(found.values()))
    assert lines[-1] == ["SAM, PyTorch, eager", "3e+03", "1.00", "4.00"]
    assert len(header) == len(lines[0])


def test_implementations_that_compute_something_else_are_refused():
    same = {others.PLAIN: call(3.0, 2.0, 1.0), others.OURS: call(3.0, 2.5, 2.0)}
    losses = others.checked({**same, "SAM, PyTorch, eager": call(3.0, 2.5, 2.001)})
    assert losses[others.OURS] == [3.0, 2.5, 2.0]
    same = {others.PLAIN: call(3.0, 2.0, 1.0), others.OURS: call(3.0, 2.5, 2.0)}
    with pytest.raises(SystemExit, match="SAM, PyTorch, eager has the losses"):
        others.checked({**same, "SAM, PyTorch, eager": call(3.0, 2.0, 1.0)})
