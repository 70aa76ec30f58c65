"""The trainer: a configuration in, a run folder out.

    config = TrainConfig(dataset="digits", sparsity=0.95, out="runs/mine")
    result = run(config)        # a second call resumes

`run` is loaded on first use, for it brings in Flax, Orbax and TFDS.
"""

from typing import TYPE_CHECKING, Any

from zosam_jax.train.config import TrainConfig as TrainConfig
from zosam_jax.train.errors import RunError as RunError
from zosam_jax.train.presets import PRESETS as PRESETS
from zosam_jax.train.presets import Preset as Preset
from zosam_jax.train.presets import preset as preset

if TYPE_CHECKING:
    from zosam_jax.train.loop import Result as Result
    from zosam_jax.train.loop import run as run


def __getattr__(name: str) -> Any:
    if name in ("run", "Result"):
        from zosam_jax.train import loop

        return getattr(loop, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
