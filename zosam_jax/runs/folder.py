"""The folder of a run: its checks, its lock and its `config.json`."""

import contextlib
import datetime
import fcntl
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from zosam_jax.runs import dataset_facts, environment, files, paths, schema, summary
from zosam_jax.runs.config import TrainConfig, check_types, differences, from_record
from zosam_jax.runs.dataset_facts import DatasetFacts
from zosam_jax.runs.errors import RunError, explained, sentence
from zosam_jax.runs.files import JSON

LOTTERY_RECORD = "lottery.json"
"""The file that marks a folder of lottery rounds; each round is a run folder in it."""

SWEEP_RECORD = "sweep.json"
"""The file that marks a folder of a sweep; it names the run folders in it."""

# In the order in which they are deleted, since a process may be killed on the way.
# Without the first, the run is unfinished. `config.json` is not among them: the new run
# replaces it in one step, so that the folder is that of a run at every moment.
_ENTRIES = ("summary.json", "checkpoints", "damaged", "tensorboard", "trackers.json")
_ENTRIES += ("curves.png", "evaluation.json", "evaluation.jsonl", "evaluation.png")
_ENTRIES += ("metrics.jsonl",)
# What may change between two sessions of a run without changing its configuration.
_ENVIRONMENT = ("commit", "cpus", "backend", "device", "devices")


class RecordedConfig(Protocol):
    """A configuration with a folder: of one run, or of the rounds of a lottery."""

    @property
    def folder(self) -> Path:
        """The absolute folder."""
        ...

    @property
    def overwrite(self) -> bool:
        """Whether to delete what is in the folder."""
        ...

    @property
    def keep(self) -> int:
        """Number of checkpoints to keep."""
        ...

    def record(self) -> JSON:
        """Returns all fields as a flat dictionary."""
        ...


def check(config: RecordedConfig, record: str = "config.json") -> int | None:
    """Raises `RunError` unless a run of `config` may start or resume in its folder.

    Nothing is written. A missing or empty folder is free, and so is one in which a run
    was killed before it wrote its record. A folder that holds a run must hold one of
    the same configuration, unless `config.overwrite` is set. Two configurations are the
    same if they differ in

    - fields of `zosam_jax.runs.config.HOUSEKEEPING`;
    - the path of the data, of the teacher or of the weights that it starts from, if the
      run keeps what lay there: the trainer compares that;
    - the number of epochs, if it grew: whether a run can be longer, the trainer knows.

    Args:
      config: The configuration.
      record: Name of the file that holds the configuration of this kind of run.

    Returns:
      The epochs of the run in the folder; None if it is free.
    """
    folder = config.folder
    with explained(folder, "read"):
        if not folder.exists():
            return None
        if not folder.is_dir():
            raise RunError(f"out={str(folder)!r} is a file. Choose another --out.")
        present = {entry.name for entry in folder.iterdir()}
        others = present - _begun(folder, record)
    if record not in present:
        if others:
            raise RunError(
                f"out={str(folder)!r} is not empty and holds no run of this kind "
                f"(there is no {record}). Choose another --out."
            )
        return None
    if config.overwrite:
        return None
    content, wanted = read_config(folder, record), config.record()
    stored = content["config"]
    changed = {
        name: pair
        for name, pair in differences(stored, wanted).items()
        if not _is_moved(name, pair, content)
    }
    if list(changed) == ["epochs"] and record == "config.json":
        old, new = changed["epochs"]
        if isinstance(old, int) and old < new:
            return old
    if changed:
        other = any((name in stored) != (name in wanted) for name in changed)
        writer = ", written by another version of zosam_jax" if other else ""
        listing = ", ".join(f"{k}: {a!r} -> {b!r}" for k, (a, b) in changed.items())
        raise RunError(
            f"{folder} holds a run of another configuration{writer} ({listing}). "
            "Choose another --out, or delete that run with --overwrite."
        )
    return stored["epochs"]


def _begun(folder: Path, record: str) -> set[str]:
    """Returns what a process that is killed before it writes the record may leave."""
    begun, checkpoints = {".lock", f"{record}.tmp"}, folder / "checkpoints"
    if checkpoints.is_dir() and not any(checkpoints.iterdir()):
        begun.add(checkpoints.name)
    return begun


def _is_moved(name: str, pair: tuple[Any, Any], content: JSON) -> bool:
    """Whether a field differs by a path alone, and the run keeps what lay there."""
    if name == "dataset":
        return name in content and paths.is_moved(*pair)
    entry = {"teacher": "teacher", "from_": "from"}.get(name)
    return entry is not None and entry in content and None not in pair


def check_space(config: RecordedConfig, needed: int) -> None:
    """Raises `RunError` unless the disk of the run's folder has enough free space.

    Args:
      config: The configuration.
      needed: Size of the checkpoints in bytes. 1 MiB is added for the other files.
    """
    needed += 2**20
    place = config.folder
    with explained(place, "read"):
        while not place.exists():
            place = place.parent
        free = shutil.disk_usage(place).free
    if free < needed:
        raise RunError(
            f"the disk of {config.folder} has {free / 2**20:.1f} MiB left; the run "
            f"needs about {needed / 2**20:.1f} MiB for keep={config.keep} checkpoints. "
            "Make room, choose another --out, or keep fewer with --keep 1."
        )


# The fields that the configurations of all versions have.
_CORE = {
    "dataset": schema.TEXT,
    "model": schema.TEXT,
    "method": schema.TEXT,
    "gradient": schema.TEXT,
    "epochs": schema.WHOLE,
    "seed": schema.WHOLE,
}
_SESSION = {"step": schema.WHOLE, "versions": schema.TEXTS}
_OF_SOME_SESSIONS = {
    "ended": schema.WHOLE,
    "seconds": schema.POSITIVE,
    "together": schema.WHOLE,
}
_PARTS = {
    "sessions": schema.list_of(schema.OBJECT),
    "objects": schema.TEXTS,
    "dataset": schema.OBJECT,
    "teacher": schema.OBJECT,
    "from": schema.OBJECT,
    "lottery": schema.OBJECT,
}
_RESTORE = (
    "Nothing else tells how the run was made: restore the file from a copy, or start "
    "anew with --overwrite."
)


def read_config(folder: Path, record: str = "config.json") -> JSON:
    """Returns the contents of a run's `config.json`.

    Args:
      folder: The run's folder.
      record: Name of another file to read instead, as in `check`.

    Returns:
      An object whose "config" is the configuration and whose "sessions", if present,
      are those that `write_config` describes.

    Raises:
      RunError: The file is missing or damaged.
    """
    path = folder / record
    needed = {"config": schema.OBJECT}
    content = files.read_object(path, needed, _PARTS, advice=_RESTORE)
    if content is None:
        raise RunError(f"{folder} is not the folder of a run: it has no {record}.")
    wrong = schema.fault(content["config"], _CORE)
    wrong = wrong and f"in 'config', {wrong}"
    for number, session in enumerate(content.get("sessions", []), start=1):
        found = schema.fault(session, _SESSION, _OF_SOME_SESSIONS)
        wrong = wrong or (found and f"in session {number}, {found}")
    try:
        check_types(content["config"])
    except ValueError as error:
        wrong = wrong or str(error).removesuffix(".")
    if wrong is not None:
        raise RunError(f"{path} is damaged: {wrong}. {_RESTORE}")
    return content


def stored_config(folder: Path, **changes: Any) -> TrainConfig:
    """Returns the configuration of a run, whose folder is where it lies now.

    Args:
      folder: The run's folder, absolute.
      **changes: Fields to set otherwise.

    Raises:
      RunError: `config.json` is missing, damaged, or of another version.
    """
    stored = read_config(folder)["config"]
    # Older versions described the rounds of a lottery in the configuration itself.
    stored = {name: value for name, value in stored.items() if name != "ticket"}
    changes = {"out": str(folder), "overwrite": False, **changes}
    try:
        return from_record(stored, **changes)
    except ValueError as error:
        raise RunError(f"{folder / 'config.json'}: {error}") from error


def read_facts(folder: Path) -> DatasetFacts | None:
    """Returns the facts of a run's data set; None if an older version wrote the run.

    Raises:
      RunError: `config.json` is missing or damaged.
    """
    return dataset_facts.read(read_config(folder), folder / "config.json")


def read_score(folder: Path) -> str:
    """Returns what the accuracies of a run are: "accuracy", "mean IoU" or another.

    Raises:
      RunError: `config.json` is missing or damaged.
    """
    facts = read_facts(folder)
    return "accuracy" if facts is None else facts.score


def read_summary(config: RecordedConfig) -> JSON | None:
    """Returns the `summary.json` of a configuration's run.

    Returns None if the run is unfinished, or if `config.overwrite` is set.

    Raises:
      RunError: The file is damaged.
    """
    return None if config.overwrite else summary.read(config.folder)


def clear(folder: Path) -> None:
    """Deletes the files of a run but for `config.json`; other files stay."""
    for name in _ENTRIES:
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def claim(
    config: RecordedConfig,
    record: str = "config.json",
    delete: Callable[[Path], None] = clear,
) -> Iterator[Path]:
    """Creates the run's folder, locks it against other processes, and yields it.

    With `config.overwrite`, an existing run is deleted first: its own files, except for
    its record, which the new run replaces.

    Args:
      config: The configuration.
      record: Name of the file that holds the configuration of this kind of run.
      delete: Deletes the files of such a run, but for the record.

    Raises:
      RunError: Another process is training in the folder.
    """
    folder = config.folder
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        # The file stays: to delete a file that others may be about to lock is a race.
        lock = (folder / ".lock").open("a+")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunError(
                f"another process is training in {folder}. Wait for it, or choose "
                "another --out."
            ) from error
        except OSError as error:
            # Some network file systems have no locks.
            raise RunError(sentence(error, folder / ".lock", "locked")) from error
        if config.overwrite and (folder / record).exists():
            with explained(folder, "deleted"):
                delete(folder)
        yield folder


def write_config(
    folder: Path,
    config: RecordedConfig,
    command: Sequence[str] | None,
    step: int,
    devices: Mapping[str, Any],
    beside: Mapping[str, Any] | None = None,
) -> dict[str, str]:
    """Writes `config.json`: the configuration and every session that trained the run.

    Args:
      folder: The run's folder.
      config: The configuration.
      command: The command line of this session, if it has one.
      step: The step at which this session starts.
      devices: The devices of this session, "backend", "device" (their kind),
        "devices" (their number) and "fsdp" (those that share a copy of the state), the
        number of its "processes", and its "numerics": settings that change numbers.
      beside: Further entries, beside "config" and "sessions".

    Returns:
      What changed since the session before, by name, as `{"jax": "0.10.2 -> 0.12.0"}`.
      The figures of such a run may differ from those of a run in one session.
    """
    path = folder / "config.json"
    goes_on = path.exists() and not config.overwrite
    sessions = read_config(folder).get("sessions", []) if goes_on else []
    sessions.append(
        {
            "started": datetime.datetime.now(datetime.UTC).isoformat("T", "seconds"),
            "step": step,
            "command": list(command) if command else None,
            "versions": environment.versions(),
            "commit": environment.commit(),
            **environment.machine(),
            **devices,
        }
    )
    content = {"config": config.record(), **(beside or {}), "sessions": sessions}
    files.write_json(path, content)
    if len(sessions) == 1:
        return {}
    old, new = map(_environment, sessions[-2:])
    return {
        name: f"{old[name]} -> {value}"
        for name, value in new.items()
        # Older versions recorded less.
        if name in old and old[name] != value
    }


def end_session(folder: Path, step: int, seconds: float) -> None:
    """Notes in `config.json` where its last session ended before the end of the run.

    Args:
      folder: The run's folder.
      step: The step at which it ended.
      seconds: Seconds of training up to there, of all sessions.
    """
    content = read_config(folder)
    content["sessions"][-1] |= {"ended": step, "seconds": seconds}
    files.write_json(folder / "config.json", content)


def seconds_at(folder: Path, step: int) -> float:
    """Returns the seconds of training up to a step; 0 if no session ended there.

    Args:
      folder: The run's folder.
      step: The step.
    """
    sessions = read_config(folder).get("sessions", [])
    found = [s.get("seconds", 0.0) for s in sessions if s.get("ended") == step]
    return max(found, default=0.0)


def _environment(session: JSON) -> JSON:
    """Returns what may change the numbers of a session, by name."""
    return {
        **session["versions"],
        **{name: session.get(name) for name in _ENVIRONMENT},
        # Older versions had one.
        "processes": session.get("processes", 1),
        "fsdp": session.get("fsdp", 1),
        **session.get("numerics", {}),
    }
