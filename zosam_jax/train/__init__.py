"""The trainer: a configuration in, a run folder out.

    config = TrainConfig(dataset="digits", sparsity=0.95, out="runs/mine")
    result = run(config)        # a second call resumes

`run_lottery` runs the rounds of a search for lottery tickets in the same way. Both are
loaded on first use, for they bring in Flax, Orbax and TFDS.
"""

from typing import TYPE_CHECKING, Any

from zosam_jax.train.config import TrainConfig as TrainConfig
from zosam_jax.train.errors import RunError as RunError
from zosam_jax.train.lottery_config import LotteryConfig as LotteryConfig
from zosam_jax.train.presets import PRESETS as PRESETS
from zosam_jax.train.presets import Preset as Preset
from zosam_jax.train.presets import preset as preset

if TYPE_CHECKING:
    from zosam_jax.train.loop import Result as Result
    from zosam_jax.train.loop import run as run
    from zosam_jax.train.lottery import LotteryResult as LotteryResult
    from zosam_jax.train.lottery import run_lottery as run_lottery


def __getattr__(name: str) -> Any:
    if name in ("run", "Result"):
        from zosam_jax.train import loop

        return getattr(loop, name)
    if name in ("run_lottery", "LotteryResult"):
        from zosam_jax.train import lottery

        return getattr(lottery, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
