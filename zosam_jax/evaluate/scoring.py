"""Scores a network on image sets: loss, score and calibration on each."""

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

from zosam_jax._types import PyTree
from zosam_jax.data import Dataset, label_variance
from zosam_jax.evaluate.image_sets import Batch, ImageSets
from zosam_jax.evaluate.measures import MEASURES
from zosam_jax.evaluate.results import Results
from zosam_jax.runs.errors import RunError
from zosam_jax.runs.files import JSON
from zosam_jax.train import accuracy, scores
from zosam_jax.train.batch import as_targets, normalized
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
      accuracy: Accuracy on it, or the score of another task; None until it is finished.
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
    """Sums over images: of the losses, of the scores, and those of the task."""

    loss: jax.Array
    score: jax.Array
    measured: PyTree


def _step(
    experiment: Experiment,
    network: PyTree,
    images: jax.Array,
    labels: jax.Array,
    counts: jax.Array,
    sums: _Sums,
) -> _Sums:
    """Returns the sums with a batch added. `counts` says which images count."""
    params, model_state = network
    inputs, labels = normalized(experiment, images), as_targets(labels)
    variables = {"params": params, **model_state}
    outputs = experiment.model.apply(variables, inputs, train=False)
    outputs = outputs.astype(jnp.float32)
    losses = jnp.where(counts, experiment.loss(outputs, labels), 0.0)
    parts, facts = scores.parts(experiment, outputs, labels), experiment.facts
    added = _Sums(
        jnp.sum(losses),
        scores.summed(facts, parts, sums.score.dtype, counts),
        MEASURES[facts.task].sums(outputs, labels, counts),
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
    facts, zero = experiment.facts, jnp.zeros(())
    # Pixels are too many to be counted in float32.
    dtype = jnp.int32 if facts.task == "segmentation" else jnp.float32
    measured = MEASURES[facts.task].none(facts.num_classes)
    none = _Sums(zero, scores.no_sums(facts, dtype), measured)
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
            result = _result(experiment, key, jax.device_get(sums))
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


def _result(experiment: Experiment, key: JSON, sums: _Sums) -> JSON:
    """Returns the result on an image set, as a line of `evaluation.jsonl`."""
    images, facts = key["images"], experiment.facts
    mean_loss = float(sums.loss) / images
    if not math.isfinite(mean_loss):
        raise RunError(
            f"the loss on {key['corruption']} is not finite: the logits of these "
            "images overflow float32."
        )
    columns = 1 if facts.task == "classification" else facts.num_classes
    variance = None
    if facts.task == "regression":
        assert isinstance(experiment.dataset, Dataset)
        variance = label_variance(experiment.dataset.test_labels[:images])
    return {
        "key": key,
        **scores.figures(experiment, sums.score, images * columns, variance),
        "loss": mean_loss,
        **MEASURES[facts.task].figures(sums.measured, images),
    }
