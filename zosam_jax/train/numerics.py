"""The settings of JAX and XLA that change the numbers of a run."""

import os
from typing import Any

import jax

OF_DRAWS = (
    "jax_enable_x64",
    "jax_default_prng_impl",
    "jax_threefry_partitionable",
    "jax_random_seed_offset",
)
"""The settings that give a seed other random numbers. Others change the rounding."""

_SETTINGS = (*OF_DRAWS, "jax_default_matmul_precision")
# Flags that compilers and libraries read from the environment.
_VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "NVIDIA_TF32_OVERRIDE")


def settings() -> dict[str, Any]:
    """Returns the settings by name, for the record of a session.

    >>> settings()["jax_enable_x64"]
    False
    """
    found = {name: getattr(jax.config, name, None) for name in _SETTINGS}
    return found | {name: os.environ.get(name) for name in _VARIABLES}
