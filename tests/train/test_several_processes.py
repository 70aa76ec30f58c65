"""Two processes with two devices each train one run, and agree with one that has four.

The groups of processes run once for all tests: one in which a process is killed, one
that goes on, and one process that goes on with what two began.
"""

import json
import signal

import jax
import numpy as np
import pytest
import several_processes as several
import tiny_run

from zosam_jax.train import loop, sharding
from zosam_jax.train.checkpoint import Checkpoints
from zosam_jax.train.objects import Objects


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of all runs, and how the processes of each group have ended."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "file").write_text("")
    sizes = {"killed": (2, 2), "whole": (2, 2), "one": (1, 4)}
    ended = {task: several.group(task, folder, *size) for task, size in sizes.items()}
    return folder, ended


@pytest.fixture(scope="module")
def final(runs):
    """The final state of a run, by its name."""
    folder, _ = runs
    template = loop.prepare(several.config(folder / "nothing"), Objects()).abstract

    def read(name):
        checkpoints = Checkpoints(folder / name / "checkpoints", 1, read_only=True)
        state = checkpoints.read(checkpoints.steps()[-1], template)
        checkpoints.close()
        return state

    return read


def lines(runs, name, *but):
    """The lines of a run's metrics without what a clock measured."""
    text = (runs[0] / name / "metrics.jsonl").read_text()
    clocks = {"seconds", "images_per_second", *but}
    return [
        {k: v for k, v in json.loads(line).items() if k not in clocks}
        for line in text.splitlines()
    ]


def found(runs, task, number=0):
    ended = runs[1][task][number]
    assert ended.status == 0, ended.stderr
    return ended.found


def agree(runs, final, name, other):
    """Whether two runs differ by the rounding of sums in another order alone.

    A slope of ZO-SAM divides the difference of two losses by 0.002, and their rounding
    with it. Masks, orders and draws are the same.
    """
    a, b = final(name), final(other)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-6),
        (a.params, a.opt_state.inner),
        (b.params, b.opt_state.inner),
    )
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if x.dtype != np.float32:
            np.testing.assert_array_equal(x, y)
    for x, y in zip(lines(runs, name), lines(runs, other), strict=True):
        assert x.pop("split") == y.pop("split")
        assert x == pytest.approx(y, rel=1e-4)


def test_two_processes_have_the_numbers_of_one(runs, final):
    """Sums of four devices over gloo are rounded otherwise than within one process."""
    assert found(runs, "whole")["status"] == 0
    assert found(runs, "one")["one"] == "finished"
    agree(runs, final, "whole", "one")


def test_a_state_in_parts_has_the_numbers_of_a_whole_one(runs, final):
    """Of one device; both start from a trained network."""
    assert found(runs, "one")["alone"] == found(runs, "one")["parts"] == "finished"
    agree(runs, final, "parts", "alone")


def test_a_run_goes_on_with_its_state_in_any_layout(runs, final):
    """Each epoch in another one, the first by two processes that share the state."""
    for number in (0, 1):
        assert "left" in found(runs, "whole", number)["tuned"]
        assert found(runs, "whole", number)["part"] == [64, 48]
    assert found(runs, "one")["tuned"] == "finished"
    record = json.loads((runs[0] / "tuned" / "config.json").read_text())
    layouts = [
        (row["step"], row["processes"], row["devices"], row["fsdp"])
        for row in record["sessions"]
    ]
    assert layouts == [(0, 2, 4, 4), (3, 1, 1, 1), (6, 1, 4, 2), (9, 1, 2, 1)]
    agree(runs, final, "tuned", "alone")


def test_a_state_in_parts_is_restored_bit_for_bit(runs, final):
    """In every layout; and a run in parts that resumes has the bits of one session."""
    digests = {crc for pair in found(runs, "one")["bits"] for crc in pair}
    assert len(found(runs, "one")["bits"]) == len(several.LAYOUTS)
    assert len(digests) == 1
    tiny_run.assert_same(final("parts again"), final("parts"))
    assert lines(runs, "parts again") == lines(runs, "parts")


def test_one_process_writes(runs):
    folder, ended = runs
    entries = {".lock", "checkpoints", "config.json", "curves.png", "metrics.jsonl"}
    assert {p.name for p in (folder / "whole").iterdir()} == {*entries, "summary.json"}
    assert len(lines(runs, "whole")) == 2 * several.FLAGS["epochs"]
    first, second = ended["whole"]
    assert "epoch 4/4" in first.stdout
    assert "epoch" not in second.stdout
    record = json.loads((folder / "whole" / "config.json").read_text())
    session = record["sessions"][0]
    assert (session["devices"], session["processes"]) == (4, 2)


def test_a_killed_process_ends_the_others_and_the_run_goes_on(runs, final):
    """To the same bits as an undisturbed run."""
    survivor, dead = runs[1]["killed"]
    assert dead.status == -signal.SIGKILL
    # JAX aborts what waits in a collective; gloo may tell the program first.
    assert survivor.status in (-signal.SIGABRT, 75)
    assert "tasks are unhealthy" in survivor.stderr or "has lost another" in (
        survivor.stderr
    )
    # Ten seconds without a sign of life, and the time to see it.
    assert survivor.time - float((runs[0] / "died killed").read_text()) < 40
    assert found(runs, "whole")["killed"] == "finished"
    tiny_run.assert_same(final("killed"), final("whole"))
    assert lines(runs, "killed") == lines(runs, "whole")


def test_a_signal_to_one_process_stops_all_after_the_same_step(runs, final):
    for number in (0, 1):
        row = found(runs, "whole", number)
        assert row["stopped"] == "interrupted"
        assert row["signal"] == signal.SIGTERM
    record = json.loads((runs[0] / "stopped" / "config.json").read_text())
    first, second = record["sessions"]
    assert (first["processes"], second["processes"]) == (2, 1)
    assert 4 <= second["step"] < 12


def test_one_process_goes_on_with_a_run_of_two(runs, final):
    assert found(runs, "one")["stopped"] == "finished"
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6),
        final("stopped").params,
        final("whole").params,
    )
    assert len(lines(runs, "stopped")) == 2 * several.FLAGS["epochs"]


def test_all_processes_say_why_a_run_ends(runs):
    rows = [found(runs, "whole", number) for number in (0, 1)]
    for row in rows:
        assert "process 1 has seed=1, and process 0 has seed=0" in row["seeds"]
        assert "A part of the path is a file" in row["file"]
        assert "no space left on device. Make room" in row["full"]
    for name in ("file", "full"):
        assert not rows[0][name].startswith("process 0 has ended")
        assert rows[1][name].startswith("process 0 has ended the run: ")


def test_a_step_of_zosam_exchanges_the_gradient_and_a_few_scalars(runs):
    """Losses of two probes; then the gradient, the loss and the correct examples."""
    summary = json.loads((runs[0] / "one" / "summary.json").read_text())
    probes, gradient = found(runs, "one")["step"]["exchanged"]
    assert probes == ["all-reduce", [1, 1]]
    name, sizes = gradient
    assert name == "all-reduce"
    assert len(sizes) == 6 + 2
    assert sum(sizes) == summary["parameters"] + 2


def test_a_step_in_parts_gathers_the_weights_for_each_pass(runs):
    """Two probes and the gradient; of the gradient, every device then keeps a part.

    XLA for CPU adds it up whole; that for GPU and TPU can scatter the sums. New masks
    exchange parts alone.
    """
    summary = json.loads((runs[0] / "parts" / "summary.json").read_text())
    rows = found(runs, "one")["sharded step"]["exchanged"]
    large = {"all-gather": 0, "all-reduce": 0}
    for name, sizes in rows:
        if max(sizes) >= sharding.SMALL:
            large[name] += sum(sizes)
    hidden = 64 * 192 + 192 * 64
    assert large["all-gather"] == 3 * hidden
    assert 0 <= large["all-reduce"] - summary["parameters"] < 10


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("step", ["step", "sharded step"])
def test_a_step_runs_on_accelerators_without_the_host(runs, step, platform):
    """It is lowered for them without the hardware; the state's buffers are reused."""
    row = found(runs, "one")[step][platform]
    assert row["calls"] == []
    # The seed, the order of the epoch and the training set.
    assert sorted(row["kept"]) == ["1437x8x8x1xui8", "1437xi32", "1437xi32", "i32"]
    assert row["donated"] == found(runs, "one")["step"][platform]["donated"] > 0
