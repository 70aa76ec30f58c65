"""Image sets that are decoded as they are needed, in an order known from the seed."""

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
from zosam_jax.data import images
from zosam_jax.data.sources import DatasetError, channel_statistics

SIZE = 224
# Of the shorter side, what the middle crop of a test image keeps: 224 of 256.
_KEPT = 0.875
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_SAMPLE = 256
_THREADS = 4
_ORDER, _CROP = range(2)

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Streamed:
    """A set of labelled images that stay encoded on disk.

    Attributes:
      found: The set on disk.
      mean: Mean of each channel of `images / 255`: ImageNet's published one for its
        sets, else that of 256 training images.
      std: Standard deviation of each channel of `images / 255`, likewise.
      image_shape: Height, width and channels of the images that are yielded.
      resize: Shorter side to which a test image is resized before its middle is cut.
      crop_padding: 0: training images are random parts already.
      kind: "image".
    """

    found: images.Found
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_shape: tuple[int, int, int]
    resize: int
    crop_padding: int = 0
    kind: Literal["image"] = "image"

    @property
    def name(self) -> str:
        """The name that `load` was given."""
        return self.found.name

    @property
    def class_names(self) -> tuple[str, ...]:
        """The name of each class, by label."""
        return self.found.class_names

    @property
    def flip(self) -> bool:
        """Whether left-right mirroring keeps the label. It is not done here."""
        return self.found.flip

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.found.class_names)

    @property
    def num_train(self) -> int:
        """Number of training images."""
        return len(self.found.train)

    @property
    def num_test(self) -> int:
        """Number of test images."""
        return len(self.found.test)

    def middle(self, image: Image.Image, row: int = 0) -> Image.Image:
        """Returns what is tested of an image, whichever row it is."""
        del row
        return images.center_crop(image, self.image_shape[0], self.resize)

    def test(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns some of the test images, as `evaluation_batches` has them.

        Args:
          start: The first.
          stop: The one behind the last.

        Returns:
          uint8 `[stop - start, H, W, C]` and int32 `[stop - start]`.
        """
        rows = range(start, stop)
        return _read(self, self.found.test, rows, len(rows), self.middle)

    def batches(
        self,
        seed: int,
        batch_size: int,
        start_step: int = 0,
        *,
        workers: int = 0,
        host: int = 0,
        hosts: int = 1,
    ) -> Generator[tuple[np.ndarray, np.ndarray], None, None]:
        """Yields the training batches of the steps `start_step`, `start_step + 1`, ...

        Epoch e is the steps from `e * (num_train // batch_size)` on. Its order is a
        permutation drawn from `(seed, e)`, its last, incomplete batch is dropped, and
        the part that is cut out of image i (`images.random_resized_crop`) is drawn from
        `(seed, e, i)`. So a batch is a function of the seed and the step.

        Args:
          seed: Seed, an integer.
          batch_size: Images of a step on all hosts together, a multiple of `hosts`.
          start_step: The first step, from 0.
          workers: Processes that decode, which needs Grain; 0 decodes in threads of
            this one. Close the iterator to end them before it is exhausted: it has no
            end.
          host: Of the hosts that share the batch, the one that this is.
          hosts: How many they are.

        Yields:
          uint8 `[batch_size / hosts, H, W, C]` and int32 `[batch_size / hosts]`: rows
          `host * batch_size / hosts` and on of the global batch.

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
    ) -> Generator[tuple[np.ndarray, np.ndarray, int], None, None]:
        """Yields every test image once, in order; see `batches` for the arguments.

        An image's shorter side is resized to `resize`, and its middle cut out.

        Yields:
          uint8 `[batch_size / hosts, H, W, C]`, int32 `[batch_size / hosts]`, and how
          many of them count: the last batch is filled up with zeros.
        """
        _check_share(batch_size, workers, host, hosts)
        test = functools.partial(_test_batch, self, batch_size, host, hosts)
        return _each(test, 0, -(-self.num_test // batch_size), workers)


def of(found: images.Found, image_size: int | None = None) -> Streamed:
    """Returns a set as a streamed one.

    Args:
      found: The set on disk.
      image_size: Side of its images in pixels. Default: the images' own side, where all
        are squares of one side up to 224, else 224.

    Raises:
      DatasetError: One of the images that are looked at for the mean is damaged.
    """
    own = None
    if found.size is not None and len(set(found.size)) == 1 and found.size[0] <= SIZE:
        own = found.size[0]
    size = image_size or own or SIZE
    resize = size if size == own else round(size / _KEPT)
    shape = size, size, found.channels
    if found.name.startswith("imagenet") and found.channels == 3:
        return Streamed(found, *_IMAGENET, shape, resize)
    blank = Streamed(found, (), (), shape, resize)
    count = min(_SAMPLE, len(found.train))
    rows = [i * len(found.train) // count for i in range(count)]
    sample = _read(blank, found.train, rows, count, blank.middle)[0]
    return Streamed(found, *channel_statistics(sample), shape, resize)


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
) -> tuple[np.ndarray, np.ndarray]:
    """Returns a host's part of the training batch of a step."""
    epoch, place = divmod(step, data.num_train // batch_size)
    share = batch_size // hosts
    start = place * batch_size + host * share
    rows = _order(seed, epoch, data.num_train)[start : start + share].tolist()

    def part(image: Image.Image, row: int) -> Image.Image:
        draws = _uniform(_bits(seed, _CROP, epoch, row).random_raw(images.DRAWS))
        return images.random_resized_crop(image, draws, data.image_shape[0])

    return _read(data, data.found.train, rows, share, part)


def _test_batch(
    data: Streamed, batch_size: int, host: int, hosts: int, index: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """Returns a host's part of a test batch, and how many of its images count."""
    share = batch_size // hosts
    start = index * batch_size + host * share
    rows = range(start, min(start + share, data.num_test))
    return *_read(data, data.found.test, rows, share, data.middle), len(rows)


def _read(
    data: Streamed,
    source: images.Source,
    rows: Sequence[int],
    size: int,
    view: Callable[[Image.Image, int], Image.Image],
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the views of some rows and their labels, filled up with zeros to `size`.

    Args:
      data: The set.
      source: Its training or test images.
      rows: Rows of the source.
      size: Length of the result.
      view: A function of an image and its row; the result has the set's shape.
    """
    array = np.zeros((size, *data.image_shape), np.uint8)
    labels = np.zeros(size, np.int32)
    for i, (encoded, label) in enumerate(source.read(rows) if rows else ()):
        image = images.decode(data.found, source, rows[i], encoded, label)
        array[i] = images.pixels(view(image, rows[i]))
        labels[i] = label
    return array, labels


def _bits(seed: int, *stream: int) -> np.random.PCG64:
    # Raw bits are the same in every version of NumPy; its distributions need not be.
    return np.random.PCG64(np.random.SeedSequence(seed % 2**64, spawn_key=stream))


def _uniform(raw: np.ndarray) -> np.ndarray:
    """Returns 64 random bits each as a number in [0, 1)."""
    return (raw >> np.uint64(11)) * 2.0**-53


@functools.lru_cache(maxsize=2)
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    """Returns the permutation of an epoch."""
    return np.argsort(_bits(seed, _ORDER, epoch).random_raw(count), kind="stable")


def _each(
    function: Callable[[int], T], start: int, stop: int, workers: int
) -> Generator[T, None, None]:
    """Yields `function(i)` for each i from `start`, in order, computed ahead."""
    ahead = _in_processes if workers else _in_threads
    return ahead(function, start, stop, workers)


def _in_threads(
    function: Callable[[int], T], start: int, stop: int, workers: int
) -> Generator[T, None, None]:
    del workers
    # Pillow decodes and resizes without the interpreter's lock.
    count = min(_THREADS, os.cpu_count() or 1)
    indices = iter(range(start, stop))
    with ThreadPoolExecutor(count) as pool:
        try:
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
    """Yields the same from Grain's processes; each takes every `workers`-th index."""
    try:
        import grain
        from absl import flags
    except ModuleNotFoundError as error:
        raise DatasetError(
            f"workers={workers} needs Grain: pip install 'grain>=0.2.18'. "
            "workers=0 does not."
        ) from error
    if not flags.FLAGS.is_parsed():  # Grain reads its own, which a program may not have
        flags.FLAGS.mark_as_parsed()
    options = grain.multiprocessing.MultiprocessingOptions(num_workers=workers)
    # One batch at a time: by default a process reads 500 ahead.
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
            f"A process that reads images ended ({error}). If memory ran out, fewer "
            f"than workers={workers} need less."
        ) from error
    finally:
        iterator.close()


def _copy(batch: Any) -> Any:
    """Returns a batch in memory that is this process's alone."""
    return tuple(np.array(x) if isinstance(x, np.ndarray) else x for x in batch)


def _stay(index: int, count: int) -> None:
    """Lets signals stop the main process alone, and ends this one with it.

    The main process still needs batches between the signal and its last checkpoint.
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
