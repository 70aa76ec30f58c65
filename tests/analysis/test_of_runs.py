"""`analyze` on runs that take seconds: its figures are those of the instruments."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run

from zosam_jax import analysis
from zosam_jax.analysis import of_runs, pictures
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
    assert pictures.drawable(found) == list(of_runs.PARTS)
    for part in pictures.drawable(found):
        pictures.draw(part, found, arrays, tmp_path / f"{part}.png")
        assert (tmp_path / f"{part}.png").read_bytes()[1:4] == b"PNG"


@pytest.mark.parametrize(
    ("options", "message"),
    [
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


def test_the_command_needs_a_run(capsys):
    assert cli.main(["analyze"]) == 2
    assert "analyze needs at least one run" in capsys.readouterr().err


def test_the_command_writes_beside_the_run(runs, monkeypatch, capsys):
    def analyze(given, settings, **options):
        return of_runs_analyze(given, settings, **{**options, **OBJECTS})

    of_runs_analyze = of_runs.analyze
    monkeypatch.setattr(of_runs, "analyze", analyze)
    line = ["analyze", str(runs[0]), "--parts", "sharpness", "--images", "32"]
    assert cli.main(line) == 0
    shown = capsys.readouterr().out
    assert "worst rise" in shown
    written = sorted(path.name for path in (runs[0] / "analysis").iterdir())
    assert written == ["analysis.json", "analysis.npz", "sharpness.png"]
