"""Multi-label classification and regression through the trainer."""

import csv
import dataclasses
import json
import shutil

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_run
from PIL import Image

from zosam_jax.analysis import of_runs, pictures
from zosam_jax.cli import analysis_report, comparison
from zosam_jax.cli import main as cli
from zosam_jax.data import corruptions
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


def test_a_run_of_it_is_resumed_and_its_loss_analysed(trained, tmp_path):
    task, result = trained
    given = {"dataset": dataset(task), "model": network()}
    stored = json.loads((result.folder / "config.json").read_text())
    assert stored["dataset"]["task"] == task
    chosen = load_run.load(result.folder, **given).config
    assert run(chosen, **given).status == "unchanged"
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


def by_hand(task, outputs, y):
    """The score and the loss of probabilities or values."""
    if task == "multilabel":
        loss = -np.mean(np.log(np.where(y, outputs, 1 - outputs)))
        return np.mean((outputs > 0.5) == y), loss
    total = np.sum((y - y.mean(0)) ** 2)
    return 1 - np.sum((outputs - y) ** 2) / total, np.mean((outputs - y) ** 2)


def calibration_error(p, y):
    error = 0.0
    for b in range(15):
        inside = (p > b / 15) & (p <= (b + 1) / 15)
        if inside.any():
            error += inside.mean() * abs(y[inside].mean() - p[inside].mean())
    return error


@pytest.fixture
def evaluated(trained, tmp_path, monkeypatch, capsys):
    """The figures of the command on a copy of the run, and what it showed."""
    task, ended = trained
    folder, load = shutil.copytree(ended.folder, tmp_path / "run"), load_run.load
    given = {"dataset": dataset(task), "model": network()}
    monkeypatch.setattr(load_run, "load", lambda run, **rest: load(run, **rest | given))
    line = ["evaluate", str(folder), "--corruptions", "contrast", "--severities", "3"]
    assert cli.main(line) == 0
    figures = json.loads((folder / "evaluation.json").read_text())
    return task, folder, figures, capsys.readouterr().out


def test_it_is_evaluated_under_corruptions(evaluated):
    task, folder, figures, shown = evaluated
    data, net = dataset(task), load_run.load(folder)
    corrupted = corruptions.corrupt(data.test_images, "contrast", 3, seed=0)
    outputs = [net.probabilities(x) for x in (data.test_images, corrupted)]
    y = data.test_labels
    row = figures["corruptions"]["contrast"]
    found = figures["clean"], {name: value[0] for name, value in row.items()}
    for each, p in zip(found, outputs, strict=True):
        score, loss = by_hand(task, p, y)
        assert each["accuracy"] == pytest.approx(score, rel=1e-4)
        assert each["loss"] == pytest.approx(loss, rel=1e-4)
    score = {"multilabel": "label accuracy", "regression": "R²"}[task]
    assert figures["score"] == score
    assert score in shown
    assert ("no calibration" in shown) == (task == "regression")
    if task == "regression":
        assert set(figures["clean"]) == {"accuracy", "loss"}
        assert "reliability" not in figures
        return
    by_label = figures["by_label"]
    assert by_label["labels"] == list(NAMES)
    kinds = ("clean", "mean_corrupted")
    for kind, each, p in zip(kinds, found, outputs, strict=True):
        eces = [calibration_error(p[:, k], y[:, k]) for k in range(3)]
        briers = np.mean((p - y) ** 2, 0)
        np.testing.assert_allclose(by_label[kind]["ece"], eces, atol=2e-5)
        np.testing.assert_allclose(by_label[kind]["brier"], briers, rtol=1e-4)
        assert each["ece"] == pytest.approx(np.mean(eces), abs=2e-5)
        assert each["brier"] == pytest.approx(np.mean(briers), rel=1e-4)
    assert sum(figures["reliability"]["clean"]["share"]) == pytest.approx(1)
    assert "Brier, corrupted" in shown


def test_a_report_names_its_score(evaluated, capsys, tmp_path, monkeypatch):
    task, folder, figures, _ = evaluated
    out = tmp_path / "report"
    monkeypatch.setenv("COLUMNS", "200")
    line = ["report", str(folder), "--out", str(out), "--target", "0.3"]
    assert cli.main(line) == 0
    shown = capsys.readouterr().out
    score = figures["score"]
    assert f"test {score}" in shown
    assert "test accuracy" not in shown
    (header, _, cells) = (out / "groups.md").read_text().splitlines()[:3]
    row = dict(zip(*(x.split(" | ") for x in (header, cells)), strict=True))
    assert row[f"test {score}, %"] == f"{100 * figures['clean']['accuracy']:.2f}"
    corrupted = 100 * figures["mean_corrupted_accuracy"]
    assert row[f"corrupted {score}, %"] == f"{corrupted:.2f}"
    assert "epochs to 30 %" in header
    assert "seconds to 30 %" in header
    assert ("calibration error, %" in header) == (task == "multilabel")
    classes = dataclasses.replace(record.read(folder), name="other", score="accuracy")
    both = [record.read(folder), classes]
    column = next(c for c in comparison.columns(both) if "test" in c.header)
    assert column.header == f"test accuracy or {score}"
    assert [c.split(" ", 1)[1] for c in map(column.text, both)] == [score, "accuracy"]


def test_a_bare_analysis_has_its_errors_and_features(trained, tmp_path):
    task, ended = trained
    given = {"dataset": dataset(task), "model": network()}
    # All parts are there by default; the others do not look at the labels.
    assert {"errors", "features"} < set(of_runs.Settings().parts)
    settings = of_runs.Settings(parts=("masks", "errors", "features"), images=16)
    found = of_runs.analyze(ended.folder, settings, out=tmp_path, **given)
    (run,) = found["runs"]
    net, y = load_run.load(ended.folder, model=network()), dataset(task).test_labels
    outputs = net.probabilities(dataset(task).test_images)
    errors = run["errors"]
    assert (errors["classes"], errors["examples"]) == (list(NAMES), 22)
    assert errors["accuracy"] == pytest.approx(by_hand(task, outputs, y)[0], rel=1e-4)
    arrays = np.load(tmp_path / "analysis.npz")
    path = analysis_report.write_predictions(found, arrays, tmp_path)
    with path.open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 22 * 3
    line = lines[4]
    assert (line["run"], line["example"]) == ("run", "1")
    assert float(line["true"]) == pytest.approx(float(y[1, 1]), rel=1e-5)
    (table,) = analysis_report.error_tables(found)
    texts = [[str(cell) for cell in column.cells] for column in table.columns]
    assert texts[1] == list(NAMES)
    if task == "multilabel":
        right = [(outputs[y[:, k], k] > 0.5).mean() for k in range(3)]
        np.testing.assert_allclose(errors["by_label"]["recall"], right)
        assert errors["recall"] == pytest.approx(np.mean(right))
        assert errors["by_label"]["examples"] == y.sum(0).tolist()
        assert float(line["probability"]) == pytest.approx(outputs[1, 1], abs=1e-4)
        assert line["label"] == "left"
        picture = "label-errors"
    else:
        rmse = np.sqrt(np.mean((outputs - y) ** 2, 0))
        np.testing.assert_allclose(errors["by_value"]["rmse"], rmse, rtol=1e-4)
        assert texts[2] == [f"{x:.3g}" for x in rmse]
        residual = outputs[1, 1] - y[1, 1]
        assert float(line["residual"]) == pytest.approx(residual, abs=1e-5)
        assert line["value"] == "left"
        picture = "residuals"
    # An MLP has no map of the image, and that is told.
    assert pictures.drawable(found)[-1] == picture
    assert any("no layer has a map" in note for note in analysis_report.notes(found))
    pictures.draw(picture, found, arrays, tmp_path / "errors.png")
    figure = pictures.PICTURES[picture].draw(found, arrays)
    titles = [axis.get_title() for axis in figure.axes]
    if task == "multilabel":
        assert titles == ["precision", "recall", "F1", "average precision"]
        shown = np.asarray(figure.axes[1].lines[0].get_xdata())
        np.testing.assert_allclose(shown, errors["by_label"]["recall"])
    else:
        assert [title.split(":")[0] for title in titles] == list(NAMES)
        np.testing.assert_array_equal(figure.axes[1].lines[1].get_xdata(), y[:, 1])


def test_what_has_no_score_or_no_published_set_is_said(trained):
    task, ended = trained
    given = {"dataset": dataset(task), "model": network()}
    with pytest.raises(RunError, match=f"one class each, and the labels .* {task}"):
        evaluate(ended.folder, source="published", **given)
    if task == "regression":
        with pytest.raises(RunError, match="images=1: their values are equal"):
            evaluate(ended.folder, images=1, **given)


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
