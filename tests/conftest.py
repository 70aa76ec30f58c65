import os
import tempfile
from pathlib import Path

import pytest

# Compiled programs are kept between test runs: a warm suite takes a third of the time.
cache = Path(tempfile.gettempdir()) / f"zosam_jax-tests-{os.getuid()}"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
os.environ.setdefault("JAX_PLATFORMS", "cpu")


@pytest.fixture(scope="module", autouse=True)
def _forget_programs():
    """Programs of one module are no use to the next, and take gigabytes together."""
    yield
    import jax

    jax.clear_caches()
