"""A network in one file: it comes back bit for bit, and damage is told."""

import dataclasses
import json
import shutil
import subprocess
import sys
import zlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run

import zosam_jax as zs
from zosam_jax import tree
from zosam_jax.cli import main as cli
from zosam_jax.evaluate import evaluate
from zosam_jax.runs import tensor_file
from zosam_jax.runs.errors import RunError
from zosam_jax.runs.tensor_file import TensorFile
from zosam_jax.train import exported, run

ARRAYS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "bits": np.array([1, 255], np.uint8),
    "empty": np.zeros((0, 3), np.float16),
    "scalar": np.array(-5, np.int32),
    "flag": np.array([True, False]),
    "half": np.arange(3).astype(jnp.bfloat16),
}


@pytest.mark.quick
def test_arrays_come_back_as_they_were(tmp_path):
    path = tmp_path / "a.safetensors"
    tensor_file.write(path, TensorFile(ARRAYS, {"what": "é"}))
    found = tensor_file.read(path)
    assert found.metadata == {"what": "é"}
    tiny_run.assert_same(dict(found.tensors), ARRAYS)
    assert {k: x.dtype for k, x in found.tensors.items()} == {
        k: x.dtype for k, x in ARRAYS.items()
    }
    # By the description of the format: a length, a header of JSON, and the bytes.
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    entry = json.loads(content[8 : 8 + length])["a"]
    start, stop = entry["data_offsets"]
    assert content[8 + length :][start:stop] == ARRAYS["a"].tobytes()
    assert (entry["dtype"], entry["shape"], length % 8) == ("F32", [2, 3], 0)


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(RunError, match="folder"):
        tensor_file.write(tmp_path / "folder", TensorFile(ARRAYS, {}))
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.quick
@pytest.mark.parametrize(
    ("damage", "part"),
    [
        (lambda x: b"", "it has no header"),
        (lambda x: x[:-1], "bytes of 'bits' are not all there|not all there"),
        (lambda x: b"\xff" * 8 + x[8:], "it has no header"),
        (lambda x: x.replace(b'"F32"', b'"F33"'), "in 'a', "),
        (lambda x: x.replace(b"[2,3]", b"[2,4]"), "'a' are not all there"),
        (lambda x: x.replace(b"{", b"!", 1), "no safetensors file"),
        (lambda x: b"\x80\x04\x95" + x, "no safetensors file"),
    ],
)
def test_damaged_files_are_told(damage, part, tmp_path):
    path = tmp_path / "a.safetensors"
    tensor_file.write(path, TensorFile(ARRAYS, {}))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(RunError, match=part):
        tensor_file.read(path)


MASK = "params/hidden2/kernel.mask"


def deflated(content):
    return np.frombuffer(zlib.compress(content), np.uint8)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A small MLP of which half of the hidden units are pruned, and the commands."""
    out = tmp_path_factory.mktemp("runs") / "mlp"
    run(tiny_run.half_of_the_units(out))
    return out


def test_a_run_is_cut_exported_and_used_in_its_file(trained, tmp_path, capsys):
    net = zs.load(trained)
    images = zs.data.load("digits").test_images[:9]
    expected = net.probabilities(images)
    file = tmp_path / "all.safetensors"
    assert cli.main(["export", str(trained), "--out", str(file)]) == 0
    again = zs.load(file)
    tiny_run.assert_same(again.params, net.params)
    tiny_run.assert_same(again.masks, jax.tree.map(np.asarray, net.masks))
    assert again.facts == net.facts
    np.testing.assert_array_equal(again.probabilities(images), expected)
    card = (tmp_path / "all.safetensors.md").read_text()
    assert "hidden=(12, 8)" in card
    assert f"test accuracy {net.summary['test_accuracy']:.6g}" in card
    # Half of the units of each layer, and nothing of the larger network.
    small = tmp_path / "small.safetensors"
    words = ["export", str(trained), "--compact", "--out", str(small)]
    capsys.readouterr()
    assert cli.main(words) == 0
    before, after = (
        64 * 12 + 12 + 12 * 8 + 8 + 80 + 10,
        64 * 6 + 6 + 6 * 4 + 4 + 40 + 10,
    )
    assert f"parameters: {before:,} -> {after:,}" in capsys.readouterr().out
    found = zs.load(small)
    assert found.num_parameters == after
    assert dict(found.model.widths) == {"hidden1": 6, "hidden2": 4}
    np.testing.assert_allclose(found.probabilities(images), expected, atol=1e-6)
    figures = evaluate(small, corruptions=("fog",), severities=(1,))
    summary = json.loads((trained / "summary.json").read_text())
    assert figures["clean"]["accuracy"] == pytest.approx(summary["test_accuracy"])
    assert (tmp_path / "evaluation.json").exists()
    # What is exported can be exported.
    second = tmp_path / "b.md"
    assert cli.main(["export", str(small), "--out", str(second)]) == 0
    both = [tensor_file.read(p) for p in (second, small)]
    tiny_run.assert_same(*(dict(x.tensors) for x in both))
    # With its figures, and its card.
    assert both[0].metadata == both[1].metadata
    cards = [p.with_name(f"{p.name}.md").read_text() for p in (second, small)]
    assert cards[0] == cards[1].replace(small.name, second.name)
    assert figures["status"] == "finished"
    assert figures["training_test_accuracy"] == summary["test_accuracy"]
    assert summary["parameters_removable"] == before - after
    with pytest.raises(RunError, match="checkpoint=1 has no effect"):
        zs.load(small, checkpoint=1)


def test_files_of_other_networks_are_told(trained, tmp_path, capsys):
    net = zs.load(trained)
    file = net.save(tmp_path / "a.safetensors")
    content = tensor_file.read(file)

    def changed(change):
        tensors, about = dict(content.tensors), json.loads(content.metadata["zosam"])
        change(tensors, about)
        path = tmp_path / "b.safetensors"
        tensor_file.write(path, TensorFile(tensors, {"zosam": json.dumps(about)}))
        return path

    for change, part in (
        (lambda t, a: t.pop("params/head/bias"), "lacks the array 'params/head/bias'"),
        (lambda t, a: t.update(x=np.ones(1)), "has the array 'x', unlike its model"),
        (lambda t, a: t.pop("params/hidden2/kernel.mask"), "mask of .* does not fit"),
        (lambda t, a: t.update({MASK: t[MASK][:-1]}), "mask of .* does not fit"),
        (lambda t, a: t.update({MASK: deflated(bytes(1 << 20))}), "mask of .* does"),
        (lambda t, a: a["shapes"].pop("params/hidden2/kernel"), "unlike its model"),
        (lambda t, a: a["shapes"].update(x=[-1]), "damaged: 'x' is a list of other"),
        (lambda t, a: a["figures"].pop("steps"), "damaged: it has no 'steps'"),
        (
            lambda t, a: a["config"].update(model_options=["hidden=(12, 9)"]),
            "its model has float32",
        ),
        (lambda t, a: a["config"].update(widht=1), "does not know: widht"),
        (lambda t, a: a.pop("dataset"), "is damaged: .*dataset"),
    ):
        with pytest.raises(RunError, match=part):
            zs.load(changed(change))
    other = tmp_path / "c.safetensors"
    tensor_file.write(other, TensorFile(ARRAYS, {}))
    with pytest.raises(RunError, match="has no network of zosam"):
        zs.load(other)
    shutil.copy(trained / "config.json", tmp_path / "d")
    assert cli.main(["predict", str(tmp_path / "d"), "x.png"]) == 2
    assert "no safetensors file" in capsys.readouterr().err
    assert cli.main(["export", str(file), "--multiple", "8"]) == 2


def test_values_in_bfloat16_are_the_nearest_and_all_else_is_exact(
    trained, tmp_path, capsys
):
    net = zs.load(trained)
    file = tmp_path / "half.safetensors"
    words = ["export", str(trained), "--dtype", "bfloat16", "--out", str(file)]
    assert cli.main(words) == 0
    found = zs.load(file)
    tiny_run.assert_same(found.masks, jax.tree.map(np.asarray, net.masks))

    def nearest(x):  # by the bits: the upper half, a tie to the even one
        if x.ndim < 2:
            return x
        bits = np.asarray(x).view(np.uint32)
        bits = bits + 0x7FFF + ((bits >> 16) & 1)
        return (bits & 0xFFFF0000).astype(np.uint32).view(np.float32)

    tiny_run.assert_same(found.params, jax.tree.map(nearest, net.params))
    assert (
        "rounded to the nearest bfloat16"
        in (tmp_path / "half.safetensors.md").read_text()
    )
    # What is rounded once stays.
    tiny_run.assert_same(zs.load(found.save(tmp_path / "b")).params, found.params)
    again = found.save(tmp_path / "c", dtype="bfloat16")
    assert again.read_bytes() == file.read_bytes()


def test_a_file_of_a_network_of_90_percent_is_a_twelfth(tmp_path):
    """By counting bits: 0.1 x 16 for a value and at most 0.55 for its mask, of 32."""
    model = zs.models.create("mlp", num_classes=10)
    params, _ = zs.models.initialize(model, jax.random.key(0), (28, 28, 1))
    masks = zs.sparsity.static(0.9).init(params).masks
    network = exported.Network(tree.mask(params, masks), {}, masks)
    arrays, _ = exported.pack(network, "bfloat16")
    dense = 4 * zs.tree.size(params)
    assert 12 * sum(x.nbytes for x in arrays.values()) < dense
    bits = sum(x.nbytes for name, x in arrays.items() if name.endswith(".mask"))
    assert bits < 0.55 / 32 * dense


RUN = """
import importlib.abc, json, sys

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("zosam_jax", "flax", "optax", "orbax"):
            raise ImportError(name)

sys.meta_path.insert(0, Refuse())
import numpy
from jax import export
with open(sys.argv[1], "rb") as file:
    program = export.deserialize(bytearray(file.read()))
images = numpy.load(sys.argv[2])
logits = [program.call(x) for x in (images, images[:2])]
numpy.savez(sys.argv[3], *logits)
"""


def test_a_cut_network_has_no_history(trained):
    net = zs.load(trained)
    assert [found.step for found in net.history()] == [net.step]
    with pytest.raises(RunError, match=r"was cut.*without compact\(\)"):
        next(net.compact().history())


def test_a_program_runs_with_jax_alone(trained, tmp_path, capsys):
    net = zs.load(trained).compact()
    file = tmp_path / "a.stablehlo"
    words = ["export", str(trained), "--compact", "--to", "stablehlo"]
    assert cli.main([*words, "--out", str(file)]) == 0
    images = zs.data.load("digits").test_images[:5]
    np.save(tmp_path / "images.npy", images)
    places = [str(tmp_path / x) for x in ("a.stablehlo", "images.npy", "logits.npz")]
    subprocess.run([sys.executable, "-c", RUN, *places], check=True)
    with np.load(places[-1]) as arrays:
        found = dict(arrays)
    x = (images / 255 - net.facts.mean) / net.facts.std
    expected = net.model.apply(net.variables, x.astype(np.float32), train=False)
    np.testing.assert_allclose(found["arr_0"], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found["arr_1"], expected[:2], rtol=1e-5, atol=1e-5)
    said = json.loads((tmp_path / "a.stablehlo.json").read_text())
    assert tuple(said["dataset"]["class_names"]) == net.classes
    assert said["input"]["shape"] == [None, 8, 8, 1]
    assert said["platforms"] == ["cpu", "cuda", "tpu"]
    assert said["figures"]["test_accuracy"] == net.summary["test_accuracy"]
    with pytest.raises(RunError, match="is a program for other software"):
        zs.load(file)
    for words in (["--dtype", "bfloat16"], ["--multiple", "2"]):
        assert cli.main(["export", str(trained), "--to", "stablehlo", *words]) == 2
        assert f"{' '.join(words)} has no effect" in capsys.readouterr().err


def test_a_program_that_cannot_be_made_is_told(trained, tmp_path, monkeypatch):
    class Fixed(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            return nn.Dense(10)(x.reshape(len(x), -1))

    net = zs.load(trained)
    experiment = dataclasses.replace(net.experiment, model=Fixed())
    fixed = dataclasses.replace(net, experiment=experiment)
    with pytest.raises(RunError, match="Fixed cannot be traced for a batch of any"):
        fixed.save(tmp_path / "a", to="stablehlo")
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    with pytest.raises(RunError, match=r"pip install 'zosam-jax\[export\]'"):
        net.save(tmp_path / "a", to="stablehlo")
    assert list(tmp_path.iterdir()) == []
