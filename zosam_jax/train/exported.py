"""A network in one file: weights, masks in bits, classes and preprocessing.

Arrays of a file, by the paths of the parameters and of the other collections:

    params/stem/kernel.mask     uint8, `numpy.packbits` of the mask, in C order
    params/stem/kernel.values   the live weights, in C order
    params/head/bias            a dense leaf
    batch_stats/norm/mean       a leaf of another collection

The text `zosam` in the header is JSON: the configuration, the facts of the data set,
and the shapes of the sparse leaves.
"""

import json
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from zosam_jax import _check, tree
from zosam_jax._types import Masks, Params, PyTree
from zosam_jax.runs import dataset_facts, environment, files, schema, tensor_file
from zosam_jax.runs.config import TrainConfig, from_record
from zosam_jax.runs.dataset_facts import DatasetFacts
from zosam_jax.runs.errors import RunError
from zosam_jax.runs.files import JSON
from zosam_jax.runs.tensor_file import TensorFile
from zosam_jax.train.experiment import ModelState


class Exported(NamedTuple):
    """The contents of a file.

    Attributes:
      config: The configuration that names the model.
      facts: What the network knows of its data set.
      step: The step of the checkpoint.
      figures: Figures of the run's summary; {} if it was unfinished.
      tensors: The arrays by name.
      shapes: Shape of each sparse leaf, by name.
    """

    config: TrainConfig
    facts: DatasetFacts
    step: int
    figures: JSON
    tensors: "dict[str, np.ndarray]"
    shapes: dict[str, list[int]]


class Network(NamedTuple):
    """The arrays of a network: its parameters, other collections, and masks."""

    params: Params
    model_state: ModelState
    masks: Masks


def pack(network: Network) -> tuple[dict[str, np.ndarray], dict[str, list[int]]]:
    """Returns the arrays of a file by name, and the shapes of the sparse leaves.

    Args:
      network: The network, zero where pruned.
    """
    arrays: dict[str, np.ndarray] = {}
    shapes: dict[str, list[int]] = {}
    masks = jax.tree.leaves(network.masks)
    leaves = jax.tree.leaves(network.params)
    paths = _check.paths(network.params)
    for path, x, mask in zip(paths, leaves, masks, strict=True):
        name, x = f"params/{path}", np.asarray(x)
        if tree.is_dense(mask):
            arrays[name] = x
            continue
        shapes[name] = list(x.shape)
        arrays[f"{name}.mask"] = np.packbits(np.asarray(mask))
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
        mask: np.ndarray = np.ones((), bool)
        x = found.tensors.get(name)
        if x is None:
            shape, values = found.shapes[name], found.tensors[f"{name}.values"]
            bits, count = found.tensors.get(f"{name}.mask"), int(np.prod(shape))
            if bits is None or bits.dtype != np.uint8 or bits.size * 8 < count:
                raise RunError(f"{path} has a mask of {name!r} that does not fit.")
            mask = np.unpackbits(bits, count=count).astype(bool).reshape(shape)
            if values.shape != (np.count_nonzero(mask),):
                raise RunError(f"{path} has a mask of {name!r} that does not fit.")
            x = np.zeros(shape, values.dtype)
            x[mask] = values
        if (x.shape, x.dtype) != (like.shape, like.dtype):
            raise RunError(
                f"{path}: {name!r} is {x.dtype} {list(x.shape)}; its model has "
                f"{like.dtype} {list(like.shape)}."
            )
        return x, mask

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


_FIGURES = ("test_accuracy", "test_loss", "sparsity", "parameters_live")


def write(
    path: Path,
    config: TrainConfig,
    facts: DatasetFacts,
    step: int,
    summary: JSON | None,
    network: Network,
) -> None:
    """Writes a network to a file, and a model card beside it.

    Args:
      path: The file.
      config: The configuration that names the model.
      facts: What the network knows of its data set.
      step: The step of the checkpoint.
      summary: The summary of the run; None if it is unfinished.
      network: The arrays.

    Raises:
      RunError: It cannot be written.
    """
    arrays, shapes = pack(network)
    figures = {k: summary[k] for k in _FIGURES if k in summary} if summary else {}
    about = {
        "config": config.record(),
        "dataset": facts.record(),
        "step": step,
        "figures": figures,
        "shapes": shapes,
        "versions": environment.versions(),
    }
    metadata = {"format": "zosam", "zosam": json.dumps(about, allow_nan=False)}
    tensor_file.write(path, TensorFile(arrays, metadata))
    card = path.with_name(f"{path.stem}.md")
    card.write_text(_card(path.name, config, facts, figures, network))


def _card(
    name: str, config: TrainConfig, facts: DatasetFacts, figures: JSON, network: Network
) -> str:
    """Returns the model card: what the network is, and how it is used."""
    size = sum(np.size(x) for x in jax.tree.leaves(network.params))
    shape = " x ".join(map(str, facts.image_shape))
    options = "".join(f", {option}" for option in config.model_options)
    lines = [
        f"# {name}",
        "",
        f"- Model: {config.model}, width {config.width:g}{options}",
        f"- Parameters: {size:,}",
        f"- Data set: {facts.name}, {facts.num_classes} classes, examples of {shape}",
        f"- Training: {config.method}, {config.gradient}, {config.optimizer}, "
        f"{config.epochs} epochs, seed {config.seed}",
        *(
            f"- Run: {key.replace('_', ' ')} {value:.6g}"
            for key, value in figures.items()
        ),
        "",
        _USE.format(name=name),
    ]
    return "\n".join(lines)


_USE = """With zosam_jax: `zosam predict {name} IMAGE...`, or `zs.load("{name}")`.
Without it, a sparse leaf NAME is made dense by

    mask = numpy.unpackbits(tensors[NAME + ".mask"], count=size).reshape(shape) == 1
    dense = numpy.zeros(shape, "float32"); dense[mask] = tensors[NAME + ".values"]

with its shape in "shapes" of the JSON text "zosam" in the file's metadata.
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
        about = files.parse(text)
        wrong = schema.fault(about, _ABOUT)
        if wrong is not None:
            raise ValueError(wrong)
        config = from_record(about["config"], out=str(path.parent), overwrite=False)
        shapes = {k: [int(n) for n in v] for k, v in about["shapes"].items()}
    except (ValueError, TypeError) as error:
        raise RunError(f"{path} is damaged: {error}. Export it again.") from error
    facts = dataset_facts.read(about, path)
    assert facts is not None
    tensors = dict(content.tensors)
    return Exported(config, facts, about["step"], about["figures"], tensors, shapes)
