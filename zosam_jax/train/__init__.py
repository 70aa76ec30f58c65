"""The trainer: a configuration in, a run folder out.

    config = TrainConfig(dataset="digits", sparsity=0.95, out="runs/mine")
    result = run(config)        # a second call resumes
    net = load("runs/mine")     # also zs.load
    net.predict("photo.png")

All names are loaded on first use: the trainer imports Flax, Orbax and TFDS.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zosam_jax.runs.config import TrainConfig as TrainConfig
    from zosam_jax.runs.errors import Divergence as Divergence
    from zosam_jax.runs.errors import RunError as RunError
    from zosam_jax.runs.presets import PRESETS as PRESETS
    from zosam_jax.runs.presets import Preset as Preset
    from zosam_jax.runs.presets import preset as preset
    from zosam_jax.train.load_run import LoadedRun as LoadedRun
    from zosam_jax.train.load_run import load as load
    from zosam_jax.train.loop import Result as Result
    from zosam_jax.train.loop import run as run
    from zosam_jax.train.loop import try_out as try_out
    from zosam_jax.train.prediction import Prediction as Prediction

_MODULES = {
    "TrainConfig": "runs.config",
    "Divergence": "runs.errors",
    "RunError": "runs.errors",
    "PRESETS": "runs.presets",
    "Preset": "runs.presets",
    "preset": "runs.presets",
    "LoadedRun": "train.load_run",
    "Prediction": "train.prediction",
    "Result": "train.loop",
    "load": "train.load_run",
    "run": "train.loop",
    "try_out": "train.loop",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"zosam_jax.{_MODULES[name]}"), name)
