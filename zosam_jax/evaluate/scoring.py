"""Scores a network on image sets: accuracy, loss and calibration bins of each."""

import collections
import contextlib
import functools
import itertools
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zosam_jax._types import PyTree
from zosam_jax.evaluate import calibration
from zosam_jax.evaluate.image_sets import Batch, ImageSets
from zosam_jax.evaluate.results import Results
from zosam_jax.runs.errors import RunError
from zosam_jax.runs.files import JSON
from zosam_jax.train import accuracy
from zosam_jax.train.batch import normalized
from zosam_jax.train.experiment import Experiment

# Threads that read or corrupt images while the devices compute.
_THREADS = 4


class Progress(NamedTuple):
    """The progress of an evaluation.

    Attributes:
      done: Number of finished image sets, including those of earlier calls.
      total: Number of image sets.
      corruption: The set in progress, or the one just finished; "clean" is one too.
      severity: Its severity; 0 for the clean images.
      share: Fraction of its images sent to the devices, from 0 to 1.
      accuracy: Accuracy on it; None until it is finished.
      reused: Whether the accuracy comes from an earlier call.
    """

    done: int
    total: int
    corruption: str
    severity: int
    share: float
    accuracy: float | None
    reused: bool


class _Sums(NamedTuple):
    """Sums over images: the losses, and the bins of confidence."""

    loss: jax.Array
    bins: calibration.Bins


def _step(
    experiment: Experiment,
    network: PyTree,
    images: jax.Array,
    labels: jax.Array,
    sums: _Sums,
) -> _Sums:
    """Returns the sums with a batch added. Images of label -1 do not count."""
    params, model_state = network
    inputs = normalized(experiment, images)
    variables = {"params": params, **model_state}
    logits = experiment.model.apply(variables, inputs, train=False)
    logits = logits.astype(jnp.float32)
    counts = labels >= 0
    losses = experiment.loss(logits, jnp.maximum(labels, 0))
    added = _Sums(
        jnp.sum(jnp.where(counts, losses, 0.0)),
        calibration.bins(logits, labels, counts),
    )
    return jax.tree.map(jnp.add, sums, added)


def score(
    experiment: Experiment,
    network: PyTree,
    sets: ImageSets,
    keys: Sequence[JSON],
    results: Results,
    on_progress: Callable[[Progress], None],
) -> None:
    """Adds the missing results, in the order of `keys`.

    One program is compiled. It sees every set in batches of one size.

    Args:
      experiment: The model, its normalization of images, and the devices.
      network: `(params, model_state)` of the model.
      sets: The image sets.
      keys: The keys of the results; each names its "corruption" and "severity".
      results: The results of earlier calls, which are kept.
      on_progress: Called after every batch, and once for a finished set.
    """
    devices = experiment.mesh.size
    size = min(accuracy.batch_size(experiment), -(-sets.count // devices) * devices)
    batches = -(-sets.count // size)
    network = jax.device_put(network, experiment.replicated())
    step = jax.jit(functools.partial(_step, experiment))
    split = experiment.over_devices()
    zero = jnp.zeros((calibration.NUM_BINS,), jnp.float32)
    none = _Sums(jnp.zeros((), jnp.float32), calibration.Bins(zero, zero, zero))
    none = jax.device_put(none, experiment.replicated())
    # One stream of batches over all sets, so that the threads never wait between two.
    missing = [key for key in keys if results.get(key) is None]
    jobs = itertools.chain.from_iterable(
        sets.batches(key["corruption"], key["severity"], size) for key in missing
    )
    with contextlib.closing(_prefetch(jobs)) as prefetched:
        for done, key in enumerate(keys):
            where = (len(keys), key["corruption"], key["severity"])
            result = results.get(key)
            if result is not None:
                on_progress(Progress(done + 1, *where, 1.0, result["accuracy"], True))
                continue
            sums = none
            for number, batch in enumerate(itertools.islice(prefetched, batches)):
                on_progress(Progress(done, *where, number / batches, None, False))
                sums = step(network, *jax.device_put(batch, split), sums)
            result = _result(key, jax.device_get(sums))
            results.add(result)
            on_progress(Progress(done + 1, *where, 1.0, result["accuracy"], False))


def _prefetch(jobs: Iterator[Callable[[], Batch]]) -> Generator[Batch, None, None]:
    """Yields the results of jobs in order; threads run the next few jobs in advance."""
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


def _result(key: JSON, sums: _Sums) -> JSON:
    """Returns the result on an image set, as a line of `evaluation.jsonl`."""
    loss = float(sums.loss) / key["images"]
    if not math.isfinite(loss):
        raise RunError(
            f"the loss on {key['corruption']} is not finite: the logits of these "
            "images overflow float32."
        )
    bins = calibration.Bins(*(np.asarray(x, np.float64) for x in sums.bins))
    return {
        "key": key,
        "accuracy": float(bins.correct.sum()) / key["images"],
        "loss": loss,
        "ece": calibration.error(bins),
        "bins": {name: value.tolist() for name, value in bins._asdict().items()},
    }
