"""A search for lottery tickets that takes seconds, and what its tests read it with."""

import dataclasses

import jax
import numpy as np
import tiny_run

import zosam_jax as zs
from zosam_jax.lottery import LotteryConfig, run_lottery
from zosam_jax.lottery.config import LotteryOptions
from zosam_jax.train import TrainConfig, choices, loop
from zosam_jax.train.checkpoint import Checkpoints


class Recorder(tiny_run.Recorder):
    """Remembers what is said, and sends a signal at a step of a round."""

    def __init__(self, round_=None, step=None):
        super().__init__(step)
        self.round = round_

    def message(self, text):
        super().message(text)
        if text == f"round {self.round} of 2" and self.step is None:
            raise KeyboardInterrupt

    def update(self, status):
        begun = [s for s in self.said if s.startswith("round ") and " of " in s]
        if begun[-1].split()[1] == str(self.round) and status.step >= self.step:
            self.round = None
            self.act()


def config(out, **fields):
    usual = {
        "dataset": "quadrants",
        "model": "tiny",
        "out": str(out),
        "batch_size": 16,
        "epochs": 3,
        "sparsity": 0.6,
        "method": "dense",
        "gradient": "backprop",
        "checkpoint_every": 1,
        "rounds": 2,
        "rewind_epoch": 1,
    }
    own = {field.name for field in dataclasses.fields(LotteryOptions)}
    values = {**usual, **fields}
    train = TrainConfig(**{k: v for k, v in values.items() if k not in own})
    return LotteryConfig(train=train, **{k: v for k, v in values.items() if k in own})


def search(out, display=None, **fields):
    return run_lottery(
        config(out, **fields),
        dataset=tiny_run.dataset(),
        model=tiny_run.Net(),
        display=display,
    )


def spy(monkeypatch):
    """Collects the states that rounds begin with."""
    starts, run = [], loop.run

    def spied(config, **rest):
        starts.append(rest["start"])
        return run(config, **rest)

    monkeypatch.setattr(loop, "run", spied)
    return starts


def template():
    """Shapes of the state, the same in all rounds."""
    chosen = tiny_run.config("unused", method="ticket", gradient="backprop")
    return tiny_run.prepare(chosen, method=choices.ticket_method(chosen)).abstract


def state_at(path, step, template):
    checkpoints = Checkpoints(path, 2)
    state = checkpoints.read(step, template)
    checkpoints.close()
    return state


def leaf_masks(state):
    tree = zs.sparsity.masks(state.opt_state)
    return [np.asarray(m) for m in jax.tree.leaves(tree)]
