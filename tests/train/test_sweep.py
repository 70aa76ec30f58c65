import dataclasses
import itertools
import json
import os
import signal

import pytest
import tiny_run
from devices import flags

from zosam_jax.cli import main
from zosam_jax.cli import sweep as command
from zosam_jax.runs import record
from zosam_jax.runs import sweep as plans
from zosam_jax.runs.config import TrainConfig
from zosam_jax.runs.errors import RunError
from zosam_jax.train import devices, effects, grouping, run, sweep
from zosam_jax.train.devices import Device
from zosam_jax.train.sweep import Job, Outcome


def settle(config):
    idle = effects.without_effect(config)
    fields = {f.name: f.default for f in dataclasses.fields(TrainConfig)}
    config = dataclasses.replace(config, **{name: fields[name] for name in idle})
    return config, [n for n in effects.NEEDS if not effects.is_used(config, n)]


def names(path, grid, **fields):
    return [x.name for x in plans.plan(TrainConfig(**fields), grid, path, settle)]


def test_a_grid_has_each_configuration_once(tmp_path):
    grid = {"method": ["dense", "rigl"], "sparsity": [0.9, 0.98], "seed": [0, 1]}
    assert names(tmp_path, grid) == [
        "method-dense_seed-0",
        "method-dense_seed-1",
        "method-rigl_sparsity-0.9_seed-0",
        "method-rigl_sparsity-0.9_seed-1",
        "method-rigl_sparsity-0.98_seed-0",
        "method-rigl_sparsity-0.98_seed-1",
    ]
    assert names(tmp_path, {}) == ["run"]
    lists = {"augment": [None, (), ("crop=4", "flip")]}
    assert names(tmp_path, lists) == [
        "augment-default",
        "augment-none",
        "augment-crop-4-flip",
    ]
    # Names that are the same as files, of configurations that are not.
    odd = {"dense": [("a/*",), ("a?",)]}
    assert names(tmp_path, odd) == ["dense-a", "dense-a+"]
    planned = plans.plan(TrainConfig(), {"seed": [3]}, tmp_path, settle)
    assert planned[0].config.folder == tmp_path / "seed-3"


class Ended:
    """A process that has ended; `running` polls earlier, it still ran."""

    def __init__(self, status=0, running=0, on_poll=lambda: None):
        self.status, self.running, self.on_poll = status, running, on_poll
        self.signals = []

    def poll(self):
        self.on_poll()
        self.running -= 1
        return None if self.running >= 0 else self.status

    def wait(self):
        return self.status

    def send_signal(self, sig):
        self.signals.append(sig)
        self.status, self.running = 128 + sig, 0


def tiny_plan(path, **grid):
    return plans.plan(tiny_run.config(path), grid, path, settle)


def train_here(job, display=None):
    (planned,) = job.runs
    result = run(
        planned.config,
        dataset=tiny_run.dataset(),
        model=tiny_run.Net(),
        display=display,
    )
    return Ended(128 + result.signal if result.signal else 0)


def train_all(plan, path, start, said=None, slots=(None,), together=1):
    say = (lambda text: None) if said is None else said.append
    shown = {"say": say, "beside": {}}
    return sweep.train_all(
        plan, path, slots=slots, start=start, together=together, **shown
    )


def test_a_sweep_that_was_killed_ends_as_one_that_was_not(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    seeds = {"seed": [0, 1]}
    result = train_all(tiny_plan(whole, **seeds), whole, train_here)
    assert result.named("finished") == ["seed-0", "seed-1"]

    def die(job):
        if job.runs[0].config.seed == 0:
            return train_here(job)
        train_here(job, tiny_run.Recorder(6))
        raise RuntimeError("power cut")

    plan = tiny_plan(cut, **seeds)
    with pytest.raises(RuntimeError, match="power cut"):
        train_all(plan, cut, die)
    assert plans.read(cut) == {"seed-0": "finished", "seed-1": "waiting"}
    assert not plans.is_over(cut)
    assert [found.name for found in record.read_all([cut])] == ["seed-0", "seed-1"]
    began, said = [], []

    def count(job):
        began.append(job.name)
        return train_here(job)

    result = train_all(plan, cut, count, said)
    assert began == ["seed-1"]
    assert said[0] == "1 of 2 runs are finished already"
    assert said[-1].startswith("2/2 seed-1: finished, test accuracy ")
    assert result.named("finished") == ["seed-0", "seed-1"]
    assert plans.is_over(cut)
    for name in result.outcomes:
        one, other = (tiny_run.final(path / name) for path in (whole, cut))
        tiny_run.assert_same(one, other)
        one, other = (record.read(path / name) for path in (whole, cut))
        assert one.curve("test", "loss") == other.curve("test", "loss")
    # More seeds join the sweep; those that a call leaves out stay in its record.
    (more,) = tiny_plan(cut, seed=[3])
    train_all([more], cut, lambda job: Ended(2))
    assert list(plans.read(cut)) == ["seed-0", "seed-1", "seed-3"]
    # Another configuration in the same folder is no continuation.
    other = [
        plans.Planned(x.name, dataclasses.replace(x.config, rho=0.3)) for x in plan
    ]
    with pytest.raises(RunError, match=r"another configuration \(rho: None -> 0.3\)"):
        train_all(other, cut, train_here)


def test_a_run_that_fails_does_not_end_the_others(tmp_path):
    plan = tiny_plan(tmp_path, seed=[0, 1, 2, 3])
    log = sweep.log_of(tmp_path, Job((plan[0],)))
    log.parent.mkdir(parents=True)
    log.write_text("preparing...\nerror: the loss is not finite.\n")
    statuses = iter([2, -9, 75, 143])
    result = train_all(plan, tmp_path, lambda job: Ended(next(statuses)))
    assert list(result.outcomes.values()) == [
        Outcome("failed", "the loss is not finite."),
        Outcome("failed", f"signal 9 ended it; see {tmp_path}/logs/seed-1.log."),
        Outcome("out of time"),
        Outcome("interrupted"),
    ]
    kept = json.loads((tmp_path / "sweep.json").read_text())["runs"]
    assert kept[0]["reason"] == "the loss is not finite."
    assert plans.read(tmp_path)["seed-2"] == "out of time"


def test_the_error_of_a_run_is_that_of_its_last_process(tmp_path, monkeypatch):
    (planned,) = tiny_plan(tmp_path, seed=[0])
    log = sweep.log_of(tmp_path, Job((planned,)))
    log.parent.mkdir(parents=True)
    monkeypatch.setattr(sweep.subprocess, "Popen", lambda words, **kept: Ended(-9))

    def reason(said):
        def start(job):
            process = sweep.process(tmp_path, job)
            with log.open("a") as output:
                output.write(said)
            return process

        return train_all([planned], tmp_path, start).outcomes[planned.name].reason

    assert reason("preparing...\nerror: the disk is full.\n") == "the disk is full."
    assert reason("preparing...\n") == f"signal 9 ended it; see {log}."
    command = f"$ python -m zosam_jax train --config {tmp_path}/configs/"
    assert log.read_text().count(command) == 2


def test_as_many_processes_run_as_are_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "_POLL_SECONDS", 0)
    plan, alive, most = tiny_plan(tmp_path, seed=list(range(5))), [], []

    def start(job):
        process = Ended(running=2 + job.runs[0].config.seed % 2)
        alive.append(process)
        most.append(sum(x.running >= 0 for x in alive))
        return process

    result = train_all(plan, tmp_path, start, slots=[None] * 2)
    assert len(result.named("finished")) == 5
    assert max(most) == 2


def test_a_signal_is_passed_on_and_nothing_starts_after_it(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "_POLL_SECONDS", 0)
    calls, began = itertools.count(), []

    def send():
        if next(calls) == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    def start(job):
        began.append(Ended(running=10**6, on_poll=send))
        return began[-1]

    plan = tiny_plan(tmp_path, seed=[0, 1, 2])
    result = train_all(plan, tmp_path, start, slots=[None] * 2)
    assert result.signal == signal.SIGTERM
    assert [process.signals for process in began] == [[signal.SIGTERM]] * 2
    assert plans.read(tmp_path) == {
        "seed-0": "interrupted",
        "seed-1": "interrupted",
        "seed-2": "waiting",
    }


GPUS = [Device("gpu", number, "H200") for number in range(3)]


def test_a_free_device_gets_the_next_run(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "_POLL_SECONDS", 0)
    plan, jobs = tiny_plan(tmp_path, seed=list(range(5))), []

    def start(job):
        jobs.append(job)
        # The run of seed 1 ends last.
        return Ended(running=50 if job.runs[0].config.seed == 1 else 1)

    said = []
    train_all(plan, tmp_path, start, said, slots=devices.shared(GPUS[:2], 3))
    where = [(job.device.name, job.processes) for job in jobs]
    assert where[:3] == [("gpu:0", 2), ("gpu:1", 1), ("gpu:0", 2)]
    assert {name for name, _ in where[3:]} == {"gpu:0"}
    assert said[0].endswith(" on gpu:0")
    assert said[-1].endswith(" on gpu:1")


def test_which_devices_there_are(monkeypatch):
    assert devices.chosen(["2", "0"], GPUS) == [GPUS[2], GPUS[0]]
    assert devices.chosen(["all"], GPUS) == GPUS
    for words, message in (
        (["3"], r"devices='3' is no device of this machine. It has: gpu:0 H200, "),
        (["0", "all"], r"devices='all' is no device"),
        (["1", "1"], r"devices=1 1 names a device twice. .* larger --jobs"),
    ):
        with pytest.raises(RunError, match=message):
            devices.chosen(words, GPUS)
    with pytest.raises(RunError, match=r"jobs=2 leaves 1 of the 3 devices"):
        devices.shared(GPUS, 2)
    with pytest.raises(RunError, match=r"jobs=2: a TPU chip takes one process"):
        devices.shared([Device("tpu", 0, "TPU v5e")], 2)
    monkeypatch.setattr(devices, "_QUERY", "raise SystemExit('no backend')")
    with pytest.raises(RunError, match=r"JAX finds none on this machine: no backend"):
        devices.found()


@pytest.mark.parametrize(
    ("device", "processes", "outer", "expected"),
    [
        (GPUS[1], 1, {}, {"CUDA_VISIBLE_DEVICES": "1"}),
        (
            GPUS[1],
            3,
            {"CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b"},
            {"CUDA_VISIBLE_DEVICES": "GPU-b", "XLA_CLIENT_MEM_FRACTION": "0.25"},
        ),
        # JAX refuses both names of the fraction at once.
        (
            GPUS[0],
            2,
            {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.1"},
            {"CUDA_VISIBLE_DEVICES": "0"},
        ),
        (
            Device("tpu", 2, "TPU v5e"),
            1,
            {},
            {
                "TPU_VISIBLE_CHIPS": "2",
                "TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1",
                "TPU_PROCESS_BOUNDS": "1,1,1",
                "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
            },
        ),
        (Device("cpu", 1, "cpu"), 1, {}, {"JAX_NUM_CPU_DEVICES": "1"}),
    ],
)
def test_a_process_sees_its_device_alone(device, processes, outer, expected):
    assert devices.environment(device, processes, outer) == expected


def test_runs_that_differ_in_seed_and_radius_train_together(tmp_path):
    plan = tiny_plan(tmp_path, rho=[0.05, 0.1], seed=[0, 1, 2])

    def found(plan, most):
        return [[x.config.seed for x in group] for group in grouping.groups(plan, most)]

    assert found(plan, 1) == [[0], [1], [2], [0], [1], [2]]
    assert found(plan, 2) == [[0, 1], [2, 0], [1, 2]]
    assert found(plan, 9) == [[0, 1, 2, 0, 1, 2]]
    # A run that has a checkpoint goes on alone.
    (plan[1].config.folder / "checkpoints" / "4").mkdir(parents=True)
    assert found(plan, 9) == [[0, 2, 0, 1, 2], [1]]
    # The radius of the gradient's own may be a schedule or another default.
    assert found(tiny_plan(tmp_path, rho=[None, 0.1], seed=[0, 1]), 9) == [[0, 1]] * 2
    tied = [
        x._replace(
            config=dataclasses.replace(x.config, gradient_options=("rho_min=0",))
        )
        for x in tiny_plan(tmp_path, rho=[0.1, 0.2], seed=[0, 1])
    ]
    assert found(tied, 9) == [[0, 1]] * 2
    others = tiny_plan(tmp_path, momentum=[0.5, 0.9], seed=[0, 1])
    assert found(others, 9) == [[0, 1]] * 2
    parts = tiny_plan(tmp_path, seed=[0, 1], fsdp=[2])
    assert found(parts, 9) == [[0], [1]]
    (limited,) = tiny_plan(tmp_path, time_limit=[1.0])
    said = []
    train_all([limited], tmp_path, lambda job: Ended(), said, together=2)
    alone = "trains alone: after --time-limit it goes on from a checkpoint"
    assert said[0] == f"{limited.name} {alone}"


def test_what_cannot_train_together_trains_run_by_run(tmp_path):
    plan, began, said = tiny_plan(tmp_path, seed=[0, 1, 2]), [], []

    def start(job):
        began.append(job.name)
        if len(job.runs) == 1:
            return Ended()
        log = sweep.log_of(tmp_path, job)
        log.parent.mkdir()
        log.write_text("error: the images are streamed.\n")
        return Ended(sweep.APART)

    result = train_all(plan, tmp_path, start, said, together=9)
    assert began == ["seed-0+2", "seed-0", "seed-1", "seed-2"]
    assert said[0] == "seed-0+2 trains run by run: the images are streamed."
    assert len(result.named("finished")) == 3


def test_of_runs_that_train_together_each_has_its_own_end(tmp_path):
    plan, said = tiny_plan(tmp_path, seed=[0, 1, 2]), []

    def start(job):
        # Of the others, one is done, and one has a reason.
        train_here(Job(job.runs[:1]))
        log = sweep.log_of(tmp_path, job)
        log.parent.mkdir()
        log.write_text("error: seed-2: the loss is not finite.\nerror: the rest.\n")
        return Ended(1)

    result = train_all(plan, tmp_path, start, said, together=9)
    assert list(result.outcomes.values()) == [
        Outcome("finished"),
        Outcome("failed", "the rest."),
        Outcome("failed", "the loss is not finite."),
    ]
    assert said[0].startswith("1/3 seed-0: finished, test accuracy ")
    assert said[0].endswith(" in one program of 3")


WORDS = ["sweep", "--model", "mlp", "--epochs", "1", "--batch-size", "512"]


def test_the_command_lists_the_runs_and_their_settings(tmp_path, capsys):
    words = [*WORDS, "--out", str(tmp_path / "s"), "--dry-run"]
    grid = ["--gradient", "backprop", "sam", "--rho", "0.1", "--seed", "0", "1"]
    assert main.main([*words, *grid]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "to train  gradient-backprop_seed-0"
    assert lines[-1] == "4 runs. Nothing was written."
    assert not (tmp_path / "s").exists()


def test_the_command_lists_which_device_gets_what(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(devices, "found", lambda: GPUS)
    words = [*WORDS, "--out", str(tmp_path / "s"), "--dry-run", "--devices", "0", "2"]
    grid = ["--gradient", "backprop", "sam", "zosam", "--seed", "0", "1"]
    assert main.main([*words, *grid, "--together", "2"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "to train  gradient-backprop_seed-0  on gpu:0",
        "with      gradient-backprop_seed-1",
        "to train  gradient-sam_seed-0  on gpu:2",
        "with      gradient-sam_seed-1",
        "to train  gradient-zosam_seed-0  on the first that is free",
        "with      gradient-zosam_seed-1",
        "6 runs in 3 programs. Nothing was written.",
    ]
    alone = ["--time-limit", "5", "--together", "2", "--jobs", "4"]
    assert main.main([*words, *alone]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "to train  run  on gpu:0  alone: after --time-limit it goes on from a "
        "checkpoint",
        "1 runs. Nothing was written.",
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rho", "0.1", "--gradient", "backprop"], "--rho 0.1 has no effect here"),
        (["--seed"], "--seed: it needs a value."),
        (["--augment"], '--augment: it needs a value; an empty list is "".'),
        (["--seed", "one"], "--seed: cannot read ['one']"),
        (["--seed", "0", "-1"], "--seed -1 must be an integer"),
        (["--gradient", "backprop", "sma"], "'sma'"),
        (["--jobs", "0"], "--jobs 0 must be"),
        (["--together", "0"], "--together 0 must be"),
        (["--overwrite"], "zosam sweep has no flag --overwrite"),
        (["--milestones", "0.5,half"], "must be numbers joined by commas"),
    ],
)
def test_what_a_sweep_refuses(words, message, tmp_path, capsys):
    line = [*WORDS, "--dry-run", "--out", str(tmp_path), *words]
    assert main.main(line) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "expected"), [([], [True]), (["False", "True"], [False, True])]
)
def test_a_flag_alone_says_yes(tmp_path, words, expected):
    line = [*WORDS, "--nesterov", *words]
    found = main.parsing.parse(line, {"sweep": command.Sweep})
    _, plan = found._plan({"nesterov"}, tmp_path)
    assert [planned.config.nesterov for planned in plan] == expected


def test_lists_are_words_with_commas():
    words = ["--milestones", "0.5,0.75", "0.3", "--augment", "None", "", "crop=4,flip"]
    words += ["--model-options", "--gradient-options", "directions=guided,seed=(1,2)"]
    kind = {"sweep": command.Sweep}
    words = [word for word in words if word != "--model-options"]
    found = main.parsing.parse(["sweep", "--schedule", "step", *words], kind)
    hints = command.typing.get_type_hints(TrainConfig)

    def values(name):
        return [command._value(w, hints[name], name) for w in getattr(found, name)]

    assert values("milestones") == [(0.5, 0.75), (0.3,)]
    assert values("augment") == [None, (), ("crop=4", "flip")]
    assert values("gradient_options") == [("directions=guided", "seed=(1,2)")]
    assert values("model_options") == [()]
    assert values("seed") == [0]


def test_every_default_of_a_sweep_is_that_of_a_training():
    found = command.Sweep.of({"preset": None, "config": None, "resume": None})
    hints, train = command.typing.get_type_hints(TrainConfig), TrainConfig()
    for name in set(hints) - command.HOUSEKEEPING:
        (word,) = getattr(found, name)
        assert command._value(word, hints[name], name) == getattr(train, name)


def test_the_processes_train_and_report_what_failed(tmp_path, capsys):
    words = [*WORDS, "--out", str(tmp_path), "--jobs", "2"]
    assert main.main([*words, "--dataset", "digits", f"npz:{tmp_path}/none.npz"]) == 1
    *_, failed, last = capsys.readouterr().out.splitlines()
    assert "none.npz failed: " in failed
    assert "cannot be read: No such file" in failed
    assert last.startswith(f"1 of 2 runs are finished in {tmp_path}. The same command")
    (run,) = record.read_all([tmp_path])
    assert run.summary is not None
    assert run.name == "dataset-digits"
    assert (
        "finished: test accuracy" in (tmp_path / "logs/dataset-digits.log").read_text()
    )


def test_a_process_of_several_seeds_on_one_of_the_devices(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("XLA_FLAGS", flags(2))
    words = [*WORDS, "--model-options", "hidden=(8,)", "--gradient", "backprop"]
    words += ["--method", "dense", "--devices", "1", "--together", "2"]
    assert main.main([*words, "--out", str(tmp_path), "--seed", "0", "1"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert all(line.endswith(" in one program of 2 on cpu:1") for line in lines)
    assert last == f"2 of 2 runs are finished in {tmp_path}."
    for seed in (0, 1):
        content = json.loads((tmp_path / f"seed-{seed}" / "config.json").read_text())
        (session,) = content["sessions"]
        assert (session["devices"], session["together"]) == (1, 2)
