"""What the comparison of two versions says of given measurements."""

import math
import subprocess

import pytest

from benchmarks import compare

TURNS, ROUNDS = 5, 7


def measured(factors, noise=0.0):
    """Values of two versions on a machine whose load changes from round to round.

    Args:
      factors: The new version's time over the old one's, by turn.
      noise: Relative error of a value, of alternating sign.
    """
    old, new = [], []
    for turn, factor in enumerate(factors):
        load = [1 + 0.5 * ((turn + i) % 3) for i in range(ROUNDS)]
        signs = [(-1) ** i for i in range(ROUNDS)]
        old.append([0.2 * x for x in load])
        new.append(
            [
                0.2 * factor * x * (1 + noise * s)
                for x, s in zip(load, signs, strict=True)
            ]
        )
    return old, new


@pytest.mark.parametrize(
    ("factors", "verdict"),
    [
        ([1.2, 1.21, 1.19, 1.22, 1.2], "slower"),
        ([0.8, 0.81, 0.79, 0.8, 0.82], "not slower"),
        ([1.01, 0.99, 1.0, 1.02, 0.98], "not slower"),
        ([1.04, 1.04, 1.04, 1.04, 1.04], "not slower"),
        ([0.8, 1.6, 1.0, 1.5, 1.1], "unclear"),
    ],
)
def test_a_version_is_slower_if_the_interval_says_so(factors, verdict):
    row = compare.compared("SGD", *measured(factors))
    assert row.verdict == verdict
    mean = math.exp(sum(map(math.log, factors)) / TURNS)
    assert row.ratio == pytest.approx(mean)
    assert row.low <= row.ratio <= row.high


def test_load_that_hits_both_versions_cancels():
    row = compare.compared("SGD", *measured([1.2] * TURNS))
    assert (row.low, row.high) == pytest.approx((1.2, 1.2))
    assert row.new == pytest.approx(1.2 * row.old)


def test_the_interval_is_students_of_the_logarithms():
    row = compare.compared("SGD", *measured([1.0, 1.1]))
    middle, half = math.log(1.1) / 2, 12.7062 * math.log(1.1) / 2
    assert math.log(row.ratio) == pytest.approx(middle)
    assert math.log(row.high) == pytest.approx(middle + half, rel=1e-4)


def test_one_round_of_many_does_not_decide():
    old, new = measured([1.0] * TURNS)
    new[0][0] *= 100
    assert compare.compared("SGD", old, new).verdict == "not slower"


def test_a_work_tree_is_there_only_while_it_is_used(tmp_path):
    def git(*words):
        command = [
            "git",
            "-C",
            str(tmp_path),
            "-c",
            "user.name=a",
            "-c",
            "user.email=b",
        ]
        ended = subprocess.run([*command, *words], check=True, capture_output=True)
        return ended.stdout.decode()

    git("init", "-q")
    (tmp_path / "file").write_text("old")
    git("add", "file")
    git("commit", "-q", "-m", "old")
    (tmp_path / "file").write_text("new")
    with compare.checkout("HEAD", tmp_path) as folder:
        assert (folder / "file").read_text() == "old"
    assert not folder.exists()
    assert len(git("worktree", "list").splitlines()) == 1
    with pytest.raises(SystemExit, match="neither a revision"):
        compare.checkout("nothing", tmp_path).__enter__()


def test_a_folder_is_its_own_checkout(tmp_path):
    (tmp_path / "zosam_jax").mkdir()
    (tmp_path / "zosam_jax" / "__init__.py").touch()
    with compare.checkout(str(tmp_path)) as folder:
        assert folder == tmp_path.resolve()
    assert tmp_path.exists()
