"""What a trained network does under corruptions, and how sure it is of it.

    figures = evaluate("runs/mine", corruptions=("common",), images=1000)
    figures["mean_corrupted_accuracy"]

`evaluation.json` in the run's folder holds the figures of the last call;
`evaluation.jsonl` keeps a line for every test set that was ever evaluated, and a call
takes from there what it has.
"""

import collections
import contextlib
import datetime
import functools
import itertools
import json
import math
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from zosam_jax import _check, data
from zosam_jax.data import corruptions as corruptions_
from zosam_jax.evaluate import calibration
from zosam_jax.evaluate import figures as evaluation_figures
from zosam_jax.evaluate.test_sets import CLEAN, SOURCES, Batch, CorruptedTests
from zosam_jax.runs import folder, metrics
from zosam_jax.runs.errors import RunError
from zosam_jax.train import accuracy, checkpoint, trained
from zosam_jax.train.batch import normalized
from zosam_jax.train.objective import cross_entropy
from zosam_jax.train.task import Task

_RECORD, _LINES = "evaluation.json", "evaluation.jsonl"
# Threads that make or read images while the devices work.
_THREADS = 4


class Progress(NamedTuple):
    """Where an evaluation is.

    Attributes:
      done: Test sets done, those of earlier commands included.
      total: Test sets in all.
      corruption: The one that is being evaluated, or has been; "clean" is one.
      severity: Its severity; 0 of the clean images.
      share: Share of its images that were given to the devices.
      accuracy: On it; None before it is known.
      reused: Whether that is from an earlier command.
    """

    done: int
    total: int
    corruption: str
    severity: int
    share: float
    accuracy: float | None
    reused: bool


def evaluate(
    run: str | os.PathLike[str],
    *,
    corruptions: Sequence[str] = ("all",),
    severities: Sequence[int] = corruptions_.SEVERITIES,
    source: str = "generated",
    images: int | None = None,
    seed: int = 0,
    data_dir: str | None = None,
    published_dir: str | os.PathLike[str] | None = None,
    frost_dir: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    dataset: data.Dataset | data.Streamed | None = None,
    model: Any = None,
    on_progress: Callable[[Progress], None] | None = None,
    command: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Evaluates a finished run on clean and on corrupted test images.

    One program is compiled; it sees every test set in batches of one shape. What an
    earlier call has evaluated with the same weights, images and versions is not done
    again.

    Args:
      run: The run's folder.
      corruptions: Names, of which "common" stands for the 15 of the published measure
        and "all" for those and 4 more. In both, images of one channel leave out
        `saturate`, and generated ones have `frost_standin` for `frost` where there is
        no `frost_dir`.
      severities: Some of 1 to 5.
      source: "generated": made here from the test images, by the definitions of
        CIFAR-10-C or ImageNet-C. "published": the published sets themselves.
      images: Test images of each set to use, from its front. Default: all.
      seed: Of what is random in generated corruptions.
      data_dir: TFDS directory. Default: the run's own.
      published_dir: Folder of released .npy files, instead of TFDS's copy.
      frost_dir: Photographs for generated `frost`.
      out: Folder of the two files. Default: the run's.
      overwrite: Do all sets again.
      dataset: Images instead of those that the run's configuration names.
      model: A Linen module instead of the one that the run's configuration names.
      on_progress: Called after every batch, and once for a set.
      command: The command line, for the record.

    Returns:
      The contents of `evaluation.json`: accuracies and ECE from 0 to 1, losses (the
      negative log-likelihood) in nats.

    Raises:
      RunError: The run cannot be evaluated so; the message says what would work.
      zosam_jax.data.DatasetError: A data set is missing or damaged.
    """
    tell = on_progress or (lambda _: None)
    _check_options(corruptions, severities, source, images, seed)
    run_ = trained.load(Path(run), data_dir=data_dir, dataset=dataset, model=model)
    task, network = run_.task, (run_.params, run_.model_state)
    tests = CorruptedTests(
        task.dataset,
        source=source,
        images=images,
        seed=seed,
        data_dir=task.config.data_dir,
        published_dir=published_dir,
        frost_dir=frost_dir,
    )
    names, left_out = tests.choose(corruptions)
    keys = [tests.key(CLEAN, 0)]
    keys += [tests.key(n, s) for n in names for s in sorted(set(severities))]
    same = {
        "weights_crc32": checkpoint.digest(checkpoint.snapshot(network)),
        "versions": folder.versions(),
    }
    keys = [key | same for key in keys]
    place = Path(out).expanduser().resolve() if out else run_.folder
    with contextlib.closing(_records(place / _LINES, same, overwrite)) as records:
        _evaluate(task, network, tests, keys, records, tell)
        lines = [records.found(key) for key in keys]
    figures = {
        "run": run_.folder.name,
        "step": run_.summary["steps"],
        **evaluation_figures.figures(
            tests, [line for line in lines if line is not None]
        ),
        "left_out": left_out,
        "test_images": task.dataset.num_test,
        "training_test_accuracy": run_.summary["test_accuracy"],
        **same,
        "commit": folder.commit(),
        "command": list(command) if command else None,
        "written": datetime.datetime.now(datetime.UTC).isoformat("T", "seconds"),
    }
    metrics.write_json(place / _RECORD, figures)
    return figures


def _check_options(
    corruptions: Sequence[str],
    severities: Sequence[int],
    source: str,
    images: int | None,
    seed: int,
) -> None:
    try:
        _check.one_of("source", source, SOURCES)
        for severity in severities:
            _check.one_of("severity", severity, corruptions_.SEVERITIES)
        for name in corruptions:
            choices = ("all", "common", *corruptions_.NAMES)
            _check.one_of("corruption", name, choices)
        _check.whole("seed", seed, least=0)
        if images is not None:
            _check.whole("images", images)
    except ValueError as error:
        raise RunError(str(error)) from error
    if not corruptions or not severities:
        raise RunError("evaluate needs at least one corruption and one severity.")


class _Records:
    """The lines of `evaluation.jsonl`: one for each test set that was evaluated."""

    def __init__(self, lines: Iterable[dict[str, Any]], file: TextIO):
        self._by_key = {self._name(line["key"]): line for line in lines}
        self._file = file

    @staticmethod
    def _name(key: Mapping[str, Any]) -> str:
        return json.dumps(key, sort_keys=True)

    def found(self, key: Mapping[str, Any]) -> dict[str, Any] | None:
        """Returns the line of a test set, if it was evaluated."""
        return self._by_key.get(self._name(key))

    def add(self, line: dict[str, Any]) -> None:
        """Keeps a line, and writes it."""
        self._by_key[self._name(line["key"])] = line
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _records(path: Path, same: Mapping[str, Any], overwrite: bool) -> _Records:
    """Opens the file, without its lines of other weights or versions.

    Raises:
      RunError: It is damaged, or cannot be written.
    """
    lines = [] if overwrite else metrics.read(path)
    kept = [line for line in lines if same.items() <= line["key"].items()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(path.name + ".tmp")
        fresh.write_text("".join(json.dumps(line) + "\n" for line in kept))
        os.replace(fresh, path)
        return _Records(kept, path.open("a"))
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error}.") from error


class _Sums(NamedTuple):
    """Sums over images: the losses, and the bins of confidence."""

    loss: jax.Array
    bins: calibration.Bins


def _step(
    task: Task, variables: Any, images: jax.Array, labels: jax.Array, sums: _Sums
) -> _Sums:
    """Returns the sums with a batch added; images of label -1 do not count."""
    params, model_state = variables
    batch = normalized(task, images)
    logits = task.model.apply({"params": params, **model_state}, batch, train=False)
    logits = logits.astype(jnp.float32)
    counts = labels >= 0
    losses = cross_entropy(logits, jnp.maximum(labels, 0))
    added = _Sums(
        jnp.sum(jnp.where(counts, losses, 0.0)),
        calibration.bins(logits, labels, counts),
    )
    return jax.tree.map(jnp.add, sums, added)


def _evaluate(
    task: Task,
    variables: Any,
    tests: CorruptedTests,
    keys: Sequence[dict[str, Any]],
    records: _Records,
    tell: Callable[[Progress], None],
) -> None:
    """Adds the records that are missing, in order."""
    size = min(
        accuracy.batch_size(task), -(-tests.count // task.mesh.size) * task.mesh.size
    )
    batches = -(-tests.count // size)
    variables = jax.device_put(variables, task.replicated())
    step = jax.jit(functools.partial(_step, task))
    split = NamedSharding(task.mesh, PartitionSpec("data"))
    zero = jnp.zeros((calibration.NUM_BINS,), jnp.float32)
    none = _Sums(jnp.zeros((), jnp.float32), calibration.Bins(zero, zero, zero))
    none = jax.device_put(none, task.replicated())
    missing = [key for key in keys if records.found(key) is None]
    jobs = itertools.chain.from_iterable(
        tests.batches(key["corruption"], key["severity"], size) for key in missing
    )
    with contextlib.closing(_ahead(jobs)) as made:
        for done, key in enumerate(keys):
            where = (len(keys), key["corruption"], key["severity"])
            line = records.found(key)
            if line is not None:
                tell(Progress(done + 1, *where, 1.0, line["accuracy"], True))
                continue
            sums = none
            for number, batch in enumerate(itertools.islice(made, batches)):
                tell(Progress(done, *where, number / batches, None, False))
                sums = step(variables, *jax.device_put(batch, split), sums)
            line = _line(key, jax.device_get(sums))
            records.add(line)
            tell(Progress(done + 1, *where, 1.0, line["accuracy"], False))


def _ahead(jobs: Iterator[Callable[[], Batch]]) -> Generator[Batch, None, None]:
    """Yields the results of jobs in order, some of them made before they are asked."""
    with ThreadPoolExecutor(_THREADS) as pool:
        waiting: collections.deque[Future[Batch]] = collections.deque()
        try:
            for job in jobs:
                waiting.append(pool.submit(job))
                if len(waiting) > _THREADS:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _line(key: dict[str, Any], sums: _Sums) -> dict[str, Any]:
    """Returns the record of a test set."""
    loss = float(sums.loss) / key["images"]
    if not math.isfinite(loss):
        raise RunError(
            f"the loss on {key['corruption']} is not finite: the weights of the run "
            "give logits beyond float32 on these images."
        )
    bins = calibration.Bins(*(np.asarray(x, np.float64) for x in sums.bins))
    return {
        "key": key,
        "accuracy": float(bins.correct.sum()) / key["images"],
        "loss": loss,
        "ece": calibration.error(bins),
        "bins": {name: value.tolist() for name, value in bins._asdict().items()},
    }
