"""The README says what is true: its code runs, its commands and files exist."""

import json
import re
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def test_the_snippets_run_one_after_another():
    namespace: dict = {}
    snippets = blocks("python")
    assert len(snippets) == 5
    for snippet in snippets:
        exec(compile(snippet, "README.md", "exec"), namespace)
    params = namespace["params"]
    assert all(bool(jax.numpy.all(jax.numpy.isfinite(x))) for x in params.values())
    # The step of the last training snippet left 90 % of the kernel at zero.
    assert int((params["kernel"] != 0).sum()) == 32 - round(0.9 * 32)


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
    from zosam_jax import cli

    for block in blocks("sh"):
        for line in block.splitlines():
            words = line.partition("#")[0].split()
            if words[:2] == ["zosam", "train"] and "--help" not in words:
                assert cli.main([*words[1:], "--print-config"]) == 0
            elif words[:1] == ["zosam"]:
                assert words[1] in ("train", "report", "data")


RESULTS = ROOT / "benchmarks" / "results"


def test_the_throughput_table_is_the_measured_one():
    result = json.loads((RESULTS / "throughput-resnet32-cpu.json").read_text())
    for row in result["steps"]:
        line = (
            f"| {row['step']} | {row['images_per_second']:.0f} "
            f"| {row['share_of_sgd']:.2f} | {row['flops_of_sgd']:.2f} "
            f"| {row['compile_seconds']:.1f} | {row['peak_mib']:.0f} |"
        )
        assert line in README
    targets = result["targets"]
    for name in targets:
        value = targets[name]
        assert f"{value:.3f}" in README or f"{value:.3%}" in README, name


@pytest.mark.parametrize("run", ["digits", "digits-jax0.12", "cifar10-quick"])
def test_the_runs_shown_are_the_measured_ones(run):
    summary = json.loads((RESULTS / run / "summary.json").read_text())
    assert f"{summary['test_accuracy']:.2%}".replace("%", " %") in README
    assert f"(benchmarks/results/{run})" in README
    config = json.loads((RESULTS / run / "config.json").read_text())
    assert config["config"]["sparsity"] == 0.9
    assert config["sessions"][0]["commit"]
