"""Multi-label classification and regression through the trainer."""

import dataclasses
import json

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_run
from PIL import Image

from zosam_jax.analysis import of_runs
from zosam_jax.cli import main as cli
from zosam_jax.evaluate import evaluate
from zosam_jax.models import create
from zosam_jax.runs import record
from zosam_jax.train import RunError, load_run, model_card, run

NAMES = ("top", "left", "sum")


def dataset(task):
    """Noisy images: which halves are bright and whether both are, or how bright."""
    base = tiny_run.dataset(96, 22)
    rng = np.random.default_rng(1)
    levels = rng.uniform(0, 1, (len(base.train_images) + 22, 2)).astype(np.float32)
    images = np.concatenate([base.train_images, base.test_images]) // 8
    for image, (top, left) in zip(images, levels, strict=True):
        image[:3] += np.uint8(100 * top)
        image[:, :3] += np.uint8(100 * left)
    values = np.concatenate([levels, levels.sum(1, keepdims=True)], 1)
    labels = values > (0.5, 0.5, 1.0) if task == "multilabel" else values
    return dataclasses.replace(
        base,
        train_images=images[:96],
        test_images=images[96:],
        train_labels=labels[:96],
        test_labels=labels[96:],
        class_names=NAMES,
    )


def config(out, **fields):
    usual = {"gradient": "sam", "epochs": 12, "learning_rate": 0.2, "augment": ()}
    return tiny_run.config(out, **usual | fields)


def network():
    return create("mlp", num_classes=3, hidden=(16,))


@pytest.fixture(scope="module", params=["multilabel", "regression"])
def trained(request, tmp_path_factory):
    task = request.param
    out = tmp_path_factory.mktemp(task) / "run"
    chosen = config(
        out, validation=1 / 6, learning_rate=0.2 if task[0] == "m" else 0.05
    )
    return task, run(chosen, dataset=dataset(task), model=network())


def test_the_command_shows_every_label_that_an_image_may_have(
    trained, tmp_path, monkeypatch, capsys
):
    task, ended = trained
    image = tmp_path / "image.png"
    Image.fromarray(dataset(task).test_images[0, ..., 0]).save(image)
    load = load_run.load
    monkeypatch.setattr(
        load_run, "load", lambda run, **rest: load(run, **{**rest, "model": network()})
    )
    line = ["predict", str(ended.folder), str(image), "--format", "json"]
    assert cli.main(line) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert {row["class"] for row in found["classes"]} == set(NAMES)
    assert cli.main([*line, "--top", "1"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    # The values of a regression are all there.
    assert len(found["classes"]) == (1 if task == "multilabel" else 3)


def test_it_learns_and_records_the_scores_of_its_task(trained):
    task, result = trained
    data, summary = dataset(task), result.summary
    assert data.task == task
    net = load_run.load(result.folder, model=network())
    assert (net.facts.task, net.classes) == (task, NAMES)
    outputs = net.probabilities(data.test_images)
    y = data.test_labels
    if task == "multilabel":
        wanted_loss = -np.mean(np.log(np.where(y, outputs, 1 - outputs)))
        wanted = np.mean((outputs > 0.5) == y)
        assert wanted > max(np.mean(y), 1 - np.mean(y)) + 0.1
        assert net.predict(data.test_images[:1])[0].classes[0] in NAMES
    else:
        wanted_loss = np.mean((outputs - y) ** 2)
        total = np.sum((y - y.mean(0)) ** 2)
        wanted = 1 - np.sum((outputs - y) ** 2) / total
        assert wanted > 0.5
        found = net.predict(data.test_images[:1], top=1)[0]
        assert found.classes == NAMES
        np.testing.assert_allclose(found.probabilities, outputs[0], rtol=1e-4)
    np.testing.assert_allclose(summary["test_loss"], wanted_loss, rtol=1e-4)
    np.testing.assert_allclose(summary["test_accuracy"], wanted, rtol=1e-4)
    (found,) = record.read_all([result.folder])
    assert found.summary == summary
    assert found.score == {"multilabel": "label accuracy", "regression": "R²"}[task]


def test_a_model_card_says_values_and_their_score(trained, tmp_path):
    task, result = trained
    net = load_run.load(result.folder, model=network())
    said = model_card.about(net.config, net.facts, net.step, result.summary)
    model_card.write(tmp_path / "net", said, net.params, net.masks, "")
    card = (tmp_path / "net.md").read_text()
    score, outputs = {
        "multilabel": ("label accuracy", "3 classes"),
        "regression": ("R²", "3 values"),
    }[task]
    assert f"test {score} {result.summary['test_accuracy']:.6g}, test loss" in card
    assert f"{outputs}, examples of" in card


def test_a_run_of_it_is_resumed_and_analysed(trained, tmp_path):
    task, result = trained
    given = {"dataset": dataset(task), "model": network()}
    stored = json.loads((result.folder / "config.json").read_text())
    assert stored["dataset"]["task"] == task
    chosen = load_run.load(result.folder, **given).config
    assert run(chosen, **given).status == "unchanged"
    with pytest.raises(RunError, match=f"is of {task}"):
        evaluate(result.folder, **given)
    with pytest.raises(RunError, match="errors and features are of classes"):
        of_runs.analyze(result.folder, of_runs.Settings(images=16), **given)
    settings = of_runs.Settings(
        parts=("masks",), split="test", images=22, batch_size=22
    )
    figures = of_runs.analyze(result.folder, settings, out=tmp_path, **given)
    np.testing.assert_allclose(
        figures["runs"][0]["loss"], result.summary["test_loss"], rtol=1e-4
    )
    other = dataset("regression" if task == "multilabel" else "multilabel")
    with pytest.raises(Exception, match="its labels are of"):
        load_run.load(result.folder, dataset=other, model=network())


@pytest.mark.parametrize(
    ("method", "gradient"),
    [
        ("snip", "esam"),
        ("grasp", "gsam"),
        ("rigl", "zosam"),
        ("units", "looksam"),
        ("set", "zeroth_order"),
    ],
)
@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_methods_and_gradients_take_them(method, gradient, task):
    """Their programs are traced with the labels of the task."""
    fields = {"method": method, "gradient": gradient, "augment": ("mixup=0.5",)}
    if method == "units":
        fields |= {"model": "mlp", "model_options": ("hidden=(8,)",)}
    loss = optax.sigmoid_binary_cross_entropy if task == "multilabel" else None
    model = create("mlp", num_classes=3, hidden=(8,))
    programs = tiny_run.prepare(
        config("no folder", **fields), dataset(task), model, loss=loss
    )
    # Read back, without its examples, the state has the same shapes.
    alone = dataclasses.replace(programs.experiment, dataset=None)
    assert alone.example == programs.experiment.example


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"label_smoothing": 0.1}, "label_smoothing=0.1 is for examples of one class"),
        ({"label_noise": 0.1}, "of one class each"),
        ({"score_images": 2, "method": "snip"}, "of one class each"),
    ],
)
def test_fields_of_classes_are_refused(fields, part):
    with pytest.raises(RunError, match=part):
        tiny_run.prepare(
            config("no folder", **fields), dataset("regression"), network()
        )


def test_held_out_values_must_differ():
    """One image has no variance, and so no R²."""
    with pytest.raises(RunError, match="holds out 1 examples of equal values"):
        tiny_run.prepare(
            config("no folder", validation=0.01), dataset("regression"), network()
        )


class Columns(nn.Module):
    """A network of too many outputs."""

    @nn.compact
    def __call__(self, x, train):
        return nn.Dense(4)(x.reshape(len(x), -1))


def test_the_outputs_must_be_those_of_the_labels():
    with pytest.raises(RunError, match=r"\[16,4\] and the labels float32\[16,3\]"):
        tiny_run.prepare(
            config("no folder"),
            dataset("regression"),
            Columns(),
            loss=lambda outputs, labels: jnp.sum((outputs[:, :3] - labels) ** 2, -1),
        )


@pytest.mark.parametrize(
    ("train", "test", "part"),
    [
        (np.ones((96, 2), bool), None, r"must be bool \[N, 3\], a column for each"),
        (np.ones((96, 3), np.float32), None, "all train_labels are equal"),
        (np.full((96, 3), np.nan), None, "some train_labels are not finite"),
        (None, np.ones((22, 3), bool), r"test_labels must be float32 \[N, 3\]"),
        (np.zeros(96, complex), None, "must be integers .*got complex128"),
    ],
)
def test_labels_of_no_task_are_refused(train, test, part):
    base = dataset("regression")
    with pytest.raises(ValueError, match=part):
        dataclasses.replace(
            base,
            train_labels=base.train_labels if train is None else train,
            test_labels=base.test_labels if test is None else test,
        )


def test_single_values_are_a_column():
    base = dataset("regression")
    found = dataclasses.replace(
        base,
        train_labels=base.train_labels[:, 0].astype(np.float64),
        test_labels=base.test_labels[:, 0],
        class_names=("top",),
    )
    assert (found.train_labels.shape, found.train_labels.dtype) == ((96, 1), np.float32)
