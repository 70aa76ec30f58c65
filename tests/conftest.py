import os
import tempfile
from pathlib import Path

# Compiled programs are kept between test runs: a warm suite takes a third of the time.
cache = Path(tempfile.gettempdir()) / f"zosam_jax-tests-{os.getuid()}"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
