"""Lottery tickets: rounds of training, pruning and rewinding.

    config = LotteryConfig(train=TrainConfig(method="dense"), rounds=5)
    result = run_lottery(config)        # a second call resumes

All names are loaded on first use: the trainer imports Flax, Orbax and TFDS.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zosam_jax.lottery.config import LotteryConfig as LotteryConfig
    from zosam_jax.lottery.rounds import LotteryResult as LotteryResult
    from zosam_jax.lottery.rounds import run_lottery as run_lottery
    from zosam_jax.lottery.rounds import try_lottery as try_lottery

_MODULES = {
    "LotteryConfig": "lottery.config",
    "LotteryResult": "lottery.rounds",
    "run_lottery": "lottery.rounds",
    "try_lottery": "lottery.rounds",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"zosam_jax.{_MODULES[name]}"), name)
