"""The README says what is true: its code runs, its commands and files exist."""

import dataclasses
import inspect
import json
import re
import typing
from pathlib import Path

import jax
import pytest

import zosam_jax as zs
from benchmarks import tables
from zosam_jax.runs.config import differences
from zosam_jax.train import PRESETS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def test_the_snippets_run_one_after_another():
    namespace: dict = {}
    snippets = blocks("python")
    assert len(snippets) == 8
    for snippet in snippets:
        exec(compile(snippet, "README.md", "exec"), namespace)
        if "def step" in snippet:
            # Sparse training left 90 % of the kernel at zero.
            live = int((namespace["params"]["kernel"] != 0).sum())
            assert live == 32 - round(0.9 * 32)
    params = namespace["params"]
    assert all(bool(jax.numpy.all(jax.numpy.isfinite(x))) for x in params.values())
    assert 0.5 < float(namespace["est"].info.cosine) <= 1


def test_ci_runs_the_command_for_the_tests():
    script = (ROOT / ".ci" / "run").read_text()
    command = next(b for b in blocks("sh") if "pytest" in b)
    for part in command.strip().split(" && "):
        words = part.replace("'", "").split()
        line = next(
            line
            for line in script.splitlines()
            if all(word in line.replace("'", "").split() for word in words)
        )
        extra = set(line.replace("'", "").split()) - set(words)
        assert extra <= {"--quiet", "--disable-pip-version-check"}


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#]+)\)", README))
def test_links_lead_somewhere(link):
    if not link.startswith("https://"):
        assert (ROOT / link).exists(), link


def test_the_commands_exist():
    from zosam_jax.cli import main as cli

    for block in blocks("sh"):
        for line in block.splitlines():
            words = line.partition("#")[0].split()
            trains = words[:2] in (["zosam", "train"], ["zosam", "lottery"])
            if trains and "--help" not in words:
                assert cli.main([*words[1:], "--print-config"]) == 0
            elif words[:1] == ["zosam"]:
                known = ("train", "report", "data", "presets", "evaluate")
                assert words[1] in known


RESULTS = ROOT / "benchmarks" / "results"


def test_the_tables_are_those_of_the_files():
    assert tables.insert(README) == README


def test_every_method_is_in_the_table():
    named = {constructor.partition("(")[0] for _, constructor, _ in tables.METHODS}
    family = {
        name.removesuffix("_gradient") for name in dir(zs) if name.endswith("_gradient")
    }
    assert family <= named
    assert all(callable(getattr(zs, name)) for name in named)


def test_every_sparse_method_is_in_its_table():
    text = README[README.index("## The sparse methods") :]
    text = text[: text.index("Budgets are")]
    methods = {
        name
        for name, value in vars(zs.sparsity).items()
        if inspect.isfunction(value)
        and typing.get_type_hints(value).get("return") is zs.sparsity.SparseMethod
    }
    assert len(methods) >= 13
    for name in methods:
        assert f"`{name}(" in text, name


def test_the_figures_of_the_throughput_are_the_measured_ones():
    targets = tables.load(tables.THROUGHPUT)["targets"]
    for name in targets:
        value = targets[name]
        assert f"{value:.3f}" in README or f"{value:.3%}" in README, name


def test_the_figures_of_the_alignment_are_the_measured_ones():
    found = tables.load(tables.ALIGNMENT)
    means = {row["rule"]: row["cosine_large"] for row in found["rules"]}
    text = README[README.index("The large-batch gradient is what") :]
    text = text[: text.index("Optimizers without any backward pass")]
    for rule in ("SAM", "guided, m=1", "ZO-SAM, m=1", "ZO-SAM, m=16", "S2-SAM"):
        assert f"{means[rule]:.3f}" in text
    guided = [r["cosine_large"] for r in found["points"] if r["rule"] == "guided, m=1"]
    assert f"({min(guided):.3f})" in text
    assert means["guided, m=1"] > 0.5 * means["SAM"]


def test_the_figures_of_the_grid_are_the_measured_ones():
    cells = {
        (c["method"], c["sparsity"], c["gradient"]): 100 * c["accuracy_mean"]
        for c in tables.load(tables.GRID)["cells"]
        if c["sparsity"]
    }
    gains = [
        cells[method, sparsity, "zosam"] - accuracy
        for (method, sparsity, gradient), accuracy in cells.items()
        if gradient == "sgd"
    ]
    text = " ".join(README.split())
    mean = sum(gains) / len(gains)
    assert f"over the {len(gains)} pairs" in text
    assert f"by {mean:.2f} points" in text
    assert f"from {min(gains):.1f} to {max(gains):.1f}," in text


def test_the_figures_of_the_changes_are_the_measured_ones():
    rows = tables.load(tables.SPARSITY)["rows"]
    reads = {(r["method"], r["size"]): r["reads"] for r in rows if "reads" in r}
    text = " ".join(README.split())
    selection = reads["selection", "25"]["select"]
    assert f"selection is {selection:.0f} reads at 25 M" in text
    assert f"masks, {reads['RigL', '25']['change']:.0f}. The goal" in text


@pytest.mark.parametrize("name", list(PRESETS))
def test_the_evidence_of_a_recipe_is_a_run_of_it(name):
    recipe = PRESETS[name]
    if recipe.evidence == "not run":
        return
    folder = ROOT / recipe.evidence
    stored = json.loads((folder / "config.json").read_text())["config"]
    config = json.loads(json.dumps(dataclasses.asdict(recipe.config)))
    # Fields come and go, and None stands for what was written out before.
    shared = {k for k in config if k in stored and config[k] is not None}
    old, new = ({k: x[k] for k in shared} for x in (stored, config))
    assert differences(old, new) == {}
    summary = json.loads((folder / "summary.json").read_text())
    assert f"{summary['test_accuracy']:.2%}".replace("%", " %") in README
    assert f"({recipe.evidence})" in README


def test_the_figures_of_the_corruptions_are_the_measured_ones():
    path = "benchmarks/results/imagenet-resnet50-quick/evaluation.json"
    found = json.loads((ROOT / path).read_text())
    clean, corrupted = found["clean"]["accuracy"], found["mean_corrupted_accuracy"]
    text = " ".join(README.split())
    assert f"on {found['images']:,} images falls" in text
    assert f"from {clean:.1%} to {corrupted:.1%}".replace("%", " %") in text
    assert f"({path})" in README


@pytest.mark.parametrize("run", ["digits", "digits-jax0.12", "cifar10-quick"])
def test_the_runs_shown_are_the_measured_ones(run):
    summary = json.loads((RESULTS / run / "summary.json").read_text())
    assert f"{summary['test_accuracy']:.2%}".replace("%", " %") in README
    assert f"(benchmarks/results/{run})" in README
    config = json.loads((RESULTS / run / "config.json").read_text())
    assert config["config"]["sparsity"] == 0.9
    assert config["sessions"][0]["commit"]
