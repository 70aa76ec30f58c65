"""The one step of a dry run."""

import math
import time

from zosam_jax.runs.errors import RunError
from zosam_jax.runs.progress import Display, duration
from zosam_jax.train.compiled_run import CompiledRun


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
