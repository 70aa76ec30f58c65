"""Arrays by name in one file, in the format `safetensors`: nothing in it is executed.

A file is the length of a header (8 bytes, little-endian), the header (JSON: type, shape
and place of each array, and texts by name), and the bytes of the arrays. Libraries for
many languages read it; see huggingface.co/docs/safetensors.
"""

import itertools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np

from zosam_jax.runs import files, schema
from zosam_jax.runs.errors import RunError, explained

TYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
"""Types of arrays by their names in the format."""

_MOST_HEADER = 100_000_000


class TensorFile(NamedTuple):
    """The contents of a file.

    Attributes:
      tensors: Arrays by name.
      metadata: Texts by name.
    """

    tensors: Mapping[str, np.ndarray]
    metadata: Mapping[str, str]


def write(path: Path, content: TensorFile) -> None:
    """Writes a file that is either complete or unchanged.

    Args:
      path: The file. Its folder must exist.
      content: Arrays of one of `TYPES`, and texts.

    Raises:
      RunError: It cannot be written.
      KeyError: An array is of another type.
    """
    names = {dtype: name for name, dtype in TYPES.items()}
    header: dict[str, object] = {"__metadata__": dict(content.metadata)}
    start = 0
    # The largest types first: each array then begins at a multiple of its size.
    order = sorted(content.tensors, key=lambda k: -content.tensors[k].dtype.itemsize)
    for name in order:
        array = content.tensors[name]
        header[name] = {
            "dtype": names[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [start, start + array.nbytes],
        }
        start += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    arrays = (np.ascontiguousarray(content.tensors[name]).tobytes() for name in order)
    with explained(path):
        files.write_bytes(
            path, itertools.chain([len(text).to_bytes(8, "little"), text], arrays)
        )


def read(path: Path) -> TensorFile:
    """Returns the contents of a file.

    Raises:
      RunError: It cannot be read, or is damaged.
    """
    with explained(path, "read"):
        content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    body = memoryview(content)[8 + length :]
    try:
        if len(content) < 8 or length > min(_MOST_HEADER, len(content) - 8):
            raise ValueError("it has no header")
        header = files.parse(content[8 : 8 + length].decode())
        wrong = schema.fault(header, {}, {"__metadata__": schema.TEXTS})
        if wrong is not None:
            raise ValueError(wrong)
        metadata = header.pop("__metadata__", {})
        tensors = {name: _array(name, entry, body) for name, entry in header.items()}
    except ValueError as error:
        raise RunError(
            f"{path} is no safetensors file, or is damaged: {error}. Export it again."
        ) from error
    return TensorFile(tensors, metadata)


_ENTRY = {
    "dtype": schema.one_of(*TYPES),
    "shape": schema.list_of(schema.WHOLE),
    "data_offsets": schema.list_of(schema.WHOLE),
}


def _array(name: str, entry: object, body: memoryview) -> np.ndarray:
    """Returns an array of the file; raises `ValueError` unless it is whole."""
    wrong = schema.fault(entry, _ENTRY)
    if wrong is not None:
        raise ValueError(f"in {name!r}, {wrong}")
    assert isinstance(entry, dict)
    dtype = TYPES[entry["dtype"]]
    place, size = entry["data_offsets"], math.prod(entry["shape"]) * dtype.itemsize
    if len(place) != 2 or place[1] - place[0] != size or place[1] > len(body):
        raise ValueError(f"the bytes of {name!r} are not all there")
    return np.frombuffer(body[place[0] : place[1]], dtype).reshape(entry["shape"])
