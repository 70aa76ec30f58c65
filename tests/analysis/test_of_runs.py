"""`analyze` on runs that take seconds: its figures are those of the instruments."""

import csv
import importlib.util
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run

from zosam_jax import analysis, models
from zosam_jax.analysis import (
    error_pictures,
    interactive,
    network_figures,
    of_runs,
    pictures,
    surfaces,
)
from zosam_jax.cli import analysis_report
from zosam_jax.cli import main as cli
from zosam_jax.train import RunError, load_run

OBJECTS = {"dataset": tiny_run.dataset(), "model": tiny_run.Net()}
SMALL = of_runs.Settings(images=32, points=3)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Sparse runs of SAM that differ in their seed."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in range(2):
        fields = {"epochs": 1, "gradient": "sam", "seed": seed}
        tiny_run.train(folder / f"seed{seed}", **fields)
    return [folder / "seed0", folder / "seed1"]


@pytest.fixture(scope="module")
def analysed(runs, tmp_path_factory):
    """What is found, the folder, and the progress."""
    out, seen = tmp_path_factory.mktemp("out") / "analysis", []
    found = of_runs.analyze(runs, SMALL, out=out, on_progress=seen.append, **OBJECTS)
    return found, out, seen


def by_hand(run):
    """The run, its loss as a function of parameters, and its batches."""
    net = load_run.load(run, **OBJECTS)
    data = OBJECTS["dataset"]
    order = np.random.default_rng(0).permutation(70)[:32].reshape(2, 16)
    x = ((data.train_images / 255 - 0.3) / 0.2).astype(np.float32)
    batches = [(x[rows], data.train_labels[rows]) for rows in order]

    def loss(params, batch):
        variables = {"params": params, **net.model_state}
        logits = net.model.apply(variables, batch[0], train=False)
        p = jax.nn.log_softmax(logits)
        return -jnp.mean(p[jnp.arange(16), batch[1]])

    return net, loss, batches


def test_figures_are_those_of_the_instruments(analysed, runs):
    found, out, _ = analysed
    assert json.loads((out / "analysis.json").read_text()) == found
    net, loss, batches = by_hand(runs[0])
    on = {"masks": net.masks, "batches": batches}
    key = jax.random.key(0)
    first = found["runs"][0]
    top = analysis.hessian_eigenvalues(loss, net.params, key, k=5, **on)
    np.testing.assert_allclose(first["curvature"]["largest"], top.values, rtol=1e-4)
    worst = analysis.worst_case_sharpness(loss, net.params, rho=0.05, **on)
    np.testing.assert_allclose(first["sharpness"]["plain"]["best"], worst.best, 1e-3)
    mean = np.mean([loss(net.params, batch) for batch in batches])
    np.testing.assert_allclose(first["loss"], mean, rtol=1e-5)
    noise = analysis.gradient_noise(loss, net.params, batches, masks=net.masks)
    np.testing.assert_allclose(
        first["noise"]["backprop"]["variance"], noise.variance, rtol=1e-4
    )
    assert first["noise"]["training"]["gradient"] == "sam"


def test_heights_are_in_the_file_of_arrays(analysed):
    found, out, _ = analysed
    with np.load(out / "analysis.npz") as file:
        arrays = dict(file)
    for run in found["runs"]:
        heights = arrays[f"{run['run']}/heights"]
        assert heights.shape == (3, 3)
        np.testing.assert_allclose(heights[1, 1], run["loss"], rtol=1e-5)
        roughness = analysis.roughness(heights)
        assert run["landscape"]["roughness"] == pytest.approx(roughness)


def test_masks_of_several_runs_are_compared(analysed, runs):
    found, _, _ = analysed
    a, b = (load_run.load(run, **OBJECTS).masks for run in runs)
    wanted = analysis.mask_overlap(a, b)["all"].jaccard
    assert found["overlap"]["runs"] == ["seed0", "seed1"]
    np.testing.assert_allclose(found["overlap"]["jaccard"], [[1, wanted], [wanted, 1]])
    densities = found["runs"][0]["masks"]["densities"]
    assert densities["conv/kernel"] == np.mean(a["conv"]["kernel"])


def test_progress_rises_to_the_end(analysed):
    _, _, seen = analysed
    shares = [p.share for p in seen]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert sum(p.finished for p in seen) == 2 * len(of_runs.PARTS)


def test_every_part_has_a_picture(analysed, tmp_path):
    found, out, _ = analysed
    with np.load(out / "analysis.npz") as file:
        arrays = dict(file)
    assert pictures.drawable(found) == [
        *("curvature", "sharpness", "landscape", "landscape-3d", "noise", "masks"),
        *("errors", "features"),
    ]
    for part in pictures.drawable(found):
        pictures.draw(part, found, arrays, tmp_path / f"{part}.png")
        assert (tmp_path / f"{part}.png").read_bytes()[1:4] == b"PNG"


def test_no_mark_of_the_noise_hides_another(analysed):
    """Where the training perturbs next to nothing, both variances are the same."""
    found, _, _ = analysed
    marks = [
        x for x in pictures.noise(found, {}).axes[0].lines if x.get_marker() in "oD"
    ]
    inner, outer = marks[:2]
    assert (inner.get_marker(), outer.get_marker()) == ("o", "D")
    assert outer.get_markerfacecolor() == "none"
    assert inner.get_markersize() < outer.get_markersize()


def answers(run):
    """Logits of all test images."""
    net, data = load_run.load(run, **OBJECTS), OBJECTS["dataset"]
    x = ((data.test_images / 255 - 0.3) / 0.2).astype(np.float32)
    return np.asarray(net.model.apply(net.variables, x, train=False)), data.test_labels


def test_errors_are_those_of_all_test_images(analysed, runs):
    """22 images are two batches of 16, of which the second is filled up."""
    found, out, _ = analysed
    logits, labels = answers(runs[1])
    run, predicted = found["runs"][1], logits.argmax(1)
    with np.load(out / "analysis.npz") as file:
        np.testing.assert_array_equal(file["seed1/predictions"], predicted)
        np.testing.assert_array_equal(file["seed1/labels"], labels)
        confusion = file["seed1/confusion"]
    for i, j in np.ndindex(4, 4):
        assert confusion[i, j] == np.sum((labels == i) & (predicted == j))
    assert run["errors"]["accuracy"] == np.mean(predicted == labels)
    assert run["errors"]["by_class"] == [
        pytest.approx(np.mean(predicted[labels == i] == i)) for i in range(4)
    ]
    assert run["errors"]["classes"] == ["a", "b", "c", "d"]


def test_of_many_classes_the_hardest_are_shown():
    names = [f"class {i}" for i in range(40)]
    by_class = [None, *(i / 40 for i in range(39, 0, -1))]
    run = {"run": "many", "errors": {"classes": names, "by_class": by_class}}
    (axis,) = error_pictures.classes({"runs": [run]}, {}).axes
    shown = [text.get_text() for text in axis.get_yticklabels()]
    assert shown == [f"class {i}" for i in range(39, 14, -1)]


def test_runs_of_other_classes_have_a_matrix_each():
    runs = [
        {"run": name, "errors": {"classes": list(name), "by_class": [1.0] * len(name)}}
        for name in ("ab", "xyz")
    ]
    arrays = {f"{name}/confusion": np.eye(len(name)) for name in ("ab", "xyz")}
    figure = error_pictures.classes({"runs": runs}, arrays)
    labels = [[t.get_text() for t in axis.get_yticklabels()] for axis in figure.axes]
    assert labels == [["a", "b"], ["x", "y", "z"]]


def test_runs_of_many_and_other_classes_have_their_hardest_each():
    runs = [
        {
            "run": name,
            "errors": {
                "classes": [f"{name}{i}" for i in range(30)],
                "by_class": [i / 30 for i in range(30)],
            },
        }
        for name in "xy"
    ]
    axes = error_pictures.classes({"runs": runs}, {}).axes
    assert [axis.get_yticklabels()[0].get_text() for axis in axes] == ["x0", "y0"]
    assert [axis.lines[0].get_marker() for axis in axes] == ["o", "s"]


def test_features_are_the_strengths_of_activations(analysed, runs):
    found, out, _ = analysed
    assert found["runs"][0]["features"]["layers"] == ["conv", "norm"]
    net, data = load_run.load(runs[0], **OBJECTS), OBJECTS["dataset"]
    x = ((data.test_images[:6] / 255 - 0.3) / 0.2).astype(np.float32)
    kernel, bias = (net.params["conv"][name] for name in ("kernel", "bias"))
    made = jax.lax.conv_general_dilated(
        *(x, kernel, (1, 1), "SAME"), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    strength = np.sqrt(np.mean(np.square(made + bias), -1))
    with np.load(out / "analysis.npz") as file:
        np.testing.assert_allclose(file["seed0/features/conv"], strength, rtol=1e-4)
        np.testing.assert_array_equal(file["seed0/images"], data.test_images[:6])


@pytest.fixture(scope="module")
def plane(runs, tmp_path_factory):
    """The plane through two runs and a third, of another seed."""
    third = tmp_path_factory.mktemp("runs") / "seed2"
    tiny_run.train(third, **{"epochs": 1, "gradient": "sam", "seed": 2})
    out, three = tmp_path_factory.mktemp("plane"), [*runs, third]
    parts = {"parts": ("landscape",), "directions": "runs"}
    settings = of_runs.Settings(images=32, points=5, **parts)
    seen = []
    found = of_runs.analyze(
        three, settings, out=out, on_progress=seen.append, **OBJECTS
    )
    with np.load(out / "analysis.npz") as file:
        return found, dict(file), three, seen


def test_the_plane_through_runs_shows_its_progress(plane):
    *_, seen = plane
    shares = [p.share for p in seen]
    assert shares == sorted(shares)
    of_plane = [p.share for p in seen if p.part == "plane through them"]
    # Three runs are done before, of four parts in all.
    assert (of_plane[0], of_plane[-1]) == (0.75, 1)
    assert 0.75 < of_plane[1] < of_plane[-2] == 1


def test_the_plane_in_three_dimensions_marks_the_runs(plane, tmp_path):
    found, arrays, *_ = plane
    (axis,) = (figure := pictures.relief(found, arrays)).axes
    places = np.array(found["plane"]["points"])
    marks = [line.get_data_3d() for line in axis.lines if line.get_marker() != "None"]
    np.testing.assert_allclose([[x[0], y[0]] for x, y, _ in marks], places)
    # The first run lies within the cell of the grid that its mark is above.
    x, y = arrays["plane_x"], arrays["plane_y"]
    i, j = np.searchsorted(x, 0) - 1, np.searchsorted(y, 0) - 1
    cell = np.log10(arrays["plane_heights"][i : i + 2, j : j + 2])
    assert cell.min() <= marks[0][2][0] <= cell.max()
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["seed0", "seed1", "seed2"]
    interactive.write(found, arrays, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert all(f'"text":["","{name}"]' in page for name in names)


def test_heights_between_the_points_of_a_grid_are_bilinear():
    rng = np.random.default_rng(0)
    x, y = np.array([-1.0, 0.0, 3.0]), np.array([2.0, 4.0])
    a, b, c, d = rng.normal(size=4)
    heights = a + b * x[:, None] + c * y[None] + d * x[:, None] * y[None]
    shape = surfaces.Surface("", x, y, heights, ("", ""), np.zeros((1, 2)))
    points = np.array([[-1, 2], [3, 4], [1.5, 2.5], [-0.2, 3.9]])
    wanted = a + b * points[:, 0] + c * points[:, 1] + d * points.prod(1)
    np.testing.assert_allclose(surfaces.heights_at(shape, points), wanted)


def test_one_landscape_goes_through_three_runs(plane):
    """Its heights are those of direct evaluation, BatchNorm at a batch's statistics."""
    found, arrays, runs, _ = plane
    points = np.array(found["plane"]["points"])
    params = [load_run.load(run, **OBJECTS).params for run in runs]
    first, second, third = (jax.flatten_util.ravel_pytree(p)[0] for p in params)
    length = np.linalg.norm(second - first)
    np.testing.assert_allclose(points[:2], [[0, 0], [length, 0]], atol=1e-5)
    away = [np.linalg.norm(third - x) for x in (first, second)]
    np.testing.assert_allclose(
        [np.linalg.norm(points[2] - x) for x in points[:2]], away, rtol=1e-4
    )
    # The grid begins a quarter of the width before the runs.
    x, y = arrays["plane_x"], arrays["plane_y"]
    low, high = points.min(0), points.max(0)
    np.testing.assert_allclose([x[0], y[0]], low - (high - low) / 4, atol=1e-5)
    net, _, batches = by_hand(runs[0])
    # The point of the grid in coordinates of the three networks.
    share = np.linalg.solve(np.vstack([points.T, np.ones(3)]), [x[1], y[3], 1])
    mixed = jax.tree.map(lambda *w: sum(map(jnp.multiply, share, w)), *params)
    losses = []
    for images, labels in batches:
        variables = {"params": mixed, **net.model_state}
        logits, _ = net.model.apply(
            variables, images, train=True, mutable=["batch_stats"]
        )
        p = jax.nn.log_softmax(logits)
        losses.append(-np.mean(np.asarray(p)[np.arange(16), labels]))
    np.testing.assert_allclose(
        arrays["plane_heights"][1, 3], np.mean(losses), rtol=1e-4
    )


def test_every_checkpoint_is_analysed_as_a_run_of_its_own(tmp_path):
    run, parts = tmp_path / "long", ("noise", "errors")
    tiny_run.train(run, epochs=3, keep=3, gradient="sam")
    settings = of_runs.Settings(parts=parts, images=32, checkpoints=True)
    found = of_runs.analyze(run, settings, **OBJECTS)
    assert [x["run"] for x in found["runs"]] == ["long@4", "long@8", "long@12"]
    assert [x["status"] for x in found["runs"]] == [*["unfinished"] * 2, "finished"]
    lines = (run / "metrics.jsonl").read_text().splitlines()
    tests = [json.loads(x) for x in lines if json.loads(x)["split"] == "test"]
    accuracies = [x["errors"]["accuracy"] for x in found["runs"]]
    assert accuracies == [pytest.approx(x["accuracy"]) for x in tests]
    assert pictures.drawable(found) == ["noise", "errors", "along-training"]
    panels = pictures.along(found, {}).axes
    titles = [axis.get_title() for axis in panels if axis.axison]
    assert titles == [
        *("variance of the gradient", "signal to noise"),
        *("cosine of successive batches", "test accuracy"),
    ]
    np.testing.assert_array_equal(panels[3].lines[0].get_xdata(), [4, 8, 12])
    np.testing.assert_array_equal(panels[3].lines[0].get_ydata(), accuracies)
    cosines = [x["noise"]["training"]["successive_cosine"] for x in found["runs"]]
    np.testing.assert_array_equal(panels[2].lines[0].get_ydata(), cosines)
    assert not analysis_report.notes(found)
    # A single checkpoint is no curve, and that is said.
    single = {**found, "runs": found["runs"][-1:]}
    assert pictures.drawable(single) == ["noise", "errors"]
    (note,) = analysis_report.notes(single)
    assert "no curve along the training of long: one checkpoint" in note
    assert "--keep" in note


def test_losses_below_zero_have_levels():
    heights = np.array([[-3.0, -2.0], [np.nan, 1.0]])
    axis = np.array([0.0, 1.0])
    shape = surfaces.Surface("", axis, axis, heights, ("", ""), np.zeros((1, 2)))
    levels = surfaces.common_levels([shape])
    assert levels.scale == "linear"
    assert levels.values[0] < -3
    assert 0.8 < levels.values[-1] < 1.01
    assert (np.diff(levels.values) > 0).all()
    np.testing.assert_array_equal(levels.scaled(heights), heights)
    assert levels.clipped(heights)[1, 0] == levels.values[-1]
    above = surfaces.common_levels([shape._replace(heights=np.exp(heights))])
    assert above.scale == "log"
    np.testing.assert_allclose(above.scaled(np.array([100.0])), [2])


def test_the_loss_of_a_cut_network_is_made():
    """Its widths are a dict, so the model has no hash."""
    model = models.create("mlp", num_classes=2, widths={"hidden1": 3, "hidden2": 2})
    images = jnp.ones((4, 2, 2, 1))
    variables = model.init(jax.random.key(0), images, train=False)
    value = network_figures.mean_loss(model, lambda outputs, labels: outputs.sum(-1))
    found = value(variables["params"], (images, jnp.zeros(4, int), {}))
    wanted = model.apply(variables, images, train=False).sum(-1).mean()
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    whole = models.create("mlp", num_classes=2)
    logits_of = network_figures.logits_of
    assert logits_of(whole) is logits_of(whole.copy())


def test_the_label_of_the_heights_is_in_the_picture(plane):
    figure = pictures.relief(*plane[:2])
    figure.draw_without_rendering()
    for axis in figure.axes:
        box = axis.zaxis.label.get_window_extent()
        assert 0 < box.x0 < box.x1 < figure.bbox.width


def test_landscapes_become_pictures_and_a_page(plane, analysed, tmp_path):
    found, out, _ = analysed
    with np.load(out / "analysis.npz") as file:
        both = [("two", found, dict(file)), ("plane", *plane[:2])]
    for name, figures, arrays in both:
        for picture in ("landscape", "landscape-3d"):
            path = tmp_path / f"{name}-{picture}.png"
            pictures.draw(picture, figures, arrays, path)
        interactive.write(figures, arrays, tmp_path / f"{name}.html")
        page = (tmp_path / f"{name}.html").read_text()
        assert "plotly" in page
        # It loads nothing; the library that it contains has links in its menus.
        assert not re.search(r"<(script|link|img)[^>]*(src|href)=", page[:10_000])
    assert len(list(tmp_path.iterdir())) == 6


def test_a_page_without_landscape_or_plotly_is_refused_before_the_work(monkeypatch):
    with pytest.raises(RunError, match="--parts leaves out"):
        interactive.check(("noise",))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RunError, match="pip install 'zosam-jax"):
        interactive.check(("landscape",))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"directions": "runs"}, "through 3 runs; 1 are given"),
        ({"examples": (22,)}, "22 test images are numbered from 0 to 21"),
        (
            {"layers": ("stage*",), "parts": ("features",)},
            "layers='stage.' fits no layer .* conv, norm",
        ),
        ({"parts": ("hessian",)}, "parts='hessian' is unknown"),
        ({"points": 4}, "points=4 must be odd"),
        ({"images": 71}, "images=71 is more than the 70 examples of split=train"),
        ({"rho": 0}, "rho=0 must be a finite number > 0"),
        ({"images": 16, "parts": ("noise",)}, "noise of .* at least two batches"),
    ],
)
def test_what_cannot_be_analysed_is_said(runs, options, message):
    def analyze():
        settings = of_runs.Settings(**{"images": 32, **options})
        of_runs.analyze(runs[0], settings, **OBJECTS)

    with pytest.raises(RunError, match=message):
        analyze()


def test_a_run_that_is_given_twice_is_named(runs):
    with pytest.raises(RunError, match="given twice"):
        of_runs.analyze([runs[0], runs[0]], **OBJECTS)


@pytest.mark.parametrize("has", [{"layers": ["conv"]}, {}])
def test_features_that_a_model_does_not_have_are_told(
    monkeypatch, tmp_path, capsys, has
):
    def analyze(runs, settings, **options):
        np.savez(tmp_path / "analysis.npz")
        run = {"run": "small", "loss": 1.0, "features": has}
        parts = {"parts": ["features"], "checkpoints": False}
        return {"runs": [run], "overlap": None, "plane": None, "settings": parts}

    monkeypatch.setattr(of_runs, "analyze", analyze)
    monkeypatch.setattr(pictures, "draw", lambda *figure: None)
    line = ["analyze", "small", "--parts", "features", "--out", str(tmp_path)]
    assert cli.main(line) == 0
    said = "no picture of the features of small: no layer has a map of the image.\n"
    assert (said in capsys.readouterr().out) == (not has)


def test_the_command_needs_a_run(capsys):
    assert cli.main(["analyze"]) == 2
    assert "analyze needs at least one run" in capsys.readouterr().err


def test_the_command_writes_beside_the_run(runs, monkeypatch, capsys):
    def analyze(given, settings, **options):
        return of_runs_analyze(given, settings, **{**options, **OBJECTS})

    of_runs_analyze = of_runs.analyze
    monkeypatch.setattr(of_runs, "analyze", analyze)
    line = ["analyze", str(runs[0]), "--parts", "sharpness", "errors"]
    assert cli.main([*line, "--images", "32"]) == 0
    shown = capsys.readouterr().out
    assert "worst rise" in shown
    assert "no picture" not in shown
    folder = runs[0] / "analysis"
    pictures_ = ["errors.png", "predictions.csv", "sharpness.png"]
    written = sorted(path.name for path in folder.iterdir())
    assert written == ["analysis.json", "analysis.npz", *pictures_]
    with (folder / "predictions.csv").open() as file:
        lines = list(csv.DictReader(file))
    logits, labels = answers(runs[0])
    assert [line["class"] for line in lines] == ["abcd"[i] for i in labels]
    assert [x["prediction"] for x in lines] == ["abcd"[i] for i in logits.argmax(1)]
