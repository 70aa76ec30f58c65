import gc
import os
import tempfile
from pathlib import Path

import pytest

# Compiled programs are kept between modules, processes and test runs, small ones too,
# since every module builds its arrays with the same few hundred.
cache = Path(tempfile.gettempdir()) / f"zosam_jax-tests-{os.getuid()}"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

FAST_COMPILES = (
    "conformance",
    "evaluate",
    "lottery",
    "models",
    "test_combinations",
    "test_compiled_step",
    "test_dynamic",
    "test_gradients",
    "test_initialization",
    "test_objects",
    "test_sparsify",
    "test_streamed_training",
    "test_structured_nm",
    "test_structured_srigl",
    "test_structured_units",
    "test_text_training",
    "test_tickets",
    "test_training_options",
)
"""Folders and modules whose programs LLVM does not optimise: two thirds of the time.

What compares two programs bit for bit needs the programs that users run.
"""


def pytest_collection_finish(session):
    """The garbage collector need not look at the imported packages again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def _programs(request):
    """Programs of one module are no use to the next, and take gigabytes together."""
    import jax

    fast = not {request.path.stem, request.path.parent.name}.isdisjoint(FAST_COMPILES)
    jax.config.update("jax_disable_most_optimizations", fast)
    yield
    jax.clear_caches()
