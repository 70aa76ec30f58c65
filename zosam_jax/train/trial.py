"""The steps of a dry run."""

import math
import time

import jax

from zosam_jax.runs.config import TrainConfig
from zosam_jax.runs.errors import Divergence
from zosam_jax.runs.progress import Display, duration
from zosam_jax.train import divergence, sharding
from zosam_jax.train.compiled_run import CompiledRun

_TIMED = 3


def one_step(config: TrainConfig, compiled: CompiledRun, show: Display) -> None:
    """Compiles the programs, trains a few steps and shows the first loss and the time.

    Args:
      config: The configuration.
      compiled: The programs.
      show: Where to show them.

    Raises:
      Divergence: The loss is not finite.
    """
    if compiled.start is not None:
        show.message(compiled.start.said)
    if text := sharding.shares(compiled.experiment.mesh, compiled.abstract):
        show.message(text)
    show.message("compiling...")
    compiled.compile()
    state, batches = compiled.init(), compiled.batches(0)
    state, totals = compiled.advance(state, next(batches), 1)
    loss, steps = float(totals.loss), compiled.experiment.total_steps
    if not math.isfinite(loss):
        raise Divergence(
            "the loss of the first step is not finite. "
            f"{divergence.advice(config, compiled.experiment)}"
        )
    # The first call of a program is slower than the others.
    started = time.perf_counter()
    count = min(_TIMED, compiled.experiment.steps_per_epoch - 1)
    for step in range(count):
        state, totals = compiled.advance(state, next(batches), step + 2)
    jax.block_until_ready(totals)
    seconds = (time.perf_counter() - started) / max(count, 1)
    batches.close()
    speed = (
        f"The next {count} took {seconds:.2g} s each: the training takes about "
        f"{duration(steps * seconds)} and the time of the evaluations. "
    )
    show.message(
        f"dry run: the first of {steps:,} steps has loss {loss:.4f}, after "
        f"{sum(compiled.compile_seconds.values()):.1f} s of compilation. "
        f"{speed if count else ''}Nothing was written."
    )
