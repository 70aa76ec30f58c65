"""Text as sequences of bytes: Python's own documentation, or any file."""

import hashlib
import os
import pathlib

import numpy as np

from zosam_jax.data.sources import Dataset, DatasetError

LENGTH = 128
_HELD_OUT = 10


def pydoc() -> Dataset:
    """Returns the reference that `help()` shows, about 0.5 MB of English.

    It is in every CPython, as `pydoc_data.topics`: the topics with a blank line between
    them, in the order of their names' SHA-256, so that the last tenth is like the rest.
    It is another text in another version of Python.
    """
    from pydoc_data.topics import topics

    def place(name: str) -> bytes:
        return hashlib.sha256(name.encode()).digest()

    text = "\n\n".join(topics[name] for name in sorted(topics, key=place))
    return sequences("pydoc", text.encode())


def file(path: str | os.PathLike[str]) -> Dataset:
    """Returns any file as text, whatever its encoding; see `sequences`.

    Raises:
      DatasetError: It cannot be read, or is too short.
    """
    try:
        text = pathlib.Path(path).expanduser().read_bytes()
    except OSError as error:
        raise DatasetError(f"text:{path} cannot be read: {error}.") from error
    return sequences(f"text:{path}", text)


def sequences(name: str, text: bytes, length: int = LENGTH) -> Dataset:
    """Returns a text as sequences that do not overlap; a token is a byte.

    The last tenth of the text is held out as the test set, so no test sequence has a
    byte of the training set. The target of a token is the byte after it. What is left
    over at the end of each part is dropped. It takes five bytes of memory a byte.

    Args:
      name: The set's name.
      text: The bytes.
      length: T, the tokens of a sequence.

    Raises:
      DatasetError: The text has less than one sequence for the test set.
    """
    tokens = np.frombuffer(text, np.uint8)
    cut = len(tokens) - len(tokens) // _HELD_OUT
    parts = [_cut(part, length) for part in (tokens[:cut], tokens[cut:])]
    if not len(parts[1][0]):
        least = _HELD_OUT * (length + 1)
        raise DatasetError(
            f"{name} has {len(tokens):,} bytes; at least {least:,} are needed, so that "
            f"its last tenth is a test sequence of {length} bytes and the next one."
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
