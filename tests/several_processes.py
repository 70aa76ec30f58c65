"""Runs of several processes on this machine; also the program of each of them.

    python several_processes.py PROCESS PROCESSES PORT TASK FOLDER

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

import devices

FLAGS = {
    "dataset": "digits",
    "model": "mlp",
    "width": 0.1,
    "method": "set",
    "update_interval": 3,
    "gradient": "zosam",
    "epochs": 4,
    "batch_size": 360,
    "checkpoint_every": 1,
    "keep": 3,
}
"""Three steps an epoch, and new masks twice."""


class Ended(NamedTuple):
    """How a process has ended."""

    status: int
    found: dict
    stdout: str
    stderr: str
    time: float


def group(task, folder, processes, devices_each, timeout=240) -> list[Ended]:
    """Runs a task in so many processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "XLA_FLAGS": devices.flags(devices_each),
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    words = [str(processes), str(port), task, str(folder)]
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

    def __init__(self, folder):
        from zosam_jax.train import loop
        from zosam_jax.train.objects import Objects

        self.folder = folder
        self.compiled = loop.prepare(config(folder / "nothing"), Objects())

    def run(self, name, **fields):
        from zosam_jax.train import run

        compiled = self.compiled
        shared = compiled.again() if compiled.is_compiled else compiled
        return run(config(self.folder / name, **fields), compiled=shared)

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

    def die():
        (folder / "died").write_text(str(time.time()))
        os.kill(os.getpid(), signal.SIGKILL)

    if number == 1:
        at_step(5, die)
    return {"status": command("killed")}


def whole(folder, number, command):
    """A run, undisturbed; the killed one to its end; one that is stopped; refusals."""
    from zosam_jax.runs.metrics import MetricsLog

    found = {"status": command("whole")}
    runs = Runs(folder)
    found["killed"] = runs.run("killed").status
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
    """A run of one process, and the rest of one that two began; the step's programs."""
    runs = Runs(folder)
    found = {name: runs.run(name).status for name in ("one", "stopped")}
    step = runs.compiled._train_traced.program
    for platform in ("cuda", "tpu"):
        text = step.lower(lowering_platforms=(platform,)).as_text()
        main = next(x for x in text.splitlines() if "@main(" in x).split("->")[0]
        arguments = re.findall(r"%arg\d+: tensor<(\S+)> \{(.*?)\}(?=, %|\))", main)
        found[platform] = {
            "calls": sorted(set(re.findall(r"custom_call @(\w+)", text))),
            "donated": sum("aliasing_output" in x for _, x in arguments),
            "kept": [kind for kind, x in arguments if "aliasing_output" not in x],
        }
    advance: Any = runs.compiled._advance
    partitioned = advance.as_text()
    found["exchanged"] = [
        (name, [size(shape) for shape in re.findall(r"\w+\[([\d,]*)\]", shapes)])
        for shapes, name in re.findall(
            r"= (\(.*?\)|\S+) ((?:all|reduce|collective)-[a-z-]+)\(", partitioned
        )
    ]
    return found


def size(shape: str) -> int:
    return math.prod(int(n) for n in shape.split(",") if n)


def main() -> int:
    from zosam_jax.cli.main import main as zosam

    number, count, port = map(int, sys.argv[1:4])
    task = {"killed": killed, "whole": whole, "one": one}[sys.argv[4]]
    folder = Path(sys.argv[5])
    words = ["train", *(f"--{k.replace('_', '-')}={v}" for k, v in FLAGS.items())]
    if count > 1:
        # The dead one is missed soon; a busy machine is not.
        timeout = 10 if task is killed else 60
        words += ["--distributed", f"--coordinator=127.0.0.1:{port}"]
        words += [f"--num-processes={count}", f"--process-id={number}"]
        words += [f"--process-timeout={timeout}"]

    def command(name):
        return zosam([*words, f"--out={folder / name}"])

    sys.stdout.write(json.dumps(task(folder, number, command)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
