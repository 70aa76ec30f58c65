"""The checkpoints of a run: written atomically, kept few, verified when read."""

import contextlib
import shutil
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from zosam_jax._types import PyTree
from zosam_jax.runs.errors import RunError, explained
from zosam_jax.runs.files import JSON
from zosam_jax.train import processes, quiet

Like = PyTree | Callable[[JSON | None], PyTree]


def snapshot(state: PyTree) -> PyTree:
    """Returns a copy of `state` in host memory that outlives donated buffers.

    Collective, see `zosam_jax.train.processes`. Where devices of several processes
    share a leaf, it is gathered; one leaf after another.

    Args:
      state: Pytree of arrays.
    """
    return jax.tree.map(processes.whole, state)


def digest(state: PyTree) -> int:
    """Returns the CRC-32 of all leaves of a snapshot, with their types and shapes."""
    crc = 0
    for leaf in jax.tree.leaves(state):
        crc = zlib.crc32(f"{leaf.dtype}{leaf.shape}".encode(), crc)
        crc = zlib.crc32(np.ascontiguousarray(leaf).view(np.uint8).data, crc)
    return crc


def is_finite(state: PyTree) -> bool:
    """Returns whether every floating point number of a snapshot is finite."""
    floats = (
        leaf
        for leaf in jax.tree.leaves(state)
        if jnp.issubdtype(leaf.dtype, jnp.floating)
    )
    return all(bool(np.isfinite(leaf.astype(np.float32)).all()) for leaf in floats)


def size_in_bytes(state: PyTree) -> int:
    """Returns the uncompressed size in bytes of a state or of its shapes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


def _packed(state: PyTree) -> PyTree:
    """Returns a snapshot with its masks (all boolean arrays) packed, one bit each."""
    return jax.tree.map(
        lambda x: np.packbits(x.reshape(-1)) if _is_mask(x) else x, state
    )


def _unpacked(state: PyTree, template: PyTree) -> PyTree:
    return jax.tree.map(
        lambda x, like: (
            np.unpackbits(x, count=like.size).astype(bool).reshape(like.shape)
            if _is_mask(like)
            else x
        ),
        state,
        template,
    )


def _layout(state: PyTree) -> dict[str, tuple[tuple[int, ...], str]]:
    """Returns the shape and type of every array by its path."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): (
            tuple(x.shape),
            str(x.dtype),
        )
        for path, x in jax.tree_util.tree_flatten_with_path(state)[0]
    }


def _is_mask(x: np.ndarray | jax.Array) -> bool:
    return x.dtype == np.bool_ and x.ndim > 0


def steps_in(directory: Path) -> list[int]:
    """Returns the steps of the complete checkpoints in a folder, oldest first.

    Nothing in it changes.

    Args:
      directory: The folder, which need not exist.
    """
    if not directory.is_dir():
        return []
    with contextlib.closing(Checkpoints(directory, 1, read_only=True)) as found:
        return found.steps()


class Checkpoints:
    """The checkpoints of one run by step, in Orbax's layout.

    `save` writes in the background, into a temporary folder that is renamed when it is
    complete. Masks take one bit per weight. A CRC-32 is stored with the state and
    verified when it is read.
    """

    def __init__(self, directory: Path, keep: int, *, read_only: bool = False):
        """Opens the folder, and creates it if it does not exist.

        Args:
          directory: The folder, an absolute path.
          keep: Number of newest checkpoints to keep, >= 1.
          read_only: Create and delete nothing: another process may be writing there.

        Raises:
          RunError: The path is no folder, or cannot be used.
        """
        quiet.silence()
        self._directory = directory
        self._keep = keep
        self._read_only = read_only
        with explained(directory):
            if not directory.is_dir() and (
                read_only or directory.exists() or directory.is_symlink()
            ):
                raise RunError(
                    f"{directory} is no folder, so the weights of the run are not "
                    "there. Move it away: without checkpoints, the training command "
                    "starts again."
                )
            self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(
            max_to_keep=self._keep, cleanup_tmp_directories=True
        )
        if self._read_only:
            # Orbax would clean up what a training process is writing.
            options = ocp.CheckpointManagerOptions(create=False)
        if processes.are_several():
            # Orbax would wait for the other processes, which do not come here.
            own = jax.process_index()
            options.multiprocessing_options = ocp.options.MultiprocessingOptions(
                primary_host=own,
                active_processes={own},
                barrier_sync_key_prefix=f"process{own}",
            )
            if options.create:
                self._directory.mkdir(parents=True, exist_ok=True)
                options.create = False
        return ocp.CheckpointManager(self._directory, options=options)

    def steps(self) -> list[int]:
        """Returns the steps of the complete checkpoints, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: PyTree, network: JSON | None = None) -> None:
        """Starts to write a snapshot. A failure of the previous one is raised here.

        Args:
          step: Number of steps that the state has seen.
          state: A `snapshot`.
          network: What is said of its network, if that became smaller.

        Raises:
          RunError: This or the previous checkpoint could not be written.
        """
        said = {} if network is None else {"network": network}
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(_packed(state)),
            integrity=ocp.args.JsonSave({"crc32": digest(state), **said}),
        )
        self._guard(lambda: self._manager.save(step, args=args, force=True))

    def wait(self) -> None:
        """Waits until nothing is being written.

        Raises:
          RunError: A checkpoint could not be written.
        """
        self._guard(self._manager.wait_until_finished)

    def _guard(self, write: Callable[[], object]) -> None:
        """Calls `write`. Its errors become a `RunError` with the last checkpoint."""
        try:
            self._manager.check_for_errors()
            write()
        except Exception as error:
            full = "No space left" in str(error) or "Disk quota" in str(error)
            reason = "the disk is full." if full else _brief(error)
            advice = "Make room and run" if full else "Run"
            raise RunError(
                f"a checkpoint could not be written to {self._directory}: {reason} "
                f"{self.last_good()} {advice} the same command again."
            ) from error

    def last_good(self) -> str:
        """Returns a sentence that names the newest complete checkpoint."""
        steps = self.steps()
        if not steps:
            return "There is no earlier checkpoint."
        return f"The last good checkpoint is that of step {steps[-1]}."

    def restore(
        self,
        like: Like,
        warn: Callable[[str], None],
        fault: Callable[[int], str | None] = lambda _: None,
    ) -> PyTree | None:
        """Returns the newest usable state as NumPy arrays, or None without checkpoints.

        Newer checkpoints that are damaged or have a fault are moved to `damaged/`
        beside the folder.

        Args:
          like: Pytree of arrays or `jax.ShapeDtypeStruct`s to restore into, or what
            makes it of `network(step)`.
          warn: Called with a sentence for every checkpoint that is not used.
          fault: `step -> sentence`, why the checkpoint of a step cannot be used though
            it is intact; None if it can be.

        Raises:
          RunError: No checkpoint can be used, or an intact one has other arrays than
            `like`, as those of another version. Nothing is moved in either case.
        """
        damaged = {}
        for step in reversed(self.steps()):
            if reason := fault(step):
                damaged[step] = reason
                warn(f"the checkpoint of step {step} is not used: {reason}")
                continue
            template = None
            try:
                template = like(self.network(step)) if callable(like) else like
                state = self.read(step, template)
            except Exception as error:
                if others := self._of_another_layout(step, template):
                    shown = ", ".join(others[:3]) + ", ..." * (len(others) > 3)
                    raise RunError(
                        f"the checkpoint of step {step} in {self._directory} is not "
                        "damaged, but another version of zosam_jax wrote it (see "
                        "'sessions' in config.json): the state of a training has other "
                        f"arrays now ({shown}). Go on with that version, choose "
                        "another --out, or start anew with --overwrite."
                    ) from error
                damaged[step] = _brief(error)
                warn(f"the checkpoint of step {step} is damaged: {damaged[step]}")
                continue
            if damaged:
                warn(f"the run goes on from the one before it, of step {step}.")
                self._set_aside(damaged)
            return state
        if not damaged:
            return None
        raise RunError(
            f"no checkpoint in {self._directory} can be used: steps "
            f"{', '.join(map(str, damaged))}. The newest says: "
            f"{next(iter(damaged.values()))} Restore the folder from a copy, or start "
            "anew with --overwrite."
        )

    def read(self, step: int, template: PyTree) -> PyTree:
        """Returns the state of one step as NumPy arrays.

        Args:
          step: One of `steps()`.
          template: As for `restore`.

        Raises:
          Exception: It is damaged or missing: errors of Orbax, or a `RunError`.
        """
        empty = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), template)
        like = _packed(empty)
        args = ocp.args.Composite(
            state=ocp.args.StandardRestore(like), integrity=ocp.args.JsonRestore()
        )
        restored: Any = self._manager.restore(step, args=args)
        state = _unpacked(restored["state"], empty)
        if digest(state) != restored["integrity"]["crc32"]:
            raise RunError("its contents are not those that were written (CRC-32).")
        return state

    def network(self, step: int) -> JSON | None:
        """Returns what `save` was told of the network of a step.

        Args:
          step: One of `steps()`.

        Raises:
          Exception: The checkpoint is damaged or missing.
        """
        args = ocp.args.Composite(integrity=ocp.args.JsonRestore())
        restored: Any = self._manager.restore(step, args=args)
        return restored["integrity"].get("network")

    def _of_another_layout(self, step: int, template: PyTree) -> list[str]:
        """Returns the paths of arrays that differ between a checkpoint and a state."""
        if template is None:
            return []
        try:
            written = self._manager.item_metadata(step)["state"]
            found = _layout(getattr(written, "tree", written))
        except Exception:  # A damaged checkpoint; the error depends on the damage.
            return []
        empty = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), template)
        wanted = _layout(_packed(empty))
        # The metadata of deleted files are empty.
        paths = {**wanted, **found} if found else {}
        return [path for path in paths if wanted.get(path) != found.get(path)]

    def _set_aside(self, steps: Iterable[int]) -> None:
        self._manager.close()
        aside = self._directory.parent / "damaged"
        for step in steps:
            target = aside / str(step)
            if target.exists():
                shutil.rmtree(target)
            aside.mkdir(exist_ok=True)
            shutil.move(self._directory / str(step), target)
        self._manager = self._open()

    def close(self) -> None:
        """Waits for the background threads and ends them."""
        self._manager.close()


class CheckpointsOfAll:
    """The checkpoints of a run for all its processes: process 0 writes and reads them.

    All methods but `close` are collective, see `zosam_jax.train.processes`.

    Attributes:
      own: The checkpoints themselves, in process 0; else None.
    """

    own: Checkpoints | None

    def __init__(self, directory: Path, keep: int):
        """Opens the folder, and creates it if it does not exist.

        Args:
          directory: As for `Checkpoints`.
          keep: As for `Checkpoints`.

        Raises:
          RunError: The path is no folder, or cannot be used.
        """
        self.own = None
        processes.first(lambda: self._open(directory, keep))

    def _open(self, directory: Path, keep: int) -> None:
        self.own = Checkpoints(directory, keep)

    def _opened(self) -> Checkpoints:
        assert self.own is not None
        return self.own

    def save(self, step: int, state: PyTree, network: JSON | None = None) -> None:
        """Starts to write a snapshot, as `Checkpoints.save`."""
        processes.first(lambda: self._opened().save(step, state, network))

    def network(self, step: int) -> JSON | None:
        """Returns what is said of the network of a step, as `Checkpoints.network`."""
        return processes.first(lambda: self._opened().network(step))

    def wait(self) -> None:
        """Waits until nothing is being written, as `Checkpoints.wait`."""
        processes.first(lambda: self._opened().wait())

    def last_good(self) -> str:
        """Returns a sentence that names the newest complete checkpoint."""
        return processes.first(lambda: self._opened().last_good())

    def restore(
        self,
        template: PyTree,
        warn: Callable[[str], None],
        fault: Callable[[int], str | None],
        like: Like | None = None,
    ) -> PyTree | None:
        """Returns the newest usable state in all processes, as `Checkpoints.restore`.

        Args:
          template: Pytree of arrays or `jax.ShapeDtypeStruct`s to restore into.
          warn: As for `Checkpoints.restore`.
          fault: As for `Checkpoints.restore`.
          like: Makes the template of what a checkpoint says of its network; for one
            process.
        """
        found: list[PyTree] = []

        def read() -> bool:
            found.append(self._opened().restore(like or template, warn, fault))
            return found[0] is not None

        if not processes.first(read):
            return None
        return processes.sent(found[0] if found else None, template)

    def close(self) -> None:
        """Waits for the background threads and ends them."""
        if self.own is not None:
            self.own.close()


def _brief(error: Exception) -> str:
    """Returns the first line of an error, with its type, as a sentence."""
    lines = str(error).strip().splitlines() or [""]
    text = (
        lines[0]
        if isinstance(error, RunError)
        else f"{type(error).__name__}: {lines[0]}"
    )
    text = text if len(text) <= 300 else text[:297] + "..."
    return text if text.endswith(".") else text + "."
