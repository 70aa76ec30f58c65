"""Semantic segmentation through the trainer: loss, score, runs, every method."""

import dataclasses
import json
import shutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run
from jax import export
from PIL import Image

from zosam_jax import gradients, models, sparsity
from zosam_jax.cli import main as cli
from zosam_jax.data import corruptions, label_maps
from zosam_jax.evaluate import evaluate
from zosam_jax.models import resnet
from zosam_jax.runs import dataset_facts, folder, record
from zosam_jax.train import (
    RunError,
    TrainConfig,
    build,
    checkpoint,
    choices,
    cutting,
    load_run,
    loop,
    loss,
    run,
    scores,
)
from zosam_jax.train import batch as batches
from zosam_jax.train.objects import Objects

NAMES = ("dark", "left", "right", "never")
K = len(NAMES)
UNITS = ("units", "chex", "chase")


def dataset():
    """A bright half of 6 x 6 noisy images; the class of its pixels is the side.

    No pixel has the last class, and the corners do not count.
    """
    base = tiny_run.dataset(64, 22)
    rng = np.random.default_rng(1)
    images = np.concatenate([base.train_images, base.test_images]) // 2
    maps = np.zeros(images.shape[:3], np.uint8)
    for image, labels, side in zip(images, maps, rng.integers(0, 2, 86), strict=True):
        half = slice(3) if side else slice(3, 6)
        image[:, half] += 35
        labels[:, half] = 1 if side else 2
    maps[:, ::5, ::5] = 255
    return dataclasses.replace(
        base,
        train_images=images[:64],
        test_images=images[64:],
        train_labels=maps[:64],
        test_labels=maps[64:],
        class_names=NAMES,
    )


class Net(nn.Module):
    """Two convolutions, the latter of which has the class of each pixel."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(8, (5, 5), name="conv")(x)
        x = nn.BatchNorm(use_running_average=not train, name="norm")(x)
        return nn.Conv(K, (3, 3), name="head")(nn.relu(x))


def config(out, **fields):
    usual = {"gradient": "zosam", "method": "rigl", "epochs": 8, "augment": ("crop=1",)}
    return tiny_run.config(out, **usual | fields)


def confusion(answers, labels):
    """Counts of pixels by class and answer, one by one."""
    found = np.zeros((K, K), int)
    for answer, label in zip(answers.ravel(), labels.ravel(), strict=True):
        if label != 255:
            found[label, answer] += 1
    return found


def by_hand(matrix):
    """Mean IoU of the classes that are there or predicted, and pixel accuracy."""
    each = []
    for k in range(K):
        union = matrix[k].sum() + matrix[:, k].sum() - matrix[k, k]
        if union:
            each.append(matrix[k, k] / union)
    return np.mean(each), np.trace(matrix) / matrix.sum()


def drawn(seed=0, n=5):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, 4, 3, K)).astype(np.float32)
    # Class 3 is in no label, and class 2 is never predicted.
    logits[..., 2] -= 20
    labels = rng.choice([0, 1, 2, 255], (n, 4, 3)).astype(np.uint8)
    labels[1] = 255
    return logits, labels


@pytest.fixture(scope="module")
def programs():
    return tiny_run.prepare(config("no folder"), dataset(), Net())


def test_the_loss_is_the_mean_over_pixels_that_count():
    logits, labels = drawn()
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    wanted = [
        np.mean([-np.log(p[i, y, x, labels[i, y, x]]) for y, x in pixels])
        if len(pixels := np.argwhere(labels[i] != 255))
        else 0
        for i in range(5)
    ]
    found = loss.pixel_cross_entropy(jnp.asarray(logits), jnp.int32(labels))
    np.testing.assert_allclose(found, np.array(wanted), rtol=1e-5)
    slopes = jax.grad(lambda z: loss.pixel_cross_entropy(z, jnp.int32(labels)).sum())
    where = np.abs(slopes(jnp.asarray(logits))).max(-1) > 0
    np.testing.assert_array_equal(where, labels != 255)


def test_smoothed_labels_leave_ignored_pixels_out(programs):
    logits, labels = drawn()
    made = dataclasses.replace(programs.experiment, label_smoothing=0.2)
    smooth = batches._smooth(made, jnp.int32(labels))
    log_p = jax.nn.log_softmax(logits)
    counts = labels != 255
    own = np.take_along_axis(log_p, np.where(counts, labels, 0)[..., None], -1)[..., 0]
    each = -(0.8 * own + 0.2 * log_p.mean(-1)) * counts
    wanted = each.sum((1, 2)) / np.maximum(counts.sum((1, 2)), 1)
    np.testing.assert_allclose(
        loss.pixel_cross_entropy(logits, smooth), wanted, rtol=1e-5
    )
    np.testing.assert_array_equal(
        scores.overlaps(jnp.asarray(logits), smooth),
        scores.overlaps(jnp.asarray(logits), jnp.int32(labels)),
    )


def test_the_score_is_that_of_the_whole_confusion_matrix(programs):
    facts, total = programs.experiment.facts, np.zeros((K, K), int)
    sums = scores.no_sums(facts, jnp.int32)
    for seed in range(3):
        logits, labels = drawn(seed)
        counts = np.arange(5) < 4
        parts = scores.overlaps(jnp.asarray(logits), jnp.int32(labels))
        sums += scores.summed(facts, parts, jnp.int32, jnp.asarray(counts))
        total += confusion(logits.argmax(-1)[:4], labels[:4])
    found = scores.figures(programs.experiment, sums, 1)
    mean, pixels = by_hand(total)
    assert found["accuracy"] == pytest.approx(mean, rel=1e-12)
    assert found["pixel_accuracy"] == pytest.approx(pixels, rel=1e-12)
    each = scores.iou(sums)
    # A class that is predicted and never there has 0, and one that is there and is
    # never predicted, too.
    assert each[2] == each[3] == 0
    assert np.isnan(scores.iou(np.zeros((3, K)))).all()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("segmentation") / "run"
    chosen = config(out, learning_rate=0.2, validation=0.25, label_smoothing=0.05)
    return run(chosen, dataset=dataset(), model=Net())


def test_a_run_learns_and_records_its_scores(trained):
    data, summary = dataset(), trained.summary
    net = load_run.load(trained.folder, model=Net())
    assert (net.facts.task, net.facts.score) == ("segmentation", "mean IoU")
    p = net.probabilities(data.test_images)
    assert p.shape == (22, 6, 6, K)
    np.testing.assert_allclose(p.sum(-1), 1, rtol=1e-5)
    matrix = confusion(p.argmax(-1), data.test_labels)
    mean, pixels = by_hand(matrix)
    assert 0.5 < mean < 0.99
    (last,) = [x for x in tiny_run.records(trained.folder)[-3:] if x["split"] == "test"]
    assert last["pixel_accuracy"] == pytest.approx(pixels)
    assert summary["test_accuracy"] == pytest.approx(mean)
    counts = data.test_labels != 255
    own = np.take_along_axis(
        p, np.where(counts, data.test_labels, 0)[..., None].astype(int), -1
    )
    losses = (-np.log(own[..., 0]) * counts).sum((1, 2)) / counts.sum((1, 2))
    assert summary["test_loss"] == pytest.approx(losses.mean(), rel=1e-4)
    assert 0.4 < summary["train_accuracy"] <= 1
    assert summary["validation_accuracy"] > 0.4
    assert record.read(trained.folder).score == "mean IoU"
    assert folder.read_score(trained.folder) == "mean IoU"


def test_it_is_resumed_and_reported(trained, tmp_path, capsys, monkeypatch):
    stored = json.loads((trained.folder / "config.json").read_text())
    assert stored["dataset"]["task"] == "segmentation"
    given = {"dataset": dataset(), "model": Net()}
    chosen = load_run.load(trained.folder, **given).config
    assert run(chosen, **given).status == "unchanged"
    monkeypatch.setenv("COLUMNS", "200")
    assert cli.main(["report", str(trained.folder), "--out", str(tmp_path)]) == 0
    assert "test mean IoU" in capsys.readouterr().out
    # Without its examples, the state has the same shapes.
    alone = load_run.load(trained.folder, model=Net()).experiment
    image, labels = alone.example
    assert (image.shape, labels.shape, labels.dtype) == ((6, 6, 1), (6, 6), np.uint8)


def test_label_maps_are_predicted_and_written(trained, tmp_path, monkeypatch, capsys):
    data, load = dataset(), load_run.load
    net = load(trained.folder, model=Net())
    answers = net.probabilities(data.test_images).argmax(-1)
    np.testing.assert_array_equal(net.label_maps(data.test_images), answers)
    assert net.label_maps(data.test_images[:0]).shape == (0, 6, 6)
    found = net.predict(data.test_images[0])[0]
    shares = np.bincount(answers[0].ravel()) / 36
    assert found.classes == tuple(NAMES[i] for i in np.argsort(-shares) if shares[i])
    assert found.probabilities[0] == pytest.approx(shares.max())
    for i in range(2):
        image = Image.fromarray(data.test_images[i, ..., 0])
        image.save(tmp_path / f"{i}.png")
    given(monkeypatch)
    line = ["predict", str(trained.folder), str(tmp_path / "0.png")]
    out = tmp_path / "maps"
    assert cli.main([*line, str(tmp_path / "1.png"), "--to", str(out)]) == 0
    said = capsys.readouterr().out
    assert f"{found.probabilities[0]:.1%}" in said
    assert f"label maps: {out}" in said
    for i in range(2):
        np.testing.assert_array_equal(label_maps.read(out / f"{i}.png"), answers[i])
    assert cli.main([*line, "--format", "json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["classes"][0]["share"] == pytest.approx(shares.max())
    assert cli.main([*line, str(tmp_path / "0.png"), "--to", str(out)]) == 2
    assert "two images would have the label map 0.png" in capsys.readouterr().err


def given(monkeypatch):
    """Commands load the run with its objects."""
    load, own = load_run.load, {"dataset": dataset(), "model": Net()}
    monkeypatch.setattr(load_run, "load", lambda run, **rest: load(run, **rest | own))


def test_it_is_evaluated_under_corruptions(trained, tmp_path, monkeypatch, capsys):
    folder = shutil.copytree(trained.folder, tmp_path / "run")
    given(monkeypatch)
    monkeypatch.setenv("COLUMNS", "200")
    line = ["evaluate", str(folder), "--corruptions", "contrast", "--severities", "4"]
    assert cli.main(line) == 0
    shown = capsys.readouterr().out
    found = json.loads((folder / "evaluation.json").read_text())
    assert found["score"] == "mean IoU"
    data, net = dataset(), load_run.load(folder)
    worse = corruptions.corrupt(data.test_images, "contrast", 4, seed=0)
    each = (
        found["clean"],
        {k: v[0] for k, v in found["corruptions"]["contrast"].items()},
    )
    kinds = ("clean", "mean_corrupted")
    for images, figures, kind in zip(
        (data.test_images, worse), each, kinds, strict=True
    ):
        p = net.probabilities(images)
        matrix = confusion(p.argmax(-1), data.test_labels)
        mean, pixels = by_hand(matrix)
        assert figures["accuracy"] == pytest.approx(mean)
        assert figures["pixel_accuracy"] == pytest.approx(pixels)
        counts = data.test_labels != 255
        best = p.max(-1)[counts]
        right = (p.argmax(-1) == data.test_labels)[counts]
        ece = sum(
            abs(right[b].sum() - best[b].sum())
            for k in range(15)
            for b in [(best > k / 15) & (best <= (k + 1) / 15)]
        )
        assert figures["ece"] == pytest.approx(ece / counts.sum(), abs=2e-5)
        iou = found["by_class"][kind]["iou"]
        assert iou[0] == pytest.approx(
            matrix[0, 0] / (matrix[0].sum() + matrix[:, 0].sum() - matrix[0, 0])
        )
        assert iou[3] is None or iou[3] == 0
    assert "pixel accuracy" in shown
    assert "IoU, corrupted" in shown
    # The score at the end of the training is the same, and no doubt is told.
    assert "The training ended" not in shown
    for name in ("zoom_blur", "elastic_transform"):
        with pytest.raises(RunError, match="label maps do not follow"):
            evaluate(folder, corruptions=(name,))


def test_its_errors_are_analysed(trained, tmp_path, monkeypatch, capsys):
    given(monkeypatch)
    line = ["analyze", str(trained.folder), "--parts", "errors", "features"]
    line += ["--examples", "0", "3", "--images", "16", "--out", str(tmp_path)]
    assert cli.main(line) == 0
    shown = capsys.readouterr().out
    found = json.loads((tmp_path / "analysis.json").read_text())
    (figures,) = [x["errors"] for x in found["runs"]]
    data, net = dataset(), load_run.load(trained.folder)
    answers = net.label_maps(data.test_images)
    matrix = confusion(answers, data.test_labels)
    mean, pixels = by_hand(matrix)
    assert (figures["examples"], figures["score"]) == (22, "mean IoU")
    assert figures["accuracy"] == pytest.approx(mean)
    assert figures["pixel_accuracy"] == pytest.approx(pixels)
    each = figures["by_region"]
    assert each["pixels"] == matrix.sum(1).tolist()
    assert each["recall"][1] == pytest.approx(matrix[1, 1] / matrix[1].sum())
    assert each["precision"][1] == pytest.approx(matrix[1, 1] / matrix[:, 1].sum())
    assert each["recall"][3] is None
    arrays = np.load(tmp_path / "analysis.npz")
    np.testing.assert_array_equal(arrays["run/confusion"], matrix)
    np.testing.assert_array_equal(arrays["run/predicted"], answers[[0, 3]])
    assert (arrays["run/true"] == -1).sum() == 2 * 4
    assert "mean IoU" in shown
    assert f"{each['iou'][1]:.3g}" in shown
    lines = (tmp_path / "predictions.csv").read_text().splitlines()
    assert len(lines) == 23
    right = int(((answers == data.test_labels) & (data.test_labels < 255))[2].sum())
    assert lines[3] == f"run,2,32,{right},{right / 32:.4f}"
    assert {"regions.png", "label-maps.png"} <= {x.name for x in tmp_path.iterdir()}


def test_it_is_exported_and_cut(trained, tmp_path):
    """A file of its arrays, and a program for batches of any size."""
    net, images = load_run.load(trained.folder, model=Net()), dataset().test_images[:3]
    path = net.save(tmp_path / "net.safetensors")
    again = load_run.load(path, model=Net())
    np.testing.assert_array_equal(again.label_maps(images), net.label_maps(images))
    path = net.save(tmp_path / "net.stablehlo", to="stablehlo")
    program = export.deserialize(bytearray(path.read_bytes()))
    p = jax.nn.softmax(program.call(images))
    np.testing.assert_allclose(p, net.probabilities(images), atol=1e-5)
    beside = json.loads((tmp_path / "net.stablehlo.json").read_text())
    assert beside["output"]["shape"] == [None, 6, 6, K]


# Every gradient once, and every method once, in as few programs as can be.
METHODS = [m for m in choices.METHODS if m not in UNITS]
PAIRS = [
    (gradient, "set" if gradient == "zeroth_order" else METHODS[i % len(METHODS)])
    for i, gradient in enumerate(gradients.registry.METHODS)
]
PAIRS += [("sam", m) for m in METHODS if m not in {pair[1] for pair in PAIRS}]
OPTIONS = {
    "dynamic": {"method_options": ("drop=magnitude", "grow=saliency")},
    "nm": {"method_options": ("n=2", "m=4")},
}


@pytest.mark.parametrize(("gradient", "method"), PAIRS)
def test_every_gradient_and_method_takes_it(gradient, method):
    """Their programs are traced, with the label maps of a batch."""
    fields = {"gradient": gradient, "method": method, **OPTIONS.get(method, {})}
    tiny_run.prepare(config("no folder", **fields), dataset(), Net())


@pytest.mark.parametrize("method", UNITS)
def test_methods_of_units_take_it(method):
    """With a network of the library, whose units have names."""
    model = resnet.ResNet(1, K, width=1 / 8, segmentation=True)
    chosen = config("no folder", method=method, gradient="backprop", model="resnet20")
    tiny_run.prepare(chosen, dataset(), model)


def test_a_training_goes_on_with_a_smaller_network():
    """The sums of the score, which no parameter has the shape of, stay as they are."""
    model = resnet.ResNet(1, K, width=1 / 8, segmentation=True)
    params, _ = models.initialize(model, jax.random.key(0), (6, 6, 1))
    masks = jax.tree.map(
        lambda x: np.ones(x.shape, bool) if x.ndim > 1 else True, params
    )
    for stage in (1, 2, 3):
        masks[f"stage{stage}_block0"]["conv2"]["kernel"][:, :, 1:] = False
    chosen = TrainConfig(batch_size=16, epochs=3, compact_every=1, gradient="sam")
    objects = Objects(dataset(), model=model, method=sparsity.static(masks=masks))
    compiled = loop.prepare(chosen, objects.made())
    begun = checkpoint.snapshot(tiny_run.begin(compiled.experiment))
    found = cutting.cut(compiled, begun)
    assert found is not None
    sums = found.state.opt_state.gradient.aux[1]
    assert sums.shape == (3, K)
    wanted = [x.shape for x in jax.tree.leaves(found.compiled.abstract)]
    assert [np.shape(x) for x in jax.tree.leaves(found.state)] == wanted
    assert found.state.params["stage3_block0"]["conv1"]["kernel"].shape[-1] == 1


def test_the_trainer_makes_the_head():
    facts = dataset_facts.of(dataset())
    for name, options in (("resnet20", {}), ("vit", {"patch": 2})):
        chosen = choices.Choices(None, None, options)
        made = config("no folder", model=name)
        assert build.create_model(made, facts, chosen).segmentation


def test_models_without_such_a_head_are_named():
    for name in ("vgg19", "mlp"):
        with pytest.raises(
            RunError, match=f"'{name}' has no head for segmentation.* v"
        ):
            loop.prepare(config("no folder", model=name), Objects(dataset()))
    chosen = config("no folder", model_options=("segmentation=True",))
    with pytest.raises(ValueError, match="segmentation follows from the data set"):
        choices.choose(dataclasses.replace(chosen, model="resnet20"))


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"augment": ("mixup=0.5",)}, "'mixup' mixes or moves pixels"),
        ({"label_noise": 0.1}, "of one class each"),
        ({"score_images": 2, "method": "snip"}, "of one class each"),
        ({"teacher": "elsewhere"}, "is for examples of one class each"),
    ],
)
def test_fields_of_whole_images_are_refused(fields, part):
    with pytest.raises(RunError, match=part):
        tiny_run.prepare(config("no folder", **fields), dataset(), Net())


def test_outputs_must_be_those_of_the_pixels():
    with pytest.raises(RunError, match="an output for each of class_names at every"):
        tiny_run.prepare(
            config("no folder"),
            dataset(),
            tiny_run.Net(),
            loss=lambda outputs, labels: jnp.sum(outputs, -1),
        )
