"""MLIR contexts that programs of JAX 0.10 share, as those of JAX 0.12 do.

To load its dialects into a new context takes two thirds of the time of lowering a small
program. A context lives as long as a program that was lowered in it, and takes more
memory than the program.
"""

import functools
import threading
from importlib.metadata import version


def share() -> None:
    """Lets all programs that a thread lowers from here on share a new context."""
    if not version("jax").startswith("0.10."):
        return
    from jax._src.interpreters import mlir

    _make()
    _of_thread.cache_clear()
    mlir.make_ir_context = lambda: _of_thread(threading.get_ident())


@functools.cache
def _make():
    """JAX's own function."""
    from jax._src.interpreters import mlir

    return mlir.make_ir_context


@functools.cache
def _of_thread(_: int):
    return _make()()
