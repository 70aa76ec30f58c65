"""A network in one file: it comes back bit for bit, and damage is told."""

import json
import shutil

import jax
import numpy as np
import pytest
import tiny_run

import zosam_jax as zs
from zosam_jax.cli import main as cli
from zosam_jax.evaluate import evaluate
from zosam_jax.runs import tensor_file
from zosam_jax.runs.errors import RunError
from zosam_jax.runs.tensor_file import TensorFile
from zosam_jax.train import TrainConfig, run

ARRAYS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "bits": np.array([1, 255], np.uint8),
    "empty": np.zeros((0, 3), np.float16),
    "scalar": np.array(-5, np.int32),
    "flag": np.array([True, False]),
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
        (lambda x: x.replace(b"[2, 3]", b"[2, 4]"), "'a' are not all there"),
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


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A small MLP of which half of the hidden units are pruned, and the commands."""
    out = tmp_path_factory.mktemp("runs") / "mlp"
    config = TrainConfig(
        model="mlp",
        model_options=("hidden=(12, 8)",),
        method="units",
        gradient="backprop",
        rho=None,
        sparsity=0.5,
        epochs=1,
        out=str(out),
    )
    run(config)
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
    assert "hidden=(12, 8)" in file.with_suffix(".md").read_text()
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
    assert cli.main(["export", str(small), "--out", str(tmp_path / "b")]) == 0
    both = [dict(tensor_file.read(p).tensors) for p in (tmp_path / "b", small)]
    tiny_run.assert_same(*both)
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
