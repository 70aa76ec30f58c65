import gc
import os
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlir_contexts
import pytest

# Tests import and trace a lot that lives long: to look for garbage often finds none.
gc.set_threshold(20_000, 20, 50)

# Compiled programs are kept between modules, processes and test runs, small ones too,
# since every module builds its arrays with the same few hundred.
cache = Path(tempfile.gettempdir()) / f"zosam_jax-tests-{os.getuid()}"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Else every operation of a program carries up to 100 frames, most of them of pytest.
os.environ.setdefault("JAX_INCLUDE_FULL_TRACEBACKS_IN_LOCATIONS", "0")
# Of processes that tests start; in this one, each module decides.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

# Passes of XLA that optimise loops, or have nothing to do in programs without numbers
# of 4 or 8 bits. Without them small programs compile in six sevenths of the time.
IDLE_PASSES = (
    "batch-dot-simplification",
    "cpu-parallel-task-assigner",
    "dynamic-dimension-simplifier",
    "hlo-verifier",
    "reshape-mover",
    "simplify-sorts",
    "simplify-while-loops",
    "sub-byte-size-setter",
    "tree_reduction_rewriter",
    "while-loop-constant-sinking",
    "while-loop-invariant-code-motion",
    "while-loop-simplifier",
    "while-loop-trip-count-annotator",
    "zero_sized_hlo_elimination",
    "float-normalization-f4e2m1fn",
    "float-normalization-f8e3m4",
    "float-normalization-f8e4m3",
    "float-normalization-f8e4m3b11fnuz",
    "float-normalization-f8e4m3fn",
    "float-normalization-f8e4m3fnuz",
    "float-normalization-f8e5m2",
    "float-normalization-f8e5m2fnuz",
    "float-normalization-f8e8m0fnu",
    "float-normalization-s4",
    "float-normalization-u4",
)

# Without its fusion emitters (MLIR), XLA:CPU compiles small programs much faster, and
# splitting them for several compiler threads does not pay. Later versions have no other
# way, and refuse the first flag. The caller's flags come last, so that they win.
flags = [f"--xla_disable_hlo_passes={','.join(IDLE_PASSES)}"]
if version("jaxlib").startswith("0.10."):
    flags += ["--xla_cpu_use_fusion_emitters=false"]
    flags += ["--xla_cpu_parallel_codegen_split_count=1"]
os.environ["XLA_FLAGS"] = " ".join([*flags, os.environ.get("XLA_FLAGS", "")])

OPTIMISED = (
    "data",
    "test_estimators",
    "test_reductions",
    "test_sparse_replicas",
    "test_tree",
    "test_zosam",
)
"""Folders and modules whose programs LLVM optimises.

They compare different programs bit for bit, work on many images, draw a lot, or choose
themselves. The programs of all others compile in two thirds of the time.
"""


def is_fast(path: Path) -> bool:
    """Whether LLVM does not optimise the programs of a module."""
    return {path.stem, path.parent.name}.isdisjoint(OPTIMISED)


def pytest_collection_modifyitems(items):
    """Those that it optimises come first: between the two, programs are dropped."""
    items.sort(key=lambda item: is_fast(item.path))


def pytest_collection_finish(session):
    """The garbage collector need not look at the imported packages again."""
    gc.collect()
    gc.freeze()


KEPT = 3_000
"""Programs that modules share before they are dropped: they take memory."""


class Compiled:
    """What has been compiled since programs were last dropped.

    Attributes:
      fast: Whether LLVM did not optimise it; None before the first module.
      programs: How many programs.
    """

    fast: bool | None = None
    programs = 0

    def listen(self, event: str, _: float, **__: Any) -> None:
        """Counts the events of JAX that are compilations."""
        self.programs += event.endswith("/backend_compile_duration")


@pytest.fixture(scope="session")
def _compiled():
    import jax

    compiled = Compiled()
    jax.monitoring.register_event_duration_secs_listener(compiled.listen)
    return compiled


@pytest.fixture(scope="module", autouse=True)
def _programs(request, _compiled):
    """Modules share programs, until these are too many or the setting is another."""
    import jax

    fast = is_fast(request.path)
    if fast != _compiled.fast or _compiled.programs > KEPT:
        jax.clear_caches()
        _compiled.fast, _compiled.programs = fast, 0
        jax.config.update("jax_disable_most_optimizations", fast)
        mlir_contexts.share()
