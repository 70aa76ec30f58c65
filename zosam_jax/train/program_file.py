"""A network in one file as a program that other software runs: StableHLO or ONNX.

The program maps raw examples to logits: images, uint8 `[N, H, W, C]`, or tokens, int32
`[N, T]`, to float32 `[N, K]` (`[N, T, K]` of text). Weights and normalization are
inside. Classes, resizing and cropping are in the JSON file beside it.
"""

import functools
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import jax
import numpy as np
from jax import export

from zosam_jax.runs import files
from zosam_jax.runs.errors import RunError, explained
from zosam_jax.runs.files import JSON
from zosam_jax.train import model_card, onnx_conversion, prediction
from zosam_jax.train.experiment import Experiment
from zosam_jax.train.exported import Network
from zosam_jax.train.model_card import About

PLATFORMS = ("cpu", "cuda", "tpu")
"""Kinds of devices that a StableHLO program runs on."""

Kind = Literal["stablehlo", "onnx"]


def write(
    path: Path, kind: Kind, about: About, experiment: Experiment, network: Network
) -> None:
    """Writes a program, its classes and preprocessing, and a model card.

    Args:
      path: The file. The others have its name with `.json` and `.md` behind it.
      kind: The format.
      about: What the files say of the network.
      experiment: The network and its normalization of images.
      network: Its arrays.

    Raises:
      RunError: It cannot be written, a package is missing, or the model does not allow
        a batch of any size or is not taken by the converter.
    """
    # Unlike arrays of JAX, those of NumPy lie on no device.
    variables = jax.tree.map(
        np.asarray, {"params": network.params, **network.model_state}
    )
    facts = about.facts
    dtype = np.uint8 if facts.kind == "image" else np.int32
    example = jax.ShapeDtypeStruct(facts.image_shape, dtype)
    logits = functools.partial(prediction.logits, experiment, variables)
    most = 256 if facts.kind == "image" else facts.num_classes
    if kind == "onnx":
        model = onnx_conversion.converted(logits, example, most)
        content, use = model.SerializeToString(), _ONNX
    else:
        content, use = _stablehlo(logits, example, experiment), _STABLEHLO
    outputs = jax.eval_shape(logits, jax.ShapeDtypeStruct((1, *example.shape), dtype))
    with explained(path):
        files.write_bytes(path, [content])
        files.write_json(_beside(path), _interface(about, kind, example, outputs))
    model_card.write(path, about, network.params, network.masks, _INPUTS + use)


def _stablehlo(
    logits: Callable[[jax.Array], jax.Array],
    example: jax.ShapeDtypeStruct,
    experiment: Experiment,
) -> bytes:
    if importlib.util.find_spec("flatbuffers") is None:
        raise RunError(
            "StableHLO needs the package flatbuffers: pip install 'zosam-jax[export]'."
        )
    # Symbolic: the program is made once for batches of all sizes.
    (batch,) = export.symbolic_shape("batch")
    examples = jax.ShapeDtypeStruct((batch, *example.shape), example.dtype)
    try:
        made = export.export(jax.jit(logits), platforms=PLATFORMS)(examples)
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        raise RunError(
            f"{type(experiment.model).__name__} cannot be traced for a batch of any "
            f"size: {type(error).__name__}: {reason}. Its code may use the size as a "
            "number, as `len(x)` does; `x.shape[0]` works."
        ) from error
    return bytes(made.serialize())


def refuse(path: Path) -> None:
    """Raises `RunError` if a file is such a program: it has no weights by name."""
    beside = files.read_object(_beside(path), {}, advice="Export it again.")
    if beside is not None and beside.get("format") == _FORMAT:
        raise RunError(
            f"{path} is a program for other software: {path.name}.md says how it is "
            "called. Use the run that it came from, or a safetensors file."
        )


_FORMAT = "zosam program"


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _interface(
    about: About,
    kind: Kind,
    example: jax.ShapeDtypeStruct,
    outputs: jax.ShapeDtypeStruct,
) -> JSON:
    """Returns what a caller needs: inputs, outputs, classes and preprocessing."""

    def array(values: str, shape: Sequence[int], dtype: np.dtype) -> JSON:
        return {"dtype": dtype.name, "shape": [None, *shape], "values": values}

    is_image = about.facts.kind == "image"
    inputs = "pixels from 0 to 255" if is_image else "tokens, from 0"
    return {
        "format": _FORMAT,
        "kind": kind,
        "input": array(inputs, example.shape, np.dtype(example.dtype)),
        "output": array("logits", outputs.shape[1:], outputs.dtype),
        **({"platforms": [*PLATFORMS]} if kind == "stablehlo" else {}),
        "model": about.config.model,
        **{k: v for k, v in about.record().items() if k != "config"},
    }


_INPUTS = """The program makes logits of examples, "input" to "output" in {name}.json.
Normalization is inside. "dataset" has the names of the classes in the order of the
logits. An image is resized to "resize" pixels on its shorter side (null: to the size of
the network's images) and cropped at its center.

"""
_STABLEHLO = """It needs JAX alone:

    from jax import export
    with open("{name}", "rb") as file:
        program = export.deserialize(bytearray(file.read()))
    logits = program.call(images)

The first call with a size of batch compiles. Nothing is executed by `deserialize`. JAX
reads a program for at least six months after it was made.
"""
_ONNX = f"""It runs in ONNX Runtime, among others:

    import onnxruntime
    session = onnxruntime.InferenceSession("{{name}}")
    (logits,) = session.run(None, {{"{onnx_conversion.INPUT}": images}})
"""
