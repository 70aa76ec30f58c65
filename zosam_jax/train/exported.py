"""A network in one file: weights, masks in bits, classes and preprocessing.

Arrays of a file, by the paths of the parameters and of the other collections:

    params/stem/kernel.mask     `numpy.packbits` of the mask in C order, deflated: uint8
    params/stem/kernel.values   the live weights, in C order
    params/head/bias            a dense leaf
    batch_stats/norm/mean       a leaf of another collection

The text `zosam` in the header is JSON: the configuration, the facts of the data set,
and the shapes of the sparse leaves. Weights may be rounded to bfloat16; masks, leaves
of fewer than two axes and the other collections never are.
"""

import json
import math
import zlib
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import ml_dtypes
import numpy as np

from zosam_jax import _check, tree
from zosam_jax._types import Masks, Params, PyTree
from zosam_jax.runs import dataset_facts, files, schema, tensor_file
from zosam_jax.runs.config import from_record
from zosam_jax.runs.errors import RunError
from zosam_jax.runs.tensor_file import TensorFile
from zosam_jax.train import model_card
from zosam_jax.train.experiment import ModelState
from zosam_jax.train.model_card import About

ValueType = Literal["float32", "bfloat16"]
"""Type of the weights in a file. "float32" stands for the type that they have."""


class Exported(NamedTuple):
    """The contents of a file.

    Attributes:
      about: What it says of its network.
      tensors: The arrays by name.
      shapes: Shape of each sparse leaf, by name.
    """

    about: About
    tensors: "dict[str, np.ndarray]"
    shapes: dict[str, list[int]]


class Network(NamedTuple):
    """The arrays of a network: its parameters, other collections, and masks."""

    params: Params
    model_state: ModelState
    masks: Masks


def pack(
    network: Network, dtype: ValueType = "float32"
) -> tuple[dict[str, np.ndarray], dict[str, list[int]]]:
    """Returns the arrays of a file by name, and the shapes of the sparse leaves.

    Args:
      network: The network, zero where pruned.
      dtype: "bfloat16": float32 leaves of two axes or more are rounded to it.
    """
    arrays: dict[str, np.ndarray] = {}
    shapes: dict[str, list[int]] = {}
    masks = jax.tree.leaves(network.masks)
    leaves = jax.tree.leaves(network.params)
    paths = _check.paths(network.params)
    for path, x, mask in zip(paths, leaves, masks, strict=True):
        name, x = f"params/{path}", np.asarray(x)
        if dtype == "bfloat16" and x.ndim > 1 and x.dtype == np.float32:
            x = x.astype(ml_dtypes.bfloat16)
        if tree.is_dense(mask):
            arrays[name] = x
            continue
        shapes[name] = list(x.shape)
        bits = zlib.compress(np.packbits(np.asarray(mask)).tobytes(), 9)
        arrays[f"{name}.mask"] = np.frombuffer(bits, np.uint8)
        arrays[f"{name}.values"] = x[np.asarray(mask)]
    leaves = jax.tree.leaves(network.model_state)
    for path, x in zip(_check.paths(network.model_state), leaves, strict=True):
        arrays[path] = np.asarray(x)
    return arrays, shapes


def unpack(found: Exported, like: tuple[PyTree, ModelState], path: Path) -> Network:
    """Returns the network of a file.

    Args:
      found: The contents of the file.
      like: Shapes of the parameters and of the other collections of its model.
      path: The file, for messages.

    Raises:
      RunError: The file has other arrays than the model.
    """
    wanted = {f"params/{p}" for p in _check.paths(like[0])}
    wanted |= set(_check.paths(like[1]))
    names = {name.removesuffix(".values") for name in found.tensors}
    names -= {f"{name}.mask" for name in found.shapes}
    for name in sorted(wanted ^ names):
        what = "lacks" if name in wanted else "has"
        raise RunError(f"{path} {what} the array {name!r}, unlike its model.")

    def leaf(name: str, like: jax.ShapeDtypeStruct) -> tuple[np.ndarray, np.ndarray]:
        dense = found.tensors.get(name)
        x = found.tensors[f"{name}.values"] if dense is None else dense
        shape = found.shapes.get(name) if dense is None else [*dense.shape]
        if x.dtype == ml_dtypes.bfloat16 and like.dtype == np.float32:
            x = x.astype(np.float32)
        if (shape, x.dtype) != ([*like.shape], like.dtype):
            raise RunError(
                f"{path}: {name!r} is {x.dtype} {shape}; its model has {like.dtype} "
                f"{list(like.shape)}."
            )
        if dense is not None:
            return x, np.ones((), bool)
        mask = _mask(found.tensors.get(f"{name}.mask"), like.shape)
        if mask is None or x.shape != (np.count_nonzero(mask),):
            raise RunError(f"{path} has a mask of {name!r} that does not fit.")
        full = np.zeros(like.shape, x.dtype)
        full[mask] = x
        return full, mask

    params, structure = jax.tree.flatten(like[0])
    pairs = [
        leaf(f"params/{p}", x)
        for p, x in zip(_check.paths(like[0]), params, strict=True)
    ]
    state, others = jax.tree.flatten(like[1])
    rest = [leaf(p, x)[0] for p, x in zip(_check.paths(like[1]), state, strict=True)]
    return Network(
        jax.tree.unflatten(structure, [x for x, _ in pairs]),
        jax.tree.unflatten(others, rest),
        jax.tree.unflatten(structure, [mask for _, mask in pairs]),
    )


def _mask(deflated: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray | None:
    """Returns a mask of a file, or None if its bytes are no mask of this shape."""
    count = math.prod(shape)
    size = -(-count // 8)
    if deflated is None or deflated.dtype != np.uint8:
        return None
    stream = zlib.decompressobj()
    try:
        # No more than it should have: a small stream could be one of gigabytes.
        bits = stream.decompress(deflated.tobytes(), size + 1)
    except zlib.error:
        return None
    if len(bits) != size or not stream.eof:
        return None
    packed = np.frombuffer(bits, np.uint8)
    return np.unpackbits(packed, count=count).astype(bool).reshape(shape)


def write(
    path: Path, about: About, network: Network, dtype: ValueType = "float32"
) -> None:
    """Writes a network to a file, and a model card beside it.

    Args:
      path: The file.
      about: What it says of its network.
      network: The arrays.
      dtype: As for `pack`.

    Raises:
      RunError: It cannot be written.
    """
    arrays, shapes = pack(network, dtype)
    said = json.dumps(
        {**about.record(), "shapes": shapes}, allow_nan=False, separators=(",", ":")
    )
    tensor_file.write(path, TensorFile(arrays, {"format": "zosam", "zosam": said}))
    use = _USE + (_ROUNDED if dtype == "bfloat16" else _EXACT)
    model_card.write(path, about, network.params, network.masks, use)


_USE = """With zosam_jax: `zosam predict {name} IMAGE...`, or `zs.load("{name}")`.
Without it, a sparse leaf NAME is made dense by

    bits = numpy.frombuffer(zlib.decompress(tensors[NAME + ".mask"]), "uint8")
    mask = numpy.unpackbits(bits, count=math.prod(shape)).reshape(shape) == 1
    dense = numpy.zeros(shape, "float32"); dense[mask] = tensors[NAME + ".values"]

with its shape in "shapes" of the JSON text "zosam" in the file's metadata.

"""
_EXACT = "Nothing is rounded: masks and values are those of the network, bit for bit.\n"
_ROUNDED = """Weights of two axes or more are rounded to the nearest bfloat16: a weight
changes by at most 1/512 of itself. Masks, biases, scales and statistics are exact. The
figures of the training are those of the network before rounding.
"""


_ABOUT = {
    "config": schema.OBJECT,
    "dataset": schema.OBJECT,
    "step": schema.WHOLE,
    "figures": schema.OBJECT,
    "shapes": schema.OBJECT,
}


def read(path: Path) -> Exported:
    """Returns the contents of a file that `write` wrote.

    Raises:
      RunError: It cannot be read, is damaged, or is not such a file.
    """
    content = tensor_file.read(path)
    text = content.metadata.get("zosam")
    if text is None:
        raise RunError(
            f"{path} has no network of zosam: its header has no text 'zosam'. "
            "`zosam export RUN` writes such files."
        )
    try:
        found = files.parse(text)
        wrong = schema.fault(found, _ABOUT)
        if wrong is None and found["figures"]:
            wrong = schema.fault(found["figures"], model_card.FIGURES)
        if wrong is None:
            kinds = dict.fromkeys(found["shapes"], schema.list_of(schema.WHOLE))
            wrong = schema.fault(found["shapes"], kinds)
        if wrong is not None:
            raise ValueError(wrong)
        config = from_record(found["config"], out=str(path.parent), overwrite=False)
    except (ValueError, TypeError) as error:
        raise RunError(f"{path} is damaged: {error}. Export it again.") from error
    facts = dataset_facts.read(found, path)
    assert facts is not None
    about = model_card.about(config, facts, found["step"], found["figures"])
    return Exported(about, dict(content.tensors), found["shapes"])
