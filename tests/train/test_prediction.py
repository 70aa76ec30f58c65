"""A run is used: loaded without its data set, it names the classes of images."""

import csv
import io
import json
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import tiny_run
from PIL import Image, ImageOps

import zosam_jax as zs
from zosam_jax.cli import main as cli
from zosam_jax.data import DatasetError, encoded_images, preprocessing
from zosam_jax.runs.dataset_facts import DatasetFacts
from zosam_jax.train import RunError, load_run, prediction, stored_run

FIELDS = {"method": "rigl", "epochs": 2, "ema": 0.5}
IMAGES = tiny_run.dataset().test_images


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "tiny"
    tiny_run.train(path, **FIELDS)
    return path


@pytest.fixture(scope="module")
def net(finished):
    # No data set: the folder has the classes, the shape and the normalization.
    return zs.load(finished, model=tiny_run.Net())


def by_hand(net, images):
    """The probabilities from the logits, in float64."""
    x = (images / 255 - 0.3) / 0.2
    logits = tiny_run.Net().apply(net.variables, x.astype(np.float32), train=False)
    p = np.exp(np.asarray(logits, np.float64))
    return p / p.sum(1, keepdims=True)


@pytest.mark.quick
def test_a_loaded_run_is_the_network_of_its_last_checkpoint(net, finished):
    state = tiny_run.final(finished, **FIELDS)
    masks = zs.sparsity.masks(state.opt_state)
    tiny_run.assert_same(net.masks, jax.tree.map(np.asarray, masks))
    tiny_run.assert_same(net.params, state.average[0])
    tiny_run.assert_same(net.model_state, state.average[1])
    assert not np.any(net.params["conv"]["kernel"][~net.masks["conv"]["kernel"]])
    assert net.classes == ("a", "b", "c", "d")
    assert (net.step, net.summary["steps"]) == (8, 8)
    assert net.experiment.dataset is None
    assert repr(net) == f"<{finished}: Net at step 8>"


@pytest.mark.quick
def test_predictions_are_the_largest_probabilities(net):
    expected = by_hand(net, IMAGES)
    found = net.probabilities(IMAGES)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    for size in (1, 5, 64):  # the last batch of 5 is filled up
        again = net.probabilities(IMAGES, batch_size=size)
        np.testing.assert_allclose(again, expected, atol=1e-6)
    predicted = net.predict(IMAGES, top=2)
    for row, one in zip(found, predicted, strict=True):
        order = sorted(range(4), key=lambda i: -row[i])[:2]
        assert one.path is None
        assert one.classes == tuple("abcd"[i] for i in order)
        assert one.probabilities == tuple(float(row[i]) for i in order)
    # Programs for fewer images round differently.
    for images in (IMAGES[0], list(IMAGES[:3])):
        for one, whole in zip(net.predict(images, top=2), predicted, strict=False):
            assert one.classes == whole.classes
            assert one.probabilities == pytest.approx(whole.probabilities, abs=1e-6)
    assert len(net.predict(list(IMAGES[:3]))) == 3
    assert len(net.predict(IMAGES[0], top=9)[0].classes) == 4
    assert net.predict(IMAGES[:0]) == []


def test_calls_with_few_images_share_programs(net):
    for count in (5, 6, 8, 5):
        net.predict(IMAGES[:count])
    assert net._classify._cache_size() <= 5  # of 1, 8, 32 and 64 images, and 5


def test_files_are_prepared_as_test_images(net, tmp_path, monkeypatch):
    (tmp_path / "more").mkdir()
    whole, large = tmp_path / "b.png", tmp_path / "more" / "a.png"
    Image.fromarray(IMAGES[0, ..., 0]).save(whole)
    pixels = np.random.default_rng(0).integers(0, 256, (9, 20)).astype(np.uint8)
    Image.fromarray(pixels).save(large)
    center = ImageOps.fit(Image.fromarray(pixels), (6, 6), Image.Resampling.BILINEAR)
    images = np.stack([IMAGES[0, ..., 0], np.asarray(center)])[..., None]
    expected = net.predict(images)
    for given in ([whole, large], tmp_path):
        found = net.predict(given)
        assert [one.path for one in found] == [str(whole), str(large)]
        assert [one[1:] for one in found] == [one[1:] for one in expected]
    # Programs for one image and for two round differently.
    (alone,) = net.predict(str(whole))
    assert alone[:2] == found[0][:2]
    monkeypatch.chdir(tmp_path / "more")
    (here,) = net.predict(".")
    assert here[:2] == ("./a.png", found[1].classes)


@pytest.mark.quick
def test_images_of_a_streamed_set_are_resized_and_cropped(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    found = preprocessing.image(tmp_path / "a.png", (16, 16, 3), 20)
    center = encoded_images.center_crop(Image.fromarray(pixels), 16, 20)
    np.testing.assert_array_equal(found, np.asarray(center))


@pytest.mark.quick
@pytest.mark.parametrize(
    ("inputs", "part"),
    [
        (IMAGES / 255, r"float64 \[22, 6, 6, 1\]; the network takes uint8 \[N, 6, 6,"),
        (IMAGES[:, :4], r"uint8 \[22, 4, 6, 1\]; .* pass their paths"),
        (IMAGES[0, ..., 0], r"uint8 \[6, 6\]"),
        ([IMAGES[0], "a.png"], "mix arrays and paths, as 'a.png'"),
        ([IMAGES[0], IMAGES[0, :5]], r"shapes \(5, 6, 1\), \(6, 6, 1\)"),
        ([], "inputs are empty"),
    ],
)
def test_arrays_that_are_no_images_are_refused(net, inputs, part):
    with pytest.raises(ValueError, match=part):
        net.predict(inputs)


@pytest.mark.quick
def test_files_that_are_no_images_are_named(net, tmp_path):
    text = tmp_path / "a.png"
    text.write_text("no image")
    with pytest.raises(DatasetError, match=r"a\.png cannot be used: its 8 bytes have"):
        net.predict([text])
    with pytest.raises(DatasetError, match=r"there is no file .*none\.png"):
        net.predict(tmp_path / "none.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="has no images below it"):
        net.predict(tmp_path / "empty")
    with pytest.raises(ValueError, match="top=0"):
        net.predict(IMAGES, top=0)


@pytest.mark.quick
def test_texts_are_read_to_their_last_tokens(tmp_path):
    facts = DatasetFacts(
        name="letters",
        kind="text",
        class_names=tuple("abcdefgh"),
        image_shape=(4,),
        mean=(),
        std=(),
        resize=None,
        num_train=1,
        num_test=1,
    )
    path = tmp_path / "text"
    path.write_bytes(b"0123456789")
    given = prediction.examples(facts, path)
    assert bytes(given.read(0)) == b"6789"
    given = prediction.examples(facts, np.arange(4))
    np.testing.assert_array_equal(given.read(0), np.arange(4))
    with pytest.raises(ValueError, match="tokens that are not from 0 to 7"):
        prediction.examples(facts, np.full((2, 4), 8))
    path.write_bytes(b"012")
    with pytest.raises(DatasetError, match="has 3 bytes; the network reads 4"):
        prediction.examples(facts, path).read(0)


def test_any_checkpoint_of_an_unfinished_run_is_loaded(finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    first = zs.load(run, checkpoint=4, model=tiny_run.Net())
    assert (first.step, first.summary) == (4, None)
    last = zs.load(run, model=tiny_run.Net())
    assert np.any(first.params["head"]["kernel"] != last.params["head"]["kernel"])
    (run / "summary.json").unlink()
    again = zs.load(run, model=tiny_run.Net())
    assert (again.step, again.summary) == (8, None)
    tiny_run.assert_same(again.variables, last.variables)
    shutil.rmtree(run / "checkpoints" / "8")
    fallback = zs.load(run, model=tiny_run.Net())
    assert fallback.step == 4
    tiny_run.assert_same(fallback.variables, first.variables)
    message = r"checkpoint=8: .* has no checkpoint of this step \(there are: 4\)"
    with pytest.raises(RunError, match=message):
        zs.load(run, checkpoint=8, model=tiny_run.Net())


def test_a_dense_run_has_masks_of_dense_leaves():
    experiment = SimpleNamespace(method=None)
    masks = stored_run.masks_of(experiment, {"w": np.ones(3)}, ())
    assert masks == {"w": True}


def test_the_command_prints_a_table_json_or_csv(
    finished, tmp_path, monkeypatch, capsys
):
    load = load_run.load
    monkeypatch.setattr(
        load_run, "load", lambda run, **rest: load(run, model=tiny_run.Net(), **rest)
    )
    path = tmp_path / "a[b], c.png"
    Image.fromarray(IMAGES[0, ..., 0]).save(path)
    words = ["predict", str(finished), str(path)]
    (expected,) = load(finished, model=tiny_run.Net()).predict(path, top=2)
    assert cli.main(words) == 0
    cells = capsys.readouterr().out.split("\n")[3].rsplit(maxsplit=2)
    assert cells[1:] == [expected.classes[0], f"{expected.probabilities[0]:.1%}"]
    assert cells[0].strip() == str(path)
    assert cli.main([*words, "--format", "json", "--top", "2"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["path"] == str(path)
    found = [(x["class"], x["probability"]) for x in row["classes"]]
    assert found == list(zip(*expected[1:], strict=True))
    assert cli.main([*words, "--format", "csv", "--top", "2"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(r["path"], r["rank"], r["class"]) for r in rows] == [
        (str(path), str(i + 1), name) for i, name in enumerate(expected.classes)
    ]
    assert cli.main([*words, "--top", "0"]) == 2
    assert "--top 0 must be" in capsys.readouterr().err
    assert cli.main([*words, "--checkpoint", "7"]) == 2
    assert "--checkpoint 7: " in capsys.readouterr().err
    assert cli.main([*words, "--to", str(tmp_path / "maps")]) == 2
    assert "is for label maps, and the labels of " in capsys.readouterr().err
    assert not (tmp_path / "maps").exists()
    assert cli.main(["predict", str(finished)]) == 2
    assert "predict needs" in capsys.readouterr().err
