"""ONNX models: checked in ONNX Runtime, which the extra `onnx` installs."""

import importlib
import importlib.util
import json
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run

import zosam_jax as zs
from zosam_jax import _operations, models
from zosam_jax.cli import main as cli
from zosam_jax.runs.errors import RunError
from zosam_jax.train import onnx_conversion, run

IS_INSTALLED = all(map(importlib.util.find_spec, ("jax2onnx", "onnxruntime")))
needs_onnx = pytest.mark.skipif(
    not IS_INSTALLED, reason="needs pip install 'zosam-jax[onnx]'"
)
LIKE = jax.ShapeDtypeStruct((8, 8, 2), jnp.float32)


def test_pads_and_pools_are_rewritten_to_the_same_numbers():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 7, 9, 3)), jnp.float32)

    @jax.jit
    def function(x):
        y = jnp.pad(x, ((0, 0), (1, 0), (2, 3), (0, 0)), constant_values=0.5)
        y = nn.max_pool(y, (3, 2), strides=(2, 3), padding=((0, 1), (1, 1)))
        cut = jax.lax.pad(x, 0.0, ((0, 0, 0), (-1, 0, 0), (0, 0, 0), (0, 0, 1)))
        return jax.nn.relu(y), cut

    traced = jax.make_jaxpr(function)(x)
    for found, expected in zip(
        _operations.run(traced, [x], onnx_conversion._simpler), function(x), strict=True
    ):
        np.testing.assert_array_equal(found, expected)
    text = str(
        jax.make_jaxpr(
            lambda x: _operations.run(traced, [x], onnx_conversion._simpler)[0]
        )(x)
    )
    assert "reduce_window" not in text
    assert text.count(" pad[") == 1  # the cut, which the converter takes


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(RunError, match=r"pip install 'zosam-jax\[onnx\]'"):
        onnx_conversion.converted(lambda x: x, LIKE)


def test_what_is_converted_wrongly_is_refused(monkeypatch):
    """Neither way is believed: outputs decide."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: True)
    found = iter([1e-3, 1e-6, 2e-3, 3e-3])
    for way in ("_by_layers", "_by_operations"):
        monkeypatch.setattr(onnx_conversion, way, lambda *_, way=way: way)
    monkeypatch.setattr(onnx_conversion, "_error", lambda *_: next(found))
    assert onnx_conversion.converted(lambda x: x, LIKE) == "_by_operations"
    with pytest.raises(
        RunError, match=r"layers, its outputs differ by 0\.002 .* 0\.003"
    ):
        onnx_conversion.converted(lambda x: x, LIKE)


def test_what_the_converter_does_to_jax_is_undone(monkeypatch):
    """jax2onnx leaves a `jnp.cumsum` that takes no positional axis."""
    cumsum = jnp.cumsum
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: True)
    monkeypatch.setattr(
        onnx_conversion, "_by_layers", lambda *_: setattr(jnp, "cumsum", None)
    )
    monkeypatch.setattr(onnx_conversion, "_error", lambda *_: 0.0)
    onnx_conversion.converted(lambda x: x, LIKE)
    assert jnp.cumsum is cumsum


@needs_onnx
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet20", {"width": 0.25}),
        ("vgg19", {"width": 1 / 16, "image_size": 16}),
        ("vit", {"image_size": 8, "width": 1 / 16, "depth": 1}),
    ],
)
def test_networks_run_in_onnx_runtime(name, options):
    side = options.get("image_size", 8)
    model = models.create(name, num_classes=4, **options)
    variables = models.initialize(model, jax.random.key(0), (side, side, 2))
    variables = {"params": variables[0], **variables[1]}

    def function(x):
        return model.apply(variables, x, train=False)

    like = jax.ShapeDtypeStruct((side, side, 2), jnp.float32)
    runs = onnx_conversion.session(onnx_conversion.converted(function, like))
    x = np.random.default_rng(1).normal(size=(5, *like.shape)).astype(np.float32)
    (found,) = runs.run([onnx_conversion.OUTPUT], {onnx_conversion.INPUT: x})
    expected = np.asarray(function(x))
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


@needs_onnx
@pytest.mark.filterwarnings("ignore")
def test_a_run_is_exported_and_runs_in_onnx_runtime(tmp_path):
    out = tmp_path / "mlp"
    run(tiny_run.half_of_the_units(out))
    assert cli.main(["export", str(out), "--compact", "--to", "onnx"]) == 0
    said = json.loads((out / "network.onnx.json").read_text())
    assert (said["kind"], said["input"]["dtype"]) == ("onnx", "uint8")
    assert "onnxruntime.InferenceSession" in (out / "network.onnx.md").read_text()
    onnxruntime = importlib.import_module("onnxruntime")
    content = Path(out / "network.onnx").read_bytes()
    runs = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    images = zs.data.load("digits").test_images[:7]
    (found,) = runs.run(None, {"input": images})
    net = zs.load(out)
    x = (images / 255 - net.facts.mean) / net.facts.std
    expected = net.model.apply(net.variables, x.astype(np.float32), train=False)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert found.argmax(1).tolist() == np.asarray(expected).argmax(1).tolist()
