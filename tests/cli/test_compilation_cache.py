"""The cache of compiled programs."""

import subprocess
import sys
from pathlib import Path

import jax
import pytest

from zosam_jax.cli import compilation_cache

PROGRAM = """
import jax, jax.numpy as jnp
from zosam_jax.cli import compilation_cache
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
compilation_cache.use()
jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((3, 3)))
"""


@pytest.fixture
def setting():
    """JAX's folder, which is put back."""
    before = jax.config.jax_compilation_cache_dir
    yield before
    jax.config.update("jax_compilation_cache_dir", before)


def test_a_folder_that_jax_was_given_stays(setting):
    assert setting is not None
    compilation_cache.use()
    assert jax.config.jax_compilation_cache_dir == setting


def test_the_folder_depends_on_the_processor(monkeypatch, tmp_path, setting):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = compilation_cache.folder()
    assert first.parent == tmp_path / "zosam_jax"
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: "flags : sse avx_other\n")
    assert compilation_cache.folder() != first
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.use()
    assert jax.config.jax_compilation_cache_dir == str(compilation_cache.folder())


@pytest.mark.parametrize("enabled", ["true", "false"])
def test_programs_are_kept_unless_jax_is_told_not_to(monkeypatch, tmp_path, enabled):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", enabled)
    subprocess.run([sys.executable, "-c", PROGRAM], check=True)
    kept = list(tmp_path.rglob("*-cache"))
    assert bool(kept) == (enabled == "true")
