"""Runs that end early, lose lines of their metrics, or share their folder."""

import json
import logging
import os
import shutil
import signal

import pytest
import tiny_run
from tiny_run import Recorder, assert_same

from zosam_jax.runs import folder, metrics, progress
from zosam_jax.runs.progress import Silent
from zosam_jax.train import RunError, numerics, quiet
from zosam_jax.train.interruption import Stop, interruptions


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run of three epochs with three checkpoints, and its programs."""
    out = tmp_path_factory.mktemp("whole") / "run"
    compiled = tiny_run.prepare(tiny_run.config(out, keep=3))
    trained = again(out, compiled)
    return trained.folder, compiled, weights(trained.folder, compiled)


def again(out, compiled, display=None, start=None, **fields):
    return tiny_run.again(out, display, compiled, start, keep=3, **fields)


def weights(out, compiled):
    checkpoints = tiny_run.Checkpoints(out / "checkpoints", 3)
    state = checkpoints.restore(compiled.abstract, print)
    checkpoints.close()
    return state


def unfinished(whole, tmp_path, lines):
    """A copy without summary, with these lines of its metrics."""
    out, compiled, _ = whole
    copy = tmp_path / "run"
    shutil.copytree(out, copy)
    (copy / "summary.json").unlink()
    config = json.loads((copy / "config.json").read_text())
    config["config"]["out"] = str(copy)
    (copy / "config.json").write_text(json.dumps(config))
    path = copy / "metrics.jsonl"
    kept = path.read_text().splitlines(keepends=True)
    path.write_text("".join(kept[i] for i in lines))
    return copy, compiled


@pytest.mark.parametrize(
    ("lines", "step"),
    [(range(5), 8), (range(4), 8), (range(3), 4), ([0, 1, 4, 5], 4)],
    ids=["half an epoch", "an epoch", "more", "a hole"],
)
def test_a_run_goes_on_from_the_checkpoint_that_its_metrics_reach(
    whole, tmp_path, lines, step
):
    out, compiled = unfinished(whole, tmp_path, lines)
    show = Recorder()
    result = again(out, compiled, show)
    assert result.status == "finished"
    assert any(f"resuming at step {step} of 12" in said for said in show.said)
    (said,) = (said for said in show.said if "checkpoint of step 12" in said)
    assert f"metrics.jsonl lacks lines of epoch {step // 4 + 1}" in said
    assert metrics.gap(metrics.read(out / "metrics.jsonl")) is None
    assert_same(weights(out, compiled), whole[2])


def test_a_run_from_a_given_state_resumes(whole, tmp_path):
    """Its metrics begin at the epoch of that state, and are complete without others."""
    out, compiled = tmp_path / "run", whole[1]
    shutil.copytree(whole[0] / "checkpoints" / "4", tmp_path / "copy/checkpoints/4")
    start = weights(tmp_path / "copy", compiled)
    show = Recorder(9, lambda: signal.raise_signal(signal.SIGUSR1))
    assert again(out, compiled, show, start=start).status == "interrupted"
    show = Recorder()
    assert again(out, compiled, show, start=start).status == "finished"
    assert any("resuming at step" in said for said in show.said)
    assert {r["epoch"] for r in metrics.read(out / "metrics.jsonl")} == {2, 3}
    assert_same(weights(out, compiled), whole[2])


def test_metrics_that_reach_no_checkpoint_are_asked_for(whole, tmp_path):
    out, compiled = unfinished(whole, tmp_path, [])
    with pytest.raises(RunError, match=r"no checkpoint .* lacks lines of epoch 1"):
        again(out, compiled)
    assert {p.name for p in (out / "checkpoints").iterdir()} >= {"4", "8", "12"}


def test_metrics_are_on_the_disk_before_a_checkpoint(whole, tmp_path, monkeypatch):
    out, compiled = unfinished(whole, tmp_path, range(4))
    done, synced = [], os.fsync
    monkeypatch.setattr(
        metrics.os, "fsync", lambda file: (done.append("metrics"), synced(file))
    )
    save = tiny_run.Checkpoints.save
    monkeypatch.setattr(
        tiny_run.Checkpoints,
        "save",
        lambda *args: (done.append("checkpoint"), save(*args))[1],
    )
    again(out, compiled)
    at = done.index("checkpoint")
    assert done[at - 1] == "metrics"


@pytest.fixture(autouse=True)
def usual_signals():
    """The tests run under nohup and in the background too, which ignore signals."""
    usual = {
        signal.SIGHUP: signal.SIG_DFL,
        signal.SIGUSR1: signal.SIG_DFL,
        signal.SIGINT: signal.default_int_handler,
    }
    old = {number: signal.signal(number, to) for number, to in usual.items()}
    yield
    for number, handler in old.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1])
def test_a_warning_signal_leaves_a_checkpoint(whole, tmp_path, number):
    out, compiled = tmp_path / "run", whole[1]
    show = Recorder(6, lambda: signal.raise_signal(number))
    result = again(out, compiled, show)
    assert (result.status, result.signal) == ("interrupted", number)
    assert again(out, compiled).status == "finished"
    assert_same(weights(out, compiled), whole[2])


def test_what_the_process_ignores_stays_ignored():
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # As under nohup.
    try:
        with interruptions(Stop()) as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop.signals
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, old)


def test_a_second_urgent_signal_acts_at_once_and_a_second_warning_does_not():
    before = signal.getsignal(signal.SIGUSR1)
    with interruptions(Stop()) as stop:
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert stop.signals == [signal.SIGUSR1, signal.SIGUSR1, signal.SIGINT]
    assert signal.getsignal(signal.SIGUSR1) == before


def test_a_time_limit_makes_a_step_in_every_call(whole, tmp_path):
    """A limit that is over at once: twelve steps take twelve calls."""
    out, compiled = tmp_path / "run", whole[1]
    statuses = []
    while not statuses or statuses[-1] == "out of time":
        statuses.append(again(out, compiled, time_limit=1e-9).status)
        if statuses[-1] == "out of time":
            assert weights(out, compiled).step == len(statuses)
    assert statuses == ["out of time"] * 11 + ["finished"]
    assert_same(weights(out, compiled), whole[2])


class Dying(Silent):
    """A display whose reader goes away at a step."""

    interval = 0.0

    def message(self, text):
        if text.startswith("resuming"):
            raise BrokenPipeError

    def update(self, status):
        if status.step >= 6:
            raise OSError(28, "No space left on device")


def test_a_display_that_dies_does_not_end_the_run(whole, tmp_path, capfd):
    out, compiled = tmp_path / "run", whole[1]
    assert again(out, compiled, Dying()).status == "finished"
    assert_same(weights(out, compiled), whole[2])
    said = capfd.readouterr().err
    assert said.count("progress is no longer shown (OSError: [Errno 28]") == 1


def test_a_console_without_a_reader_raises_and_does_not_end_the_process():
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as stream:
        lines = progress.Lines(1.0, progress._Console(file=stream))
        with pytest.raises(BrokenPipeError):
            lines.message("x")
        progress._release(stream)


def test_a_run_of_another_seed_meanwhile_is_not_continued(whole, tmp_path, monkeypatch):
    """It comes and goes between the first check and the lock."""
    out, compiled = tmp_path / "run", whole[1]
    check_space = folder.check_space

    def meanwhile(*args):
        monkeypatch.setattr(folder, "check_space", check_space)
        other = tiny_run.config(out, seed=1, keep=3)
        folder.write_config(out_made(out), other, None, 0, {})
        return check_space(*args)

    monkeypatch.setattr(folder, "check_space", meanwhile)
    with pytest.raises(RunError, match=r"another configuration \(seed: 1 -> 0\)"):
        again(out, compiled)


def out_made(out):
    out.mkdir()
    return out


def test_the_record_has_the_settings_that_change_numbers(whole):
    (session,) = json.loads((whole[0] / "config.json").read_text())["sessions"]
    assert session["numerics"] == numerics.settings()
    assert session["numerics"]["jax_default_prng_impl"] == "threefry2x32"


def test_other_random_numbers_are_told(whole, tmp_path):
    out, compiled = unfinished(whole, tmp_path, range(6))
    stored = json.loads((out / "config.json").read_text())
    settings = stored["sessions"][0]["numerics"]
    settings |= {"jax_default_prng_impl": "rbg", "XLA_FLAGS": "--xla_other"}
    (out / "config.json").write_text(json.dumps(stored))
    show = Recorder()
    again(out, compiled, show)
    text = "\n".join(show.said)
    assert "random numbers are others from here on: jax_default_prng_impl rbg" in text
    assert "the last digits may differ: XLA_FLAGS --xla_other" in text


def test_only_late_errors_of_other_threads_are_silent():
    late = RuntimeError("Event loop is closed")
    assert quiet.is_late(late, None)
    assert not quiet.is_late(RuntimeError("another"), None)
    with pytest.raises(RuntimeError) as caught:
        raise late
    # Raised by code of Python, which is not late.
    assert not quiet.is_late(late, caught.tb)


def test_only_the_log_of_checkpoints_is_silent():
    quiet.silence()
    logger = logging.getLogger("absl")
    for path, is_kept in (("/x/orbax/y.py", False), ("/x/mine/y.py", True)):
        record = logger.makeRecord("absl", 40, path, 1, "said", (), None)
        assert bool(logger.filter(record)) == is_kept
