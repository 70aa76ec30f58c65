"""Runs of several processes on this machine; also the program of each of them.

    python several_processes.py PROCESS PROCESSES PORT TASK FOLDER FSDP

The processes meet at 127.0.0.1 and exchange over gloo. A task trains some runs in
FOLDER and prints what it finds as JSON, in its last line.
"""

import errno
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import devices

FLAGS = {
    "dataset": "digits",
    "model": "mlp",
    "width": 0.64,
    "method": "set",
    "update_interval": 3,
    "gradient": "zosam",
    "epochs": 4,
    "batch_size": 360,
    "checkpoint_every": 1,
    "keep": 3,
}
"""Three steps an epoch, and new masks twice. Both hidden layers can be split."""

TUNED = {"from_masks": "keep", "learning_rate": 0.01}
"""Of the runs that start from another one."""

LAYOUTS = {"alone": (1, 1), "half": (4, 2), "parts": (4, -1), "two": (2, 1)}
"""Devices of one process, and those that share a copy of the state."""


class Ended(NamedTuple):
    """How a process has ended."""

    status: int
    found: dict
    stdout: str
    stderr: str
    time: float


def group(task, folder, processes, devices_each, timeout=480, fsdp=1) -> list[Ended]:
    """Runs a task in so many processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "XLA_FLAGS": devices.flags(devices_each),
        "JAX_PLATFORMS": "cpu",
    }
    words = [str(processes), str(port), task, str(folder), str(fsdp)]
    running = [
        subprocess.Popen(
            [sys.executable, __file__, str(number), *words],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(processes)
    ]
    began, ended = time.monotonic(), []
    try:
        for process in running:
            out, err = process.communicate(timeout=began + timeout - time.monotonic())
            lines = [x for x in out.splitlines() if x.startswith("{")]
            found = json.loads(lines[-1]) if lines else {}
            ended.append(Ended(process.returncode, found, out, err, time.time()))
    finally:
        for process in running:
            process.kill()
    return ended


def at_step(step, act):
    """Arranges that this process acts once before a step."""
    from zosam_jax.train.compiled_run import CompiledRun

    advance, left = CompiledRun.advance, [step]

    def acting(self, state, batch, stop):
        if left and stop == left[0]:
            left.clear()
            act()
        return advance(self, state, batch, stop)

    CompiledRun.advance = acting


def config(out, **fields):
    from zosam_jax.runs.config import TrainConfig

    return TrainConfig(**{**FLAGS, "out": str(out), **fields})


class Runs:
    """Runs of one configuration, whose programs are compiled once."""

    def __init__(self, folder, devices=None, **fields):
        import jax

        from zosam_jax.train import loop
        from zosam_jax.train.objects import Objects

        self.folder, self.fields = folder, fields
        some = jax.devices()[:devices]
        with mock.patch.object(jax, "devices", return_value=some):
            chosen = config(folder / "nothing", **fields)
            self.compiled = loop.prepare(chosen, Objects())

    def run(self, name, on_epoch=None, **fields):
        from zosam_jax.train import run

        compiled = self.compiled
        shared = compiled.again() if compiled.is_compiled else compiled
        chosen = config(self.folder / name, **{**self.fields, **fields})
        return run(chosen, compiled=shared, on_epoch=on_epoch)

    def leave(self, name, epoch):
        """Trains until the end of an epoch, whose checkpoint is not written."""
        from zosam_jax.train import RunError

        def leave(epochs, state):
            if epochs == epoch:
                raise RunError("left")

        try:
            self.run(name, on_epoch=leave)
        except RunError as error:
            return str(error)
        return ""

    def refusal(self, name, **fields) -> str:
        """What the run says that cannot start or go on."""
        from zosam_jax.train import RunError

        try:
            self.run(name, **fields)
        except RunError as error:
            return str(error)
        return ""


def killed(folder, number, command):
    """A run of which process 1 is killed in the second epoch."""
    return dies(1, "killed", folder, number, command)


def orphaned(folder, number, command):
    """A run of which process 0 is killed, which keeps its record."""
    return dies(0, "orphaned", folder, number, command)


def dies(victim, name, folder, number, command):
    def die():
        (folder / f"died {name}").write_text(str(time.time()))
        os.kill(os.getpid(), signal.SIGKILL)

    if number == victim:
        at_step(5, die)
    return {"status": command(name)}


def again(folder, number, command):
    """A run, undisturbed; and those of which a process was killed, to their ends."""
    found = {"whole": command("whole")}
    # By other means: a process joins the others only once.
    runs = Runs(folder, fsdp=int(sys.argv[6]))
    for name in ("killed", "orphaned"):
        if (folder / name).exists():
            found[name] = runs.run(name).status
    return found


def whole(folder, number, command):
    """A run, undisturbed; the killed one to its end; one that is stopped; refusals."""
    from zosam_jax.runs.metrics import MetricsLog

    found = {"status": command("whole")}
    runs = Runs(folder)
    found["killed"] = runs.run("killed").status
    tuned = Runs(folder, from_=str(folder / "whole"), fsdp=-1, **TUNED)
    found["tuned"] = tuned.leave("tuned", 2)
    weights = tuned.compiled.abstract.params["hidden1"]["kernel"]
    found["part"] = weights.sharding.shard_shape(weights.shape)
    # A signal stays with JAX: later runs in these processes end at once.
    if number == 1:
        at_step(4, lambda: signal.raise_signal(signal.SIGTERM))
    # JAX looks for the signal once a second.
    at_step(5, lambda: time.sleep(3))
    stopped = runs.run("stopped")
    found |= {"stopped": stopped.status, "signal": stopped.signal}
    # What ends one process is known to the other.
    found["seeds"] = runs.refusal("seeds", seed=number)
    found["file"] = runs.refusal("file/run")

    def full(self, record):
        raise OSError(errno.ENOSPC, "No space left on device", "metrics.jsonl")

    MetricsLog.write = full
    found["full"] = runs.refusal("full")
    return found


def one(folder, number, command):
    """A run of one process, and the rest of one that two began; the step's programs.

    Then the rest of another one, with a part of the steps in each layout of its state.
    """
    runs = Runs(folder)
    found = {name: runs.run(name).status for name in ("one", "stopped")}
    found["step"] = programs(runs.compiled)
    tuned = {
        name: Runs(folder, devices, fsdp=fsdp, from_=str(folder / "whole"), **TUNED)
        for name, (devices, fsdp) in LAYOUTS.items()
    }
    found["alone"] = tuned["alone"].run("alone").status
    parts = tuned["parts"]
    found["parts"] = parts.run("parts").status
    parts.leave("parts again", 3)
    found["parts again"] = parts.run("parts again").status
    tuned["alone"].leave("tuned", 3)
    tuned["half"].leave("tuned", 4)
    found["tuned"] = tuned["two"].run("tuned").status
    found["sharded step"] = programs(parts.compiled)
    found["bits"] = [bits(folder / "parts", x.compiled) for x in tuned.values()]
    return found


def bits(run, compiled):
    """The digests of a run's last checkpoint, and of its state on the devices."""
    from zosam_jax.train import checkpoint

    checkpoints = checkpoint.Checkpoints(run / "checkpoints", 1, read_only=True)
    state = checkpoints.read(checkpoints.steps()[-1], compiled.abstract)
    checkpoints.close()
    placed = checkpoint.snapshot(compiled.place(state))
    return [checkpoint.digest(x) for x in (state, placed)]


def programs(compiled) -> dict:
    """What the step's programs call, keep and exchange."""
    found, step = {}, compiled._train_traced.program
    for platform in ("cuda", "tpu"):
        text = step.lower(lowering_platforms=(platform,)).as_text()
        main = next(x for x in text.splitlines() if "@main(" in x).split("->")[0]
        arguments = re.findall(r"%arg\d+: tensor<(\S+)> \{(.*?)\}(?=, %|\))", main)
        found[platform] = {
            "calls": sorted(set(re.findall(r"custom_call @(\w+)", text))),
            "donated": sum("aliasing_output" in x for _, x in arguments),
            "kept": [kind for kind, x in arguments if "aliasing_output" not in x],
        }
    advance: Any = compiled._advance
    partitioned = advance.as_text()
    found["exchanged"] = [
        (name, [size(shape) for shape in re.findall(r"\w+\[([\d,]*)\]", shapes)])
        for shapes, name in re.findall(
            r"= (\(.*?\)|\S+) (all-\w+|reduce-scatter|all-to-all|collective-permute)\(",
            partitioned,
        )
    ]
    return found


def size(shape: str) -> int:
    return math.prod(int(n) for n in shape.split(",") if n)


def main() -> int:
    from zosam_jax.cli.main import main as zosam

    number, count, port = map(int, sys.argv[1:4])
    tasks = (killed, orphaned, again, whole, one)
    task = {task.__name__: task for task in tasks}[sys.argv[4]]
    folder = Path(sys.argv[5])
    flags = FLAGS | {"fsdp": sys.argv[6]}
    words = ["train", *(f"--{k.replace('_', '-')}={v}" for k, v in flags.items())]
    if count > 1:
        # The dead one is missed soon; a busy machine is not.
        timeout = 10 if task in (killed, orphaned) else 60
        words += ["--distributed", f"--coordinator=127.0.0.1:{port}"]
        words += [f"--num-processes={count}", f"--process-id={number}"]
        words += [f"--process-timeout={timeout}"]

    def command(name):
        return zosam([*words, f"--out={folder / name}"])

    sys.stdout.write(json.dumps(task(folder, number, command)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
