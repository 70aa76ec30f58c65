"""Streamed image sets: decoded on demand, in an order that the seed determines."""

import dataclasses
import functools
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, Literal, TypeVar

import numpy as np
from PIL import Image

from zosam_jax import _check
from zosam_jax.data import encoded_images
from zosam_jax.data.dataset import DatasetError, channel_statistics
from zosam_jax.data.encoded_images import EncodedImages, Source

SIZE = 224
"""Default side of the images, in pixels."""

# Fraction of the shorter side that the center crop of a test image keeps: 224 of 256.
_KEPT = 0.875
# Number of training images from which the mean is computed.
_SAMPLE = 256
_THREADS = 4
_ORDER, _CROP = range(2)

T = TypeVar("T")

TrainBatch = tuple[np.ndarray, np.ndarray]
"""Images, uint8 `[N, H, W, C]`, and labels, int32 `[N]`."""

TestBatch = tuple[np.ndarray, np.ndarray, int]
"""Images and labels, and how many of them count; the rest are zeros."""


@dataclasses.dataclass(frozen=True)
class Streamed:
    """Labelled images that stay encoded on disk and are decoded on demand.

    Attributes:
      encoded: The images on disk.
      mean: Mean of each channel of `images / 255`: the published one of ImageNet for
        its sets, otherwise the mean of 256 training images.
      std: Standard deviation of each channel of `images / 255`, likewise.
      image_shape: Height, width and channels of the decoded images.
      resize: Shorter side of a test image before its center is cropped, in pixels.
      least_area: Least fraction of its area that a random window of a training image
        has, in (0, 1]. None: training images are cropped as test images.
      crop_padding: 0: the usual crop is not a padded one.
      kind: "image".
    """

    encoded: EncodedImages
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_shape: tuple[int, int, int]
    resize: int
    least_area: float | None = encoded_images.LEAST_AREA
    crop_padding: int = 0
    kind: Literal["image"] = "image"
    task: Literal["classification"] = "classification"

    @property
    def name(self) -> str:
        """The name given to `load`."""
        return self.encoded.name

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each class."""
        return self.encoded.class_names

    @property
    def flip(self) -> bool:
        """Whether the mirror image has the same label. Batches are not mirrored."""
        return self.encoded.flip

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.encoded.class_names)

    @property
    def num_train(self) -> int:
        """Number of training images."""
        return len(self.encoded.train)

    @property
    def num_test(self) -> int:
        """Number of test images."""
        return len(self.encoded.test)

    def center(self, image: Image.Image, row: int = 0) -> Image.Image:
        """Returns the center crop of a test image; it does not depend on the row."""
        del row
        return encoded_images.center_crop(image, self.image_shape[0], self.resize)

    def test(self, start: int, stop: int) -> TrainBatch:
        """Returns the test images from `start` to `stop - 1`, and their labels.

        Returns:
          uint8 `[stop - start, H, W, C]` and int32 `[stop - start]`, cropped as in
          `evaluation_batches`.
        """
        rows = range(start, stop)
        return _read(self, self.encoded.test, rows, len(rows), self.center)

    def batches(
        self,
        seed: int,
        batch_size: int,
        start_step: int = 0,
        *,
        workers: int = 0,
        host: int = 0,
        hosts: int = 1,
    ) -> Generator[TrainBatch, None, None]:
        """Yields the training batches of the steps `start_step`, `start_step + 1`, ...

        Epoch e begins at step `e * (num_train // batch_size)`. Its order is a random
        permutation that depends on `(seed, e)`, and its incomplete last batch is
        dropped. The window of image i (`encoded_images.random_resized_crop`, or the
        center crop if `least_area` is None) depends on `(seed, e, i)`. So a batch is a
        function of the seed and the step.

        Args:
          seed: Seed, an integer.
          batch_size: Number of images of a step on all hosts, a multiple of `hosts`.
          start_step: The first step, from 0.
          workers: Number of decoding processes, which need Grain; 0 decodes in threads
            of this process. The iterator is endless: close it to end the processes.
          host: Index of this host.
          hosts: Number of hosts that share a batch.

        Yields:
          uint8 `[batch_size / hosts, H, W, C]` and int32 `[batch_size / hosts]`: the
          rows of the global batch from `host * batch_size / hosts` on.

        Raises:
          ValueError: An argument is out of range.
          DatasetError: An image is damaged, or Grain is missing.
        """
        _check_share(batch_size, workers, host, hosts)
        _check.whole("start_step", start_step, least=0)
        if batch_size > self.num_train:
            raise ValueError(
                f"batch_size={batch_size} is more than the {self.num_train} training "
                f"images of {self.name}."
            )
        train = functools.partial(_train_batch, self, seed, batch_size, host, hosts)
        return _each(train, start_step, 1 << 62, workers)

    def evaluation_batches(
        self, batch_size: int, *, workers: int = 0, host: int = 0, hosts: int = 1
    ) -> Generator[TestBatch, None, None]:
        """Yields batches of all test images in order.

        The shorter side of an image is resized to `resize`, and its center is cropped.

        Args:
          batch_size: As in `batches`.
          workers: As in `batches`.
          host: As in `batches`.
          hosts: As in `batches`.

        Yields:
          uint8 `[batch_size / hosts, H, W, C]`, int32 `[batch_size / hosts]`, and the
          number of images that count. The last batch is padded with zeros.
        """
        _check_share(batch_size, workers, host, hosts)
        test = functools.partial(_test_batch, self, batch_size, host, hosts)
        return _each(test, 0, -(-self.num_test // batch_size), workers)


def stream(images: EncodedImages, image_size: int | None = None) -> Streamed:
    """Returns an image set on disk as a streamed data set.

    Args:
      images: The set on disk.
      image_size: Side of the decoded images in pixels. Default: the side of the images
        if all are squares of one size up to 224, otherwise 224.

    Raises:
      DatasetError: One of the images used for the mean is damaged.
    """
    own = None
    height, width = images.size or (0, 1)
    if height == width <= SIZE:
        own = height
    size = image_size or own or SIZE
    resize = size if size == own else round(size / _KEPT)
    shape = size, size, images.channels
    if images.statistics is not None:
        return Streamed(images, *images.statistics, shape, resize)
    blank = Streamed(images, (), (), shape, resize)
    count = min(_SAMPLE, len(images.train))
    rows = [i * len(images.train) // count for i in range(count)]
    sample = _read(blank, images.train, rows, count, blank.center)[0]
    return Streamed(images, *channel_statistics(sample), shape, resize)


def _check_share(batch_size: int, workers: int, host: int, hosts: int) -> None:
    _check.whole("batch_size", batch_size)
    _check.whole("workers", workers, least=0)
    _check.whole("hosts", hosts)
    _check.whole("host", host, least=0)
    if host >= hosts:
        raise ValueError(f"host={host} must be less than hosts={hosts}.")
    if batch_size % hosts:
        raise ValueError(f"batch_size={batch_size} must be a multiple of {hosts=}.")


def _train_batch(
    data: Streamed, seed: int, batch_size: int, host: int, hosts: int, step: int
) -> TrainBatch:
    """Returns the rows of a host in the training batch of a step."""
    epoch, place = divmod(step, data.num_train // batch_size)
    share = batch_size // hosts
    start = place * batch_size + host * share
    rows = _order(seed, epoch, data.num_train)[start : start + share].tolist()

    def window(image: Image.Image, row: int) -> Image.Image:
        if data.least_area is None:
            return data.center(image)
        raw = _bits(seed, _CROP, epoch, row).random_raw(encoded_images.DRAWS)
        draws = _uniform(raw)
        return encoded_images.random_resized_crop(
            image, draws, data.image_shape[0], data.least_area
        )

    return _read(data, data.encoded.train, rows, share, window)


def _test_batch(
    data: Streamed, batch_size: int, host: int, hosts: int, index: int
) -> TestBatch:
    """Returns the rows of a host in a test batch, and how many of them count."""
    share = batch_size // hosts
    start = index * batch_size + host * share
    rows = range(start, min(start + share, data.num_test))
    return *_read(data, data.encoded.test, rows, share, data.center), len(rows)


def _read(
    data: Streamed,
    source: Source,
    rows: Sequence[int],
    size: int,
    crop: Callable[[Image.Image, int], Image.Image],
) -> TrainBatch:
    """Returns the crops of some rows and their labels, padded with zeros.

    Args:
      data: The set.
      source: Its training or test images.
      rows: Rows of the source.
      size: Length of the result.
      crop: `(image, row)`; returns an image of the set's shape.
    """
    # The last batch has the shape of all others: one compiled program serves them.
    array = np.zeros((size, *data.image_shape), np.uint8)
    labels = np.zeros(size, np.int32)
    for i, (encoded, label) in enumerate(source.read(rows) if rows else ()):
        image = encoded_images.decode(
            data.encoded, source, rows[i], encoded, label, data.encoded.size
        )
        array[i] = encoded_images.pixels(crop(image, rows[i]))
        labels[i] = label
    return array, labels


def _bits(seed: int, *stream: int) -> np.random.PCG64:
    # NumPy guarantees raw bits across versions, but not its distributions.
    # A negative seed is a seed too.
    return np.random.PCG64(np.random.SeedSequence(seed % 2**64, spawn_key=stream))


def _uniform(raw: np.ndarray) -> np.ndarray:
    """Returns a number in [0, 1) for each 64 random bits.

    >>> _uniform(np.array([0, 1 << 63], np.uint64))
    array([0. , 0.5])
    """
    # A float64 holds 53 bits.
    return (raw >> np.uint64(11)) * 2.0**-53


@functools.lru_cache(maxsize=2)
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    """Returns the permutation of an epoch."""
    # Sorting random numbers of 64 bits: two are equal once in 10^7 epochs of ImageNet.
    return np.argsort(_bits(seed, _ORDER, epoch).random_raw(count), kind="stable")


def _each(
    function: Callable[[int], T], start: int, stop: int, workers: int
) -> Generator[T, None, None]:
    """Yields `function(i)` for i from `start` to `stop - 1`, computed ahead."""
    ahead = _in_processes if workers else _in_threads
    return ahead(function, start, stop, workers)


def _in_threads(
    function: Callable[[int], T], start: int, stop: int, workers: int
) -> Generator[T, None, None]:
    """Yields the results of threads of this process."""
    del workers
    # Pillow releases the interpreter lock while it decodes and resizes.
    count = min(_THREADS, os.cpu_count() or 1)
    indices = iter(range(start, stop))
    with ThreadPoolExecutor(count) as pool:
        try:
            # As many batches ahead as threads: more would only take memory.
            waiting = deque(pool.submit(function, i) for i in islice(indices, count))
            while waiting:
                done = waiting.popleft().result()
                waiting.extend(pool.submit(function, i) for i in islice(indices, 1))
                yield done
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _in_processes(
    function: Callable[[int], T], start: int, stop: int, workers: int
) -> Generator[T, None, None]:
    """Yields the results of Grain's processes; each takes every `workers`-th index."""
    try:
        import grain
        from absl import flags
    except ModuleNotFoundError as error:
        raise DatasetError(
            f"workers={workers} needs Grain: pip install 'grain>=0.2.18'. "
            "workers=0 does not."
        ) from error
    if not flags.FLAGS.is_parsed():  # Grain reads flags that a program may not parse
        flags.FLAGS.mark_as_parsed()
    options = grain.multiprocessing.MultiprocessingOptions(num_workers=workers)
    # One batch ahead in each process; the default is 500.
    reading = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
    indices = grain.MapDataset.range(start, stop)
    batches = indices.map(function).to_iter_dataset(reading)
    iterator = iter(batches.mp_prefetch(options, worker_init_fn=_stay))
    try:
        for batch in iterator:
            yield _copy(batch)
    except DatasetError:
        raise
    except RuntimeError as error:
        raise DatasetError(
            f"A process that reads images ended ({error}). If memory ran out, use "
            f"fewer than workers={workers}."
        ) from error
    finally:
        iterator.close()


def _copy(batch: Any) -> Any:
    """Returns a batch in memory that is not shared with another process."""
    return tuple(np.array(x) if isinstance(x, np.ndarray) else x for x in batch)


def _stay(index: int, count: int) -> None:
    """Makes a process ignore signals and end when the main process ends.

    After a signal, the main process needs batches until its last checkpoint.
    """
    del index, count
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
