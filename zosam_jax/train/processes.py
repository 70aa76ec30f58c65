"""One run on several processes, with JAX's own runtime as the engine.

**The program.** Every process runs the same training: the same command on every host,
with `--distributed`. `jax.distributed.initialize` connects them before a backend
starts (`zosam_jax.cli.distributed`; from Python, call it yourself). The mesh then spans
all devices of all processes, in the order of the processes; `zosam_jax.train.sharding`
says what lies where. A step is one program over that mesh, so a batch, its order, its
augmentation and all draws are those of one process with as many devices. Only the order
in which floating-point sums are reduced is the collectives' own.

**The data.** Each host has the data set. One global order of the epoch, drawn from the
seed, says which examples make a batch; a host reads the rows of its own devices, and a
set in memory is gathered on them. The processes compare configuration, versions and
examples before they train (`check_same`).

**The record.** Only process 0 touches the folder of the run: the lock, the checks,
`config.json`, metrics, checkpoints, summary. So the folder need not be on a shared file
system. What process 0 finds or writes there, the others are told (`first`), errors
included: they raise the same sentence. A checkpoint is gathered leaf by leaf (`whole`),
written and read by process 0, and sent to the others bit for bit. It holds the whole
state, and so goes on with any number of processes and devices, and with any of its
leaves in parts or not.

**Ends.** JAX's preemption service turns a SIGTERM on any process into one step at which
all stop, save and exit with the same status (`Agreement`). SIGINT, SIGHUP, SIGUSR1 and
the time limit go the same way. If a process dies, the next collective fails in the
others, as a rule within a second, and they end with the address that it names. Where
none fails, JAX's heartbeats tell, and JAX ends the others with the number of the dead
process. The same commands go on from the last checkpoint.

All functions here are collective when there are several processes: every process calls
them, in the same order. With one process they cost nothing. `first` and `together` must
not be nested.
"""

import collections
import contextlib
import json
import platform
import re
import signal
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from zosam_jax._types import PyTree
from zosam_jax.data import DatasetError
from zosam_jax.runs.errors import LostProcess, RunError, sentence

T = TypeVar("T")

# The reasons of an early end, beside the numbers of signals.
_NONE, _TIME_LIMIT = -1, 0
# What the collectives of CPU and GPU, and JAX's own service, say of a lost peer.
_LOST = re.compile("Gloo|NCCL|RCCL|UNAVAILABLE|ABORTED|DEADLINE_EXCEEDED")
# Hosts that are named.
_LISTED = 16


def are_several() -> bool:
    """Whether the run has several processes."""
    return jax.process_count() > 1


def is_first() -> bool:
    """Whether this is process 0, which keeps the record of the run."""
    return jax.process_index() == 0


def first(action: Callable[[], T]) -> T:
    """Returns what an action returns in process 0; the others do not act.

    >>> first(lambda: 3)
    3

    Args:
      action: Returns what JSON can say. It is not collective.

    Raises:
      RunError: The action failed, in the words of process 0. There its own error is
        raised.
    """
    if not are_several():
        return action()
    if not is_first():
        told = json.loads(_tell(b""))
        if "error" in told:
            raise RunError(f"process 0 has ended the run: {told['error']}")
        return told["value"]
    try:
        found = action()
        said = json.dumps({"value": found})
    # The others wait for an answer, whatever happens here.
    except BaseException as error:
        _tell(json.dumps({"error": _sentence(error)}).encode())
        raise
    _tell(said.encode())
    return found


def together(action: Callable[[], T]) -> T:
    """Returns what an action returns, once it has succeeded in every process.

    >>> together(lambda: 3)
    3

    Args:
      action: What all do, each for itself. It is not collective.

    Raises:
      RunError: The action failed in another process, which the message names.
    """
    if not are_several():
        return action()
    try:
        found = action()
    except BaseException as error:
        _gather(_sentence(error))
        raise
    for number, said in enumerate(_gather("")):
        if said:
            raise RunError(f"process {number} has ended the run: {said}")
    return found


def sent(tree: PyTree, like: PyTree) -> PyTree:
    """Returns the arrays of process 0 in all processes, bit for bit.

    Args:
      tree: NumPy arrays; not read in the others.
      like: Arrays of the same shapes and types.
    """
    if not are_several():
        return tree

    def send(x: np.ndarray | jax.ShapeDtypeStruct) -> np.ndarray:
        whole = np.ascontiguousarray(x) if is_first() else np.zeros(x.shape, x.dtype)
        # A sum with zeros would lose the sign of -0.0, but not of its bytes.
        data = whole.reshape(-1).view(np.uint8)
        told = multihost_utils.broadcast_one_to_all(data)
        return np.asarray(told).view(whole.dtype).reshape(x.shape)

    return jax.tree.map(send, tree if is_first() else like)


def whole(x: jax.Array | np.ndarray) -> np.ndarray:
    """Returns a copy in host memory of an array, which may lie in parts on all devices.

    >>> whole(np.ones(2))
    array([1., 1.])

    Args:
      x: The array.
    """
    if isinstance(x, jax.Array) and not (
        x.is_fully_addressable or x.is_fully_replicated
    ):
        return np.asarray(multihost_utils.process_allgather(x, tiled=True))
    return np.array(x, copy=True)


def check_alone(what: str) -> None:
    """Raises `RunError` if there are several processes.

    >>> check_alone("a search")

    Args:
      what: What one process must do alone.
    """
    if are_several():
        raise RunError(
            f"{what} runs in one process, and here are {jax.process_count()}."
        )


def check_devices() -> None:
    """Raises `RunError` unless all processes have as many devices."""
    counts = collections.Counter(d.process_index for d in jax.devices())
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"process {i}: {n}" for i, n in sorted(counts.items()))
        raise RunError(
            f"the processes have different numbers of devices ({listed}). Give each "
            "as many."
        )


def check_same(values: Mapping[str, Any]) -> None:
    """Raises `RunError` unless values are the same in all processes.

    >>> check_same({"seed": 0})

    Args:
      values: What JSON can say, by name.
    """
    if not are_several():
        return
    rows = [json.loads(text) for text in _gather(json.dumps(dict(values)))]
    for number, row in enumerate(rows):
        for name, value in rows[0].items():
            if row.get(name) != value:
                raise RunError(
                    f"process {number} has {name}={row.get(name)!r}, and process 0 has "
                    f"{name}={value!r}. Start all processes with the same command, "
                    "versions and data."
                )


def listed() -> str:
    """Returns the processes and their hosts, as "2 processes: 0 on a, 1 on b"."""
    hosts = [f"{i} on {host}" for i, host in enumerate(_gather(platform.node()))]
    more = ", ..." if len(hosts) > _LISTED else ""
    return f"{len(hosts)} processes: {', '.join(hosts[:_LISTED])}{more}"


def signals() -> tuple[int, ...]:
    """Returns the signals that JAX's preemption service collects."""
    return (signal.SIGTERM,) if are_several() else ()


@contextlib.contextmanager
def losses(advice: str) -> Iterator[None]:
    """Makes what JAX raises where a process has died a `LostProcess`.

    Args:
      advice: Sentences for the end of its message.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        text = str(error).splitlines()[0] if str(error) else ""
        if not are_several() or not _LOST.search(text):
            raise
        raise LostProcess(
            f"process {jax.process_index()} has lost another one, which died or cannot "
            f"be reached. JAX says: {text.rstrip('.')}. {advice}"
        ) from error


class Agreement:
    """When a run stops early: all processes after the same step."""

    def __init__(self):
        """Nobody has asked yet."""
        self._is_asked = self._is_reached = False
        self._step = -1

    def stops(self, step: int, wanted: bool) -> bool:
        """Returns whether the run stops after a step.

        JAX's preemption service chooses the step, within seconds.

        Args:
          step: The steps done. Every step asks, the same in all processes.
          wanted: Whether this process wants to stop.
        """
        if not are_several():
            return wanted
        if wanted and not self._is_asked:
            self._is_asked = True
            # The service listens to this signal alone.
            signal.raise_signal(signal.SIGTERM)
        if step != self._step and not self._is_reached:
            self._step = step
            self._is_reached = multihost_utils.reached_preemption_sync_point(step)
        return self._is_reached


def reason(number: int | None, is_late: bool) -> int | None:
    """Returns the signal that ended the run, the same in all processes.

    None if it was the time limit.

    Args:
      number: The first signal that this process collected, or None.
      is_late: Whether its time limit is over.
    """
    if not are_several():
        return number
    own = number or (_TIME_LIMIT if is_late else _NONE)
    found = int(np.max(multihost_utils.process_allgather(np.int32(own))))
    # JAX collects SIGTERM itself, unseen.
    return signal.SIGTERM if found == _NONE else found or None


def _sentence(error: BaseException) -> str:
    if isinstance(error, RunError | DatasetError):
        return str(error)
    if isinstance(error, OSError):
        return sentence(error, "a file", "used")
    return f"{type(error).__name__}: {error}"


def _tell(data: bytes) -> bytes:
    """Returns the bytes of process 0."""
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(data))))
    room = _padded(data if is_first() else b"", size)
    return multihost_utils.broadcast_one_to_all(room).tobytes()[:size]


def _gather(text: str) -> list[str]:
    """Returns the text of every process."""
    data = text.encode()
    sizes = multihost_utils.process_allgather(np.int32(len(data)))
    rows = multihost_utils.process_allgather(_padded(data, int(sizes.max())))
    return [r.tobytes()[:n].decode() for r, n in zip(rows, sizes, strict=True)]


def _padded(data: bytes, size: int) -> np.ndarray:
    """Returns bytes with zeros up to a power of two, so that few programs compile."""
    room = 1 << max(size - 1, 255).bit_length()
    return np.frombuffer(data.ljust(room, b"\0"), np.uint8)
