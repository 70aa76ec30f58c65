"""MLIR contexts that programs of JAX 0.10 share, as those of JAX 0.12 do.

To load its dialects into a new context takes two thirds of the time of lowering a small
program. A context lives as long as a program that was lowered in it, and takes more
memory than the program.
"""

import functools
import threading
from importlib.metadata import version


def share() -> None:
    """Lets the programs of a thread share a context from here on."""
    if not version("jax").startswith("0.10."):
        return
    from jax._src.interpreters import mlir

    make = mlir.make_ir_context
    if hasattr(make, "renew"):
        make.renew()
        return

    @functools.cache
    def of_thread(_: int):
        return make()

    def shared():
        return of_thread(threading.get_ident())

    shared.renew = of_thread.cache_clear
    mlir.make_ir_context = shared
