"""A function as a checked ONNX model, by the converter jax2onnx.

jax2onnx (Apache-2.0) knows Flax's layers, and the operations below them. Neither way
takes every network: so both are tried, and what comes out must give the function's own
outputs in ONNX Runtime.
"""

import contextlib
import functools
import importlib
import importlib.util
import itertools
import logging
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from zosam_jax import _operations
from zosam_jax.runs.errors import RunError

INPUT, OUTPUT = "input", "logits"
"""Names of the input and the output of a model."""

TOLERANCE = 1e-5
"""Largest difference of an output from the function's, as a share of the largest."""

Function = Callable[[jax.Array], jax.Array]


def converted(function: Function, like: jax.ShapeDtypeStruct, most: int = 256) -> Any:
    """Returns a function as an ONNX model, an `onnx.ModelProto`.

    The size of a batch is free. The model is run in ONNX Runtime on drawn inputs, for
    batches of 2 and of 3 examples.

    Args:
      function: `examples [N, ...] -> outputs [N, ...]`.
      like: Shape and type of one example.
      most: Integer inputs are drawn below it.

    Raises:
      RunError: A package is missing, or the converter does not take the function.
    """
    for package in ("jax2onnx", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise RunError(
                f"ONNX needs the package {package}: pip install 'zosam-jax[onnx]'."
            )
    reasons = []
    with _quiet(), _unchanged(jnp):
        for way in (_by_layers, _by_operations):
            try:
                made = way(function, like)
                error = _error(made, function, like, most)
            except Exception as failure:
                reasons.append(
                    (str(failure).splitlines() or [type(failure).__name__])[0]
                )
                continue
            if error <= TOLERANCE:
                return made
            reasons.append(f"its outputs differ by {error:.1g} of the largest")
    raise RunError(
        f"the network cannot be converted to ONNX: by its layers, {reasons[0]}; by its "
        f"operations, {reasons[1]}. These are limits of jax2onnx; --to stablehlo works."
    )


@contextlib.contextmanager
def _unchanged(module: types.ModuleType) -> Iterator[None]:
    """Gives a module back its functions: jax2onnx replaces some when it is imported."""
    before = dict(vars(module))
    try:
        yield
    finally:
        for name, value in before.items():
            if getattr(module, name) is not value:
                setattr(module, name, value)


def _by_layers(function: Function, like: jax.ShapeDtypeStruct) -> Any:
    """Converts Flax's layers as such: fewer and faster operations."""
    return _to_onnx(function, ("batch", *like.shape), like.dtype)


def _by_operations(function: Function, like: jax.ShapeDtypeStruct) -> Any:
    """Converts the traced operations, without those that ONNX Runtime does not take."""
    (batch,) = export.symbolic_shape("batch")
    shape = (batch, *like.shape)
    # Traced here, and not by the converter, which would find the layers.
    traced = jax.make_jaxpr(function)(jax.ShapeDtypeStruct(shape, like.dtype))
    return _to_onnx(
        lambda x: _operations.run(traced, [x], _simpler)[0], shape, like.dtype
    )


def _to_onnx(function: Function, shape: Sequence[Any], dtype: Any) -> Any:
    return importlib.import_module("jax2onnx").to_onnx(
        function,
        [jax.ShapeDtypeStruct(shape, dtype)],
        model_name="network",
        input_names=[INPUT],
        output_names=[OUTPUT],
    )


def session(model: Any) -> Any:
    """Returns an ONNX model in ONNX Runtime on the CPU."""
    onnxruntime = importlib.import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def _error(
    model: Any, function: Function, like: jax.ShapeDtypeStruct, most: int
) -> float:
    """Returns the largest difference of the outputs, as a share of the largest."""
    runs, rng, worst = session(model), np.random.default_rng(0), 0.0
    for count in (2, 3):
        shape = (count, *like.shape)
        if np.issubdtype(like.dtype, np.integer):
            x = rng.integers(0, most, shape).astype(like.dtype)
        else:
            x = rng.normal(size=shape).astype(like.dtype)
        expected = np.asarray(jax.jit(function)(x))
        (found,) = runs.run(None, {INPUT: x})
        if found.shape != expected.shape:
            return float("inf")
        scale = max(float(np.max(np.abs(expected))), 1e-30)
        worst = max(worst, float(np.max(np.abs(found - expected))) / scale)
    return worst


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the converter's remarks on its own intermediate steps away from users."""
    loggers = [logging.getLogger(name) for name in ("jax2onnx", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _simpler(equation: Any, inputs: list[Any]) -> Sequence[Any] | None:
    """Returns the outputs of what ONNX Runtime or the converter does not take."""
    name, options = equation.primitive.name, equation.params
    body = _operations.body(equation)
    if body is not None:
        return _operations.run(body, inputs, _simpler)
    if name == "pad" and all(
        min(a, b) >= 0 == c for a, b, c in options["padding_config"]
    ):
        pairs = [pair[:2] for pair in options["padding_config"]]
        return [_padded(inputs[0], inputs[1], pairs)]
    # The converter makes it a pooling over four axes; ONNX Runtime takes three.
    is_plain = {*options.get("base_dilation", ()), *options.get("window_dilation", ())}
    if name == "reduce_window_max" and is_plain <= {1}:
        lowest = jnp.array(-jnp.inf, inputs[0].dtype)
        x = _padded(inputs[0], lowest, options["padding"])
        return [_pooled(x, options["window_dimensions"], options["window_strides"])]
    return None


def _padded(
    x: jax.Array, value: jax.Array, pairs: Sequence[tuple[int, int]]
) -> jax.Array:
    """Returns `lax.pad` by concatenation, which a free size of a batch allows."""
    for axis, sizes in enumerate(pairs):
        shapes = [(*x.shape[:axis], size, *x.shape[axis + 1 :]) for size in sizes]
        before, after = (
            [jax.lax.broadcast(value, shape)] * int(size > 0)
            for shape, size in zip(shapes, sizes, strict=True)
        )
        if before or after:
            x = jax.lax.concatenate([*before, x, *after], axis)
    return x


def _pooled(x: jax.Array, window: Sequence[int], strides: Sequence[int]) -> jax.Array:
    """Returns the maximum over windows, as that of shifted slices."""

    def rows(start: int, size: int, width: int, stride: int) -> slice:
        if width == stride == 1:
            return slice(None)
        return slice(start, start + size - width + 1, stride)

    parts = [
        x[tuple(map(rows, starts, x.shape, window, strides))]
        for starts in itertools.product(*map(range, window))
    ]
    return functools.reduce(jnp.maximum, parts)
