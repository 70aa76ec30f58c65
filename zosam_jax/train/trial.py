"""A trial of a run: every check and one step, without a trace on the disk."""

import math
import time

from zosam_jax.runs import folder
from zosam_jax.runs.config import TrainConfig
from zosam_jax.runs.errors import RunError
from zosam_jax.runs.progress import Display, Silent, duration
from zosam_jax.train import checkpoint, loop
from zosam_jax.train.compiled_run import CompiledRun
from zosam_jax.train.objects import Objects


def try_out(config: TrainConfig, display: Display | None = None) -> None:
    """Makes every check of `run`, compiles, trains one step and writes nothing.

    Args:
      config: The configuration.
      display: Where to show the figures of the step. Default: nowhere.

    Raises:
      RunError: The run cannot start, or the loss of its first step is not finite.
      zosam_jax.data.DatasetError: The data set is missing or damaged.
    """
    folder.check(config)
    compiled = loop.prepare(config, Objects())
    size = checkpoint.size_in_bytes(compiled.abstract)
    folder.check_space(config, (config.keep + 2) * size)
    one_step(compiled, display or Silent())


def one_step(compiled: CompiledRun, show: Display) -> None:
    """Compiles the programs, trains one step and shows its loss and time.

    Args:
      compiled: The programs.
      show: Where to show them.

    Raises:
      RunError: The loss is not finite.
    """
    show.message("compiling...")
    compiled.compile()
    state = compiled.init()
    batch = next(compiled.batches(0))
    started = time.perf_counter()
    _, totals = compiled.advance(state, batch, 1)
    loss = float(totals.loss)
    seconds = time.perf_counter() - started
    if not math.isfinite(loss):
        raise RunError(
            "the loss of the first step is not finite. Try a lower --learning-rate or "
            "a smaller --rho."
        )
    steps = compiled.experiment.total_steps
    show.message(
        f"dry run: the first of {steps:,} steps has loss {loss:.4f} and took "
        f"{seconds:.2f} s, after {sum(compiled.compile_seconds.values()):.1f} s of "
        f"compilation. At this speed the training takes {duration(steps * seconds)}. "
        "Nothing was written."
    )
