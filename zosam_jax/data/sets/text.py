"""Text as sequences of bytes: Python's own documentation, or any file."""

import hashlib
import os

import numpy as np

from zosam_jax.data import files
from zosam_jax.data.dataset import Dataset, DatasetError

LENGTH = 128
"""Default length of a sequence, in bytes."""

MOST_BYTES = 1 << 30
"""Largest size of a text, in bytes: it is kept in memory, at five times its size."""

_HELD_OUT = 10


def read_pydoc() -> Dataset:
    """Returns the text of Python's `help()` topics, about 0.5 MB of English.

    Every CPython contains it as `pydoc_data.topics`. The topics are separated by blank
    lines and sorted by the SHA-256 of their names, so that the last tenth resembles the
    rest. The text differs between versions of Python.
    """
    from pydoc_data.topics import topics

    def place(name: str) -> bytes:
        return hashlib.sha256(name.encode()).digest()

    text = "\n\n".join(topics[name] for name in sorted(topics, key=place))
    return sequences("pydoc", text.encode())


def read_file(path: str | os.PathLike[str]) -> Dataset:
    """Returns the bytes of any file as text; see `sequences`.

    Raises:
      DatasetError: The file cannot be read, or is too short or too long.
    """
    name = f"text:{path}"
    place = files.place(name, path)
    try:
        text = files.read(place, MOST_BYTES)
    except OSError as error:
        raise DatasetError(f"{name} cannot be read: {error.strerror}.") from error
    return sequences(name, text)


def sequences(name: str, text: bytes, length: int = LENGTH) -> Dataset:
    """Returns a text as sequences that do not overlap; a token is a byte.

    The last tenth of the text is the test set, which shares no byte with the training
    set. The target of a token is the next byte. Bytes that do not fill a sequence at
    the end of either part are dropped. The result takes five times the memory of the
    text.

    Args:
      name: Name of the data set.
      text: The bytes.
      length: Number of tokens of a sequence, T.

    Raises:
      DatasetError: The text is too short for one test sequence.

    >>> sequences("count", bytes(range(100)), length=4).test_images
    array([[90, 91, 92, 93],
           [94, 95, 96, 97]], dtype=uint8)
    """
    tokens = np.frombuffer(text, np.uint8)
    # The end, not a random tenth: sequences beside each other share sentences.
    cut = len(tokens) - len(tokens) // _HELD_OUT
    parts = [_cut(part, length) for part in (tokens[:cut], tokens[cut:])]
    if not len(parts[1][0]):
        least = _HELD_OUT * (length + 1)
        raise DatasetError(
            f"{name} has {len(tokens):,} bytes; at least {least:,} are needed, so that "
            f"the last tenth has a test sequence of {length} bytes and its targets."
        )
    return Dataset(
        name=name,
        train_images=parts[0][0],
        train_labels=parts[0][1],
        test_images=parts[1][0],
        test_labels=parts[1][1],
        class_names=tuple(repr(bytes([token]))[2:-1] for token in range(256)),
        mean=(),
        std=(),
        crop_padding=0,
        flip=False,
        kind="text",
    )


def _cut(tokens: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the inputs, uint8 `[N, length]`, and the next tokens, int32."""
    count = max(len(tokens) - 1, 0) // length
    inputs, targets = tokens[: count * length], tokens[1 : count * length + 1]
    shape = count, length
    return inputs.reshape(shape).copy(), targets.reshape(shape).astype(np.int32)
