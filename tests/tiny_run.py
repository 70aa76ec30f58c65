"""A run that takes seconds; also a program, for the tests that kill it.

    python tiny_run.py FOLDER... [kill_at=STEP | kill_in=STEP] [FIELD=VALUE ...]

It makes a run in each folder, with the same programs. `kill_at` sends SIGKILL once that
step is seen and the first checkpoint is complete; `kill_in`, when the checkpoint of
that step is written but not yet renamed.
"""

import ast
import dataclasses
import functools
import json
import os
import signal
import sys
import time
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from zosam_jax.data import Dataset
from zosam_jax.runs.config import default
from zosam_jax.runs.progress import Silent
from zosam_jax.train import RunError, TrainConfig, effects, loop, run
from zosam_jax.train import batch as batches
from zosam_jax.train import step as steps
from zosam_jax.train.checkpoint import Checkpoints
from zosam_jax.train.compiled_run import CompiledRun
from zosam_jax.train.objects import Objects

STATIC = ("random", "magnitude", "snip", "grasp", "synflow", "ticket")


class Net(nn.Module):
    """A convolution, a batch normalisation and a dense layer."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(8, (3, 3), name="conv")(x)
        x = nn.BatchNorm(use_running_average=not train, name="norm")(x)
        return nn.Dense(4, name="head")(nn.relu(x).mean((1, 2)))


def half_of_the_units(out: Path) -> TrainConfig:
    """A small MLP on the digits, of which half of the hidden units are pruned."""
    return TrainConfig(
        model="mlp",
        model_options=("hidden=(12, 8)",),
        method="units",
        gradient="backprop",
        rho=None,
        sparsity=0.5,
        epochs=1,
        out=str(out),
    )


def dataset(train: int = 70, test: int = 22) -> Dataset:
    """Four classes of noisy 6 x 6 images, told apart by the bright quadrant."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, train + test).astype(np.int32)
    images = rng.integers(0, 120, (train + test, 6, 6, 1)).astype(np.uint8)
    for image, label in zip(images, labels, strict=True):
        row, column = divmod(int(label), 2)
        image[3 * row : 3 * row + 3, 3 * column : 3 * column + 3] += 100
    return Dataset(
        name="quadrants",
        train_images=images[:train],
        train_labels=labels[:train],
        test_images=images[train:],
        test_labels=labels[train:],
        class_names=("a", "b", "c", "d"),
        mean=(0.3,),
        std=(0.2,),
        crop_padding=1,
        flip=False,
    )


def config(out, **fields) -> TrainConfig:
    """Four steps an epoch, a new topology every third step."""
    usual = {
        "dataset": "quadrants",
        "model": "tiny",
        "out": str(out),
        "batch_size": 16,
        "epochs": 3,
        "sparsity": 0.5,
        "checkpoint_every": 1,
    }
    if fields.get("method") not in STATIC:
        usual["update_interval"] = 3
    made = TrainConfig(**{**usual, **fields})
    # A method without a sparsity or an interval is not given one.
    idle = set(effects.without_effect(made)) & set(usual) - set(fields)
    return dataclasses.replace(made, **{name: default(name) for name in idle})


def train(out, display=None, **fields):
    """Runs the configuration."""
    chosen = config(out, **fields)
    return run(chosen, dataset=dataset(), model=Net(), display=display)


def prepare(chosen, data=None, model=None, **objects) -> CompiledRun:
    """The traced programs of a configuration."""
    given = Objects(data or dataset(), model or Net(), **objects)
    return loop.prepare(chosen, given)


@functools.cache
def programs(**fields):
    """The programs of a configuration, the same for all its runs."""
    return prepare(config("a folder that is not there", **fields))


def again(out, display=None, compiled=None, start=None, **fields):
    """Runs the configuration with programs that all such calls share.

    A run that resumes in a process of its own, with programs of its own, is a test of
    `test_kill.py`.
    """
    compiled = compiled or programs(**fields)
    shared = compiled.again() if compiled.is_compiled else compiled
    objects = {"dataset": dataset(), "model": Net()}
    chosen = config(out, **fields)
    return run(chosen, display=display, compiled=shared, start=start, **objects)


def final(out, **fields):
    """The state in the newest checkpoint of a run, as NumPy arrays."""
    checkpoints = Checkpoints(out / "checkpoints", 2)
    state = checkpoints.restore(programs(**fields).abstract, print)
    checkpoints.close()
    return state


def records(out):
    """The lines of a run's `metrics.jsonl`."""
    return [
        json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()
    ]


def batch(experiment, step, order=None, teacher=None):
    """The batch of a step as the network takes it."""
    step = jnp.int32(step)
    return batches.prepare(experiment, step, *raw(experiment, step, order), teacher)


def raw(experiment, step, order=None):
    """The examples and labels of a step."""
    if order is None:
        order = batches.epoch_order(experiment, step // experiment.steps_per_epoch)
    data = experiment.dataset.train_images, experiment.dataset.train_labels
    return batches.gather(experiment, step, order, *map(jnp.asarray, data))


def begin(experiment):
    """The state before the first step."""
    return jax.jit(CompiledRun(experiment)._first)(
        experiment.seed,
        jnp.asarray(experiment.dataset.train_images),
        jnp.asarray(experiment.dataset.train_labels),
    )


def advance(experiment):
    """`state -> state` after one more step, compiled."""
    return jax.jit(lambda state: next_state(experiment, state))


def next_state(experiment, state):
    """The state after one more step."""
    return steps.train_step(experiment, state, *raw(experiment, state.step), None)


def assert_same(a, b):
    """Bit for bit."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


class Recorder(Silent):
    """Remembers what is said and shown, and acts once at a step: it sends SIGTERM."""

    interval = 0.0

    def __init__(self, step=None, act=lambda: signal.raise_signal(signal.SIGTERM)):
        self.step, self.act, self.said, self.seen = step, act, [], []

    def message(self, text):
        self.said.append(text)

    def update(self, status):
        self.seen.append(status)
        if self.step is not None and status.step >= self.step:
            self.step = None
            self.act()


class Killer(Silent):
    """Kills the process at a step."""

    interval = 0.0

    def __init__(self, out, step):
        self.first, self.step = Path(out, "checkpoints", "4"), step

    def update(self, status):
        if status.step >= self.step:
            while not self.first.exists():
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)


def kill_in(step):
    """Arranges that the process is killed where Orbax completes a checkpoint."""
    rename = os.rename

    def killing(source, target, **rest):
        if os.path.basename(str(target)) == str(step):
            os.kill(os.getpid(), signal.SIGKILL)
        return rename(source, target, **rest)

    os.rename = os.replace = killing


def main() -> int:
    folders = [word for word in sys.argv[1:] if "=" not in Path(word).name]
    values = {}
    for field in sys.argv[1 + len(folders) :]:
        name, _, text = field.partition("=")
        try:
            values[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            values[name] = text
    display = None
    if "kill_at" in values:
        display = Killer(folders[0], values.pop("kill_at"))
    if "kill_in" in values:
        kill_in(values.pop("kill_in"))
    for folder in folders:
        try:
            result = again(Path(folder), display, **values)
        except RunError as error:
            sys.stderr.write(f"error: {error}\n")
            return 2
        if result.signal:
            return 128 + result.signal
    return 0


if __name__ == "__main__":
    sys.exit(main())
