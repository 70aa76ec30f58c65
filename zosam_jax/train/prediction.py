"""The classes that a trained network sees in images, batch by batch."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zosam_jax import _check
from zosam_jax._types import PyTree
from zosam_jax.data import IGNORED, preprocessing
from zosam_jax.runs.dataset_facts import DatasetFacts
from zosam_jax.runs.errors import RunError
from zosam_jax.train.batch import normalized
from zosam_jax.train.experiment import Experiment

PathLike = str | os.PathLike[str]
Inputs = np.ndarray | jax.Array | PathLike | Sequence[np.ndarray | PathLike]

BATCH_SIZE = 256
"""Default number of examples of a batch, over all devices together."""

# Pillow releases the interpreter lock while it decodes and resizes.
_THREADS = 4


class Prediction(NamedTuple):
    """The most probable classes of one example, its values, or the classes in it.

    Attributes:
      path: The file of the example; None for an array.
      classes: Names of the classes, the most probable first; of all values of a
        regression, in the order of the outputs. Of a segmentation, the classes of the
        pixels, the most frequent first.
      probabilities: Their probabilities, from 0 to 1; the values; or the shares of the
        pixels.
    """

    path: str | None
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]


class Examples(NamedTuple):
    """Examples that are read when their batch comes.

    Attributes:
      paths: The file of each example; None for arrays.
      read: `index -> ` raw example, uint8 `[H, W, C]` or tokens `[T]`.
    """

    paths: list[str | None]
    read: Callable[[int], np.ndarray]


def examples(facts: DatasetFacts, inputs: Inputs) -> Examples:
    """Returns the examples that a user names; files are not read yet.

    Args:
      facts: What the network knows of its data set.
      inputs: As in `LoadedRun.predict`.

    Raises:
      ValueError: An array has another type or shape than the network's examples.
      zosam_jax.data.DatasetError: A file does not exist.
    """
    if isinstance(inputs, str | os.PathLike):
        inputs = [inputs]
    if not hasattr(inputs, "dtype"):
        items = list(inputs)
        if not items:
            raise ValueError("inputs are empty: no image and no path.")
        paths = [x for x in items if isinstance(x, str | os.PathLike)]
        if len(paths) == len(items):
            return _files(facts, paths)
        if paths:
            raise ValueError(f"inputs mix arrays and paths, as {paths[0]!r}.")
        inputs = _stacked([np.asarray(x) for x in items])
    array = _checked(facts, np.asarray(inputs))
    return Examples([None] * len(array), array.__getitem__)


def _files(facts: DatasetFacts, paths: Sequence[PathLike]) -> Examples:
    found = preprocessing.found(paths)
    shape, resize = facts.image_shape, facts.resize

    def read(index: int) -> np.ndarray:
        if facts.kind == "text":
            return preprocessing.tokens(found[index], shape[0])
        return preprocessing.image(found[index], shape, resize)

    return Examples([*found], read)


def _stacked(arrays: Sequence[np.ndarray]) -> np.ndarray:
    shapes = sorted({x.shape for x in arrays})
    if len(shapes) > 1:
        raise ValueError(
            f"inputs have the shapes {', '.join(map(str, shapes))}; all images must "
            "have one shape."
        )
    return np.stack(arrays)


def _checked(facts: DatasetFacts, array: np.ndarray) -> np.ndarray:
    """Returns raw examples, `[N, ...]`; raises `ValueError` unless they are some."""
    shape, is_image = facts.image_shape, facts.kind == "image"
    sizes = "".join(f", {size}" for size in shape)
    wanted = f"uint8 [N{sizes}], from 0 to 255" if is_image else f"integers [N{sizes}]"
    if array.ndim == len(shape):
        array = array[None]
    is_right = array.dtype == np.uint8 if is_image else array.dtype.kind in "iu"
    if not is_right or array.shape[1:] != shape:
        advice = " Files of other sizes are resized: pass their paths." * is_image
        raise ValueError(
            f"inputs are {array.dtype} {list(array.shape)}; the network takes {wanted}."
            f"{advice}"
        )
    most = facts.num_classes - 1
    if not is_image and array.size and not 0 <= array.min() <= array.max() <= most:
        raise ValueError(f"inputs have tokens that are not from 0 to {most}.")
    return array


def logits(experiment: Experiment, variables: PyTree, raw: jax.Array) -> jax.Array:
    """Returns the logits of raw examples, float32 `[N, K]` (`[N, T, K]` of text).

    Args:
      experiment: The network and its normalization of images.
      variables: Parameters and other collections of the model.
      raw: Images, uint8 `[N, H, W, C]`, or tokens, `[N, T]`.
    """
    inputs = normalized(experiment, raw)
    return experiment.model.apply(variables, inputs, train=False).astype(jnp.float32)


_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "classification": jax.nn.softmax,
    "multilabel": jax.nn.sigmoid,
    "regression": lambda outputs: outputs,
    "segmentation": jax.nn.softmax,
}


def classify(experiment: Experiment) -> Callable[[PyTree, jax.Array], jax.Array]:
    """Returns `(variables, raw examples [N, ...]) -> probabilities`, compiled.

    The probabilities are float32 `[N, K]`. Those of text are of the token after the
    last one. A regression has its values instead, and a segmentation `[N, H, W, K]`.

    Args:
      experiment: The network, its normalization of images, and the devices.
    """

    @jax.jit
    def apply(variables: PyTree, raw: jax.Array) -> jax.Array:
        found = logits(experiment, variables, raw)
        if experiment.facts.kind == "text":
            found = found[:, -1]
        return _ACTIVATIONS[experiment.facts.task](found)

    return apply


def segment(experiment: Experiment) -> Callable[[PyTree, jax.Array], jax.Array]:
    """Returns `(variables, raw images) -> label maps`, compiled.

    They are uint8 `[N, H, W]`, of equal classes the first, and `IGNORED` where an
    output is not finite. The probabilities of all pixels stay on the devices.

    Args:
      experiment: The network, its normalization of images, and the devices.
    """

    @jax.jit
    def apply(variables: PyTree, raw: jax.Array) -> jax.Array:
        found = logits(experiment, variables, raw)
        best = jnp.argmax(found, -1).astype(jnp.uint8)
        return jnp.where(jnp.isfinite(found).all(-1), best, IGNORED)

    return apply


def outputs(
    experiment: Experiment,
    apply: Callable[[PyTree, jax.Array], jax.Array],
    variables: PyTree,
    given: Examples,
    batch_size: int = BATCH_SIZE,
) -> np.ndarray:
    """Returns the outputs for all examples, `[N, ...]`.

    Args:
      experiment: The network and its devices.
      apply: What `classify` or `segment` returns for it.
      variables: Parameters and other collections of the model.
      given: The examples.
      batch_size: Largest number of examples of a batch.

    Raises:
      RunError: An output is not finite.
      zosam_jax.data.DatasetError: A file cannot be used.
    """
    _check.whole("batch_size", batch_size)
    split = experiment.over_devices()
    found: list[np.ndarray] = []
    waiting: list[tuple[jax.Array, int]] = []
    for raw, count in _batches(experiment, given, batch_size):
        waiting.append((apply(variables, jax.device_put(raw, split)), count))
        # The next batch is read while the devices compute this one.
        while len(waiting) > 1:
            found.append(_host(*waiting.pop(0)))
    found += [_host(*last) for last in waiting]
    if not found:
        one = jax.ShapeDtypeStruct((1, *experiment.facts.image_shape), np.uint8)
        like = jax.eval_shape(apply, variables, one)
        return np.zeros((0, *like.shape[1:]), like.dtype)
    array = np.concatenate(found)
    is_wrong = array == IGNORED if array.dtype == np.uint8 else ~np.isfinite(array)
    wrong = np.flatnonzero(is_wrong.any(tuple(range(1, array.ndim))))
    if len(wrong):
        where = given.paths[wrong[0]] or f"example {wrong[0]}"
        raise RunError(f"the network's outputs for {where} are not finite.")
    return array


def _host(array: jax.Array, count: int) -> np.ndarray:
    return np.asarray(array)[:count]


def _batches(
    experiment: Experiment, given: Examples, batch_size: int
) -> Iterator[tuple[np.ndarray, int]]:
    """Yields raw examples, the last batch filled up, and how many of them count."""
    total, devices = len(given.paths), experiment.mesh.size
    # A power of two, so that calls with few examples share few programs.
    size = min(batch_size, 1 << max(total - 1, 0).bit_length())
    size = -(-size // devices) * devices
    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, total, size):
            rows = range(start, min(start + size, total))
            read = list(pool.map(given.read, rows))
            yield np.stack(read + read[-1:] * (size - len(read))), len(read)


def best(
    facts: DatasetFacts, given: Examples, found: np.ndarray, top: int
) -> list[Prediction]:
    """Returns the most probable classes of every example, or all its values.

    Args:
      facts: The names of the classes.
      given: The examples.
      found: Their probabilities, `[N, K]`.
      top: Number of classes; of equal ones, those that come first.
    """
    order = np.argsort(-found, axis=1, kind="stable")[:, :top]
    if facts.task == "regression":
        order = np.broadcast_to(np.arange(found.shape[1]), found.shape)
    names = facts.class_names
    return [
        Prediction(
            path, tuple(names[i] for i in row), tuple(float(values[i]) for i in row)
        )
        for path, row, values in zip(given.paths, order, found, strict=True)
    ]


def shares(
    facts: DatasetFacts, given: Examples, maps: np.ndarray, top: int
) -> list[Prediction]:
    """Returns the classes of the pixels of every image, and their shares.

    Args:
      facts: The names of the classes.
      given: The images.
      maps: Their label maps, uint8 `[N, H, W]`.
      top: Number of classes, the most frequent first; none without a pixel is told.
    """
    found = []
    for path, labels in zip(given.paths, maps, strict=True):
        counts = np.bincount(labels.ravel(), minlength=facts.num_classes)
        order = [i for i in np.argsort(-counts, kind="stable")[:top] if counts[i]]
        names = tuple(facts.class_names[i] for i in order)
        part = tuple(float(counts[i] / labels.size) for i in order)
        found.append(Prediction(path, names, part))
    return found
