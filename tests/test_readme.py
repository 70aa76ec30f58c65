"""The pages are true: their code runs, their commands, links and files exist."""

import dataclasses
import inspect
import json
import re
import runpy
import shlex
import shutil
import statistics
import subprocess
import sys
import types
import typing
from pathlib import Path

import jax
import pytest

import zosam_jax as zs
from benchmarks import sparse_table, study_report, tables
from zosam_jax.runs import intervals
from zosam_jax.runs.config import differences
from zosam_jax.runs.presets import PRESETS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
MEASUREMENTS = (ROOT / "benchmarks" / "README.md").read_text()
PAGES = [
    ROOT / "README.md",
    ROOT / "benchmarks" / "README.md",
    ROOT / "examples" / "README.md",
    ROOT / ".github" / "CONTRIBUTING.md",
    *sorted((ROOT / "examples" / "docs").rglob("*.md")),
]
NAMES = [str(path.relative_to(ROOT)) for path in PAGES]


def blocks(text: str, language: str) -> list[str]:
    pattern = rf"^ *```{language}\n(.*?)^ *```"
    return re.findall(pattern, text, re.DOTALL | re.MULTILINE)


def test_the_front_page_is_short():
    assert len(README.splitlines()) <= 200


def test_the_loop_of_the_front_page_trains_a_sparse_network():
    namespace: dict = {}
    (snippet,) = blocks(README, "python")
    exec(compile(snippet, "README.md", "exec"), namespace)
    # Sparse training left 90 % of the kernel at zero.
    params = namespace["params"]
    assert int((params["kernel"] != 0).sum()) == 32 - round(0.9 * 32)
    assert all(bool(jax.numpy.all(jax.numpy.isfinite(x))) for x in params.values())


@pytest.mark.parametrize("page", NAMES)
def test_the_snippets_of_a_page_run_one_after_another(
    page, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)  # for the files that they write
    snippets = blocks((ROOT / page).read_text(), "python")
    namespace: dict = {"__name__": page}
    for snippet in snippets:
        exec(compile(snippet, page, "exec"), namespace)
    shown = capsys.readouterr().out.splitlines()
    for said in re.findall(r"# prints (.*)$", "\n".join(snippets), re.MULTILINE):
        assert said in shown


def test_ci_runs_the_command_for_the_tests():
    script = (ROOT / ".ci" / "run").read_text()
    command = next(b for b in blocks(README, "sh") if "pytest" in b)
    for part in command.strip().split(" && "):
        words = part.replace("'", "").split()
        line = next(
            line
            for line in script.splitlines()
            if all(word in line.replace("'", "").split() for word in words)
        )
        extra = set(line.replace("'", "").split()) - set(words)
        assert extra <= {"--quiet", "--disable-pip-version-check"}


def anchors(text: str) -> set[str]:
    """The names that GitHub gives to the headings of a page."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    names = (re.sub(r"[^\w\- ]", "", h.lower()) for h in headings)
    return {name.replace(" ", "-") for name in names}


@pytest.mark.parametrize("page", NAMES)
def test_links_lead_somewhere(page):
    path = ROOT / page
    text = re.sub(r"`[^`\n]*`", "", path.read_text())
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith("https://"):
            continue
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text()), link


@pytest.mark.parametrize("page", NAMES)
def test_the_commands_exist(page, tmp_path, monkeypatch):
    from zosam_jax.cli import main as cli

    # What the commands go on with.
    stored = ROOT / "benchmarks" / "results" / "digits" / "config.json"
    (tmp_path / "runs" / "photos").mkdir(parents=True)
    for name in ("runs/photos/config.json", "mine.json"):
        shutil.copy(stored, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    text = (ROOT / page).read_text()
    # Modules that the commands import.
    for name, code in re.findall(
        r"`(\w+\.py)`:\n\n```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE
    ):
        (tmp_path / name).write_text(code)
    for block in blocks(text, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(re.split("[#>]", line)[0])
            if words[:1] != ["zosam"]:
                continue
            if words[1] in ("train", "lottery") and "--help" not in words:
                said = [word for word in words[1:] if word != "--dry-run"]
                assert cli.main([*said, "--print-config"]) == 0
            else:
                with pytest.raises(SystemExit) as stop:
                    cli.main([words[1], "--help"])
                assert stop.value.code == 0


RESULTS = ROOT / "benchmarks" / "results"


@pytest.mark.parametrize("page", list(tables.PAGES))
def test_the_tables_are_those_of_the_files(page):
    text = (ROOT / page).read_text()
    is_current = tables.insert(text, tables.PAGES[page]) == text
    assert is_current, f"{page}: write it anew with `python -m benchmarks.tables`"
    assert not re.search(r"[0-9]e\+[0-9]", text), f"{page}: a power of ten in a table"


def test_the_commands_of_the_results_can_be_typed_anywhere():
    files = [f.read_text() for f in RESULTS.rglob("*.json*")]
    commands = [c for text in files for c in re.findall(r'"command": "([^"]*)"', text)]
    assert len(commands) > 50
    for command in commands:
        assert not re.search(r"(^|[\s=])/", command), command


def test_a_gradient_without_a_measurement_is_not_run():
    throughput = [tables.load(tables.THROUGHPUT)]
    new = tables.GRADIENT_METHODS["sam"]._replace(label="NEW-SAM", when="Never.")
    *lines, last = tables.gradient_rows(
        throughput, {**tables.GRADIENT_METHODS, "newsam": new}
    )
    assert lines == tables.gradient_rows(throughput)
    assert last == ["NEW-SAM", "`newsam`", *["not run"] * 3, "Never."]


def test_every_gradient_is_in_the_table():
    named = {line[1].strip("`") for line in tables.gradient_choice()}
    family = {
        name.removesuffix("_gradient") for name in dir(zs) if name.endswith("_gradient")
    }
    assert family <= named


def test_every_sparse_method_is_on_the_page_of_choice():
    text = (ROOT / "examples" / "docs" / "choose_a_sparse_method.md").read_text()
    methods = {
        name
        for name, value in vars(zs.sparsity).items()
        if inspect.isfunction(value)
        and typing.get_type_hints(value).get("return") is zs.sparsity.SparseMethod
    }
    assert len(methods) >= 13
    for name in methods:
        assert f"`{name}`" in text, name


def test_the_figures_of_slopes_and_norms_are_the_measured_ones():
    text = " ".join(MEASUREMENTS.split())
    rows = tables.load(tables.GUIDED)["rules"]
    rows += tables.load(tables.GUIDED_SLOPES)["rules"]
    slopes = {(row["rule"], row["learning_rate"]): row for row in rows}
    old, new, half = (
        [slopes[rule, rate] for rate in (0.1, 0.3)]
        for rule in (
            "guided, m=1, last slopes, no exploration",
            "guided, m=1, aged slopes",
            "guided, slopes of two halves",
        )
    )
    for before, after in zip(old, new, strict=True):
        assert f"from {before['cosine']:.3f} to {after['cosine']:.3f}" in text
        assert before["cosine"] < after["cosine"]
        shares = (100 * row["downhill"] for row in (before, after))
        assert "from {:.1f} to {:.1f} %".format(*shares) in text
    assert "cosine is {:.3f} and {:.3f}".format(*(r["cosine"] for r in half)) in text
    norms = {row["rule"]: row["gain"] for row in tables.load(tables.NORMS)["rules"]}
    for gain in (norms[rule] for rule in norms if rule != "SGD"):
        assert f"{100 * gain['mean']:.1f} ± {100 * gain['half_width']:.1f}" in text


def test_the_figures_of_segmentation_are_the_measured_ones():
    text = (ROOT / "examples" / "docs" / "your_own_data.md").read_text()
    found = tables.load(tables.SEGMENTATION)
    rows = {row["method"]: row for row in found["summary"]}
    assert all(row["seeds"] == 3 for row in rows.values())
    cost = 100 * (rows["SGD"]["mean_iou"] - rows["SAM"]["mean_iou"])
    assert f"SAM costs {cost:.1f} points" in text
    own = rows["ZO-SAM"]
    assert abs(own["mean_iou"] - rows["SGD"]["mean_iou"]) < own["mean_iou_std"]
    gaps = [row["train_mean_iou"] - row["mean_iou"] for row in found["rows"]]
    assert max(gaps) < 0.03
    # The command of the page has the settings of the file.
    options = {
        name: found["settings"][name]
        for name in ("width", "sparsity", "update_interval", "batch_size", "epochs")
    }
    words = [f"--{k.replace('_', '-')} {v:g}" for k, v in options.items()]
    assert f"zosam train --dataset shapes {' '.join(words)} --out" in text


def test_the_figures_of_aesam_are_the_measured_ones():
    found = json.loads((tables.RESULTS / "aesam-digits.json").read_text())
    first, second, last = found["by_third"]
    text = " ".join(MEASUREMENTS.split())
    assert (
        f"p was {found['sam_steps']:.2f}: {first:.2f} in the first third, "
        f"{second:.2f} in the second and {last:.2f} in the last" in text
    )


def test_the_figures_of_the_throughput_are_the_measured_ones():
    targets = tables.load(tables.THROUGHPUT)["targets"]
    for name in targets:
        value = targets[name]
        assert f"{value:.3f}" in MEASUREMENTS or f"{value:.3%}" in MEASUREMENTS, name


def test_the_prices_of_a_part_of_the_batch_are_the_measured_ones():
    shares = {
        row["step"]: row["share_of_sgd"]
        for row in tables.load(tables.ASCENT_PART)["steps"]
    }
    text = MEASUREMENTS[MEASUREMENTS.index("- **A sixteenth of the batch costs") :]
    text = " ".join(text[: text.index("## Sparse methods")].split())
    part, eighth, quarter, whole, s2sam, plain, guided, disjoint = (
        f"{1 / shares[name]:.2f}"
        for name in (
            *("SAM, 1/16 of the batch", "SAM, 1/8 of the batch"),
            *("SAM, 1/4 of the batch", "SAM", "S2-SAM", "AE-SAM, plain step"),
            *("guided ZO-SAM", "guided ZO-SAM, disjoint"),
        )
    )
    assert (
        f"the step took {part} of SGD's time, an eighth took {eighth}, a quarter "
        f"{quarter}, and the whole batch {whole}." in text
    )
    assert f"at {s2sam}, and AE-SAM's plain step at {plain}:" in text
    assert f"takes {guided} of SGD's time, and {disjoint} with slopes" in text


def test_the_figures_of_the_alignment_are_the_measured_ones():
    found = tables.load(tables.ALIGNMENT)
    means = {row["rule"]: row["cosine_large"] for row in found["rules"]}
    text = MEASUREMENTS[MEASUREMENTS.index("SAM perturbs along the batch") :]
    text = text[: text.index("## Sparse methods")]
    for rule in ("SAM", "guided, m=1", "ZO-SAM, m=1", "ZO-SAM, m=16", "S2-SAM"):
        assert f"{means[rule]:.3f}" in text
    for rule in ("SAM, 1/16 of the batch", "no probe, mean of gradients"):
        assert f"{means[rule]:.3f}" in text
    guided = [r["cosine_large"] for r in found["points"] if r["rule"] == "guided, m=1"]
    assert f"ten cosines is {min(guided):.3f}" in " ".join(text.split())
    assert len(guided) == 10
    assert means["guided, m=1"] > 0.5 * means["SAM"]
    # What the page says of the cheaper probes.
    assert means["guided, m=1, every 5"] >= means["guided, m=1"]
    assert means["guided, m=1, bfloat16"] > 0.99 * means["guided, m=1"]
    assert 0.75 < means["guided, m=1, quarter batch"] / means["guided, m=1"] < 0.85
    assert abs(means["MSAM"]) < 0.05


def test_the_figures_of_the_guided_directions_are_the_measured_ones():
    found = {
        (row["rule"], row["learning_rate"]): row
        for row in tables.load(tables.GUIDED)["rules"]
    }
    text = MEASUREMENTS[MEASUREMENTS.index("**Exploration does not help") :]
    text = " ".join(text[: text.index("## Sparse methods")].split())
    guided = "guided, m=1, last slopes"
    old, new = found[guided, 0.1], found[f"{guided}, no exploration", 0.1]
    mean = found["guided, m=1, mean slopes, no exploration", 0.1]
    assert f"from {old['cosine']:.3f} to {new['cosine']:.3f}" in text
    assert f"from {new['cosine']:.3f} to {mean['cosine']:.3f}" in text
    shares = f"{100 * new['downhill']:.1f} to {100 * mean['downhill']:.1f} %"
    assert f"from {shares}" in text
    for rule in ("mean of gradients, 0.9", "last gradient (S2-SAM)"):
        low, high = (
            100 * found[f"no probe: {rule}", r]["downhill"] for r in (0.1, 0.3)
        )
        assert f"{low:.0f} to {high:.0f} %" in text
    low, high = sorted(
        found[f"{guided}, no exploration", r]["downhill"] for r in (0.1, 0.3)
    )
    assert f"{100 * low:.0f} to {100 * high:.0f} %" in text
    assert (
        max(row["downhill"] for (n, _), row in found.items() if "m=2, last" in n)
        < 0.001
    )


@pytest.mark.parametrize("page", ["README.md", "benchmarks/README.md"])
def test_the_figures_of_the_grid_are_the_measured_ones(page):
    rows = tables.load(tables.GRID)["cells"]
    gains = sparse_table.mean_gains(rows, 0.9)
    text = " ".join((ROOT / page).read_text().split())
    sam, part, zosam, control = (
        f"{100 * gains[name]:.1f}" for name in sparse_table.GRADIENTS[1:]
    )
    whole = [
        accuracies
        for method in dict.fromkeys(row["method"] for row in rows)
        if method != "dense"
        and set(accuracies := sparse_table.accuracies(rows, method, 0.9)) > {"SGD"}
    ]
    assert f"over {len(whole)} " in text
    for figure in (sam, part, zosam, control):
        assert re.search(rf"\b{re.escape(figure)}[ ,;.)]", text), figure
    if page != "README.md":
        found = intervals.interval(
            [
                statistics.fmean(each["ZO-SAM"])
                - statistics.fmean(each[sparse_table.GRADIENTS[-1]])
                for each in whole
            ]
        )
        assert f"{100 * found.mean:.1f} ± {100 * found.half_width:.1f} points" in text


def test_the_figures_of_flatness_are_the_measured_ones():
    """Each pair is of 40 % and of 20 % wrong labels."""
    found = []
    for problem in ("digits-noise40", "digits-noise20"):
        rows = tables.load(f"study/{problem}/{study_report.FLATNESS}")["rows"]
        means: dict[tuple[str, str], float] = {}
        for field in study_report.FIGURES:
            for name in {row["method"] for row in rows}:
                own = [row[field] for row in rows if row["method"] == name]
                means[name, field] = statistics.fmean(own)
        found.append(means)
    text = MEASUREMENTS[MEASUREMENTS.index("- **What gains is flat.**") :]
    text = " ".join(text[: text.index("The other problems")].split())

    def pair(name: str, word: str = " and ") -> str:
        return word.join(f"{means[name, 'eigenvalue']:.1f}" for means in found)

    assert f"falls from SGD's {pair('SGD')} to {pair('SAM')} with SAM" in text
    assert f"to {pair('SAM, 1/16 of the batch')} with SAM on a sixteenth" in text
    assert f"to {pair('guided ZO-SAM')} with guided directions" in text
    assert (
        f"ZO-SAM has {pair('ZO-SAM')}, its control {pair('random, random sign')}."
        in (text)
    )
    early = [
        f"{m['SGD, 1/4 of the epochs', 'eigenvalue'] / m['SAM', 'eigenvalue']:.1f}"
        for m in found
    ]
    assert f"at {' and '.join(early)} times the curvature" in text
    assert f"are right on {100 * found[0]['S2-SAM', 'accuracy']:.1f} %" in text

    def lost(*names: str) -> str:
        losses = [
            100 * (means[name, "accuracy"] - means[name, "corrupted"])
            for means in found
            for name in names
        ]
        return f"{min(losses):.0f} to {max(losses):.0f}"

    assert f"lose {lost('SAM', 'SAM, 1/16 of the batch')} points" in text
    assert f"SGD {lost('SGD')}, ZO-SAM {lost('ZO-SAM')}." in text


def test_the_figures_of_the_study_are_the_measured_ones():
    text = README[README.index("- **At equal time.**") :]
    text = " ".join(text[: text.index("- **Cost.**")].split())
    gains, shares = [], []
    without_gain = {
        "tinylm": "language model",
        "cifar-vit": "small ViT",
        "cifar-sparse90": "narrow ResNet with 90 % or 98 % zeros",
        "cifar-sparse98": "narrow ResNet with 90 % or 98 % zeros",
    }
    for problem, rows in study_report.results(tables.RESULTS / "study").items():
        gain = {
            row["method"]: row["gain"]["mean"]
            for row in rows
            if row["stage"] == "epochs"
        }
        sam = next(row for row in rows if row["method"] == "SAM")["gain"]
        if sam["mean"] < sam["half_width"]:
            does = f"loses {-100 * sam['mean']:.1f} points"
            if -sam["mean"] < sam["half_width"]:
                does = "nothing"
            assert f"{does} on a {without_gain[problem]}" in text
            continue
        gains.append(100 * gain["SAM"])
        shares.append(gain["SAM, 1/16 of the batch"] / gain["SAM"])
    assert len(gains) == 4
    assert f"gains {min(gains):.1f} to {max(gains):.1f} points" in text
    assert f"at least {100 * min(shares):.0f} % of that" in text
    row = next(
        row
        for row in tables.load(tables.ASCENT_PART)["steps"]
        if row["step"] == "SAM, 1/16 of the batch"
    )
    assert f"took {1 / row['share_of_sgd']:.2f} of the time" in text


def test_the_figures_of_the_front_page_are_the_measured_ones():
    means = {
        row["rule"]: row["cosine_large"]
        for row in tables.load(tables.ALIGNMENT)["rules"]
    }
    shares = {
        row["step"]: row["share_of_sgd"]
        for row in tables.load(tables.THROUGHPUT)["steps"]
    }
    text = README[README.index("## Does ZO-SAM help") :]
    text = " ".join(text[: text.index("## How to choose")].split())
    assert f"a cosine of {means['ZO-SAM, m=1']:.3f}" in text
    assert f"reach {means['guided, m=1']:.3f}" in text
    assert f"reaches {means['SAM']:.3f}" in text
    assert f"{shares['ZO-SAM']:.2f} of SGD's throughput" in text
    assert f"SAM at {shares['SAM']:.2f}" in text


def test_the_figures_of_the_topology_updates_are_the_measured_ones():
    rows = tables.load(tables.SPARSITY)["rows"]
    reads = {(r["method"], r["size"]): r["reads"] for r in rows if "reads" in r}
    text = " ".join(MEASUREMENTS.split())
    selection, change = reads["selection", "25"]["select"], reads["RigL", "25"]
    assert f"a selection costs {selection:.0f} reads" in text
    assert f"with two selections, costs {change['change']:.0f}." in text
    selection, change = reads["selection", "100-one"], reads["RigL", "100-one"]
    assert f"cost {selection['select']:.0f} and {change['change']:.0f}." in text
    changes = [r["change"] for r in reads.values() if "change" in r]
    assert min(changes) > 3  # "No method meets this aim."


@pytest.mark.parametrize("name", list(PRESETS))
def test_the_evidence_of_a_preset_is_a_run_of_it(name):
    preset = PRESETS[name]
    if preset.evidence == "not run":
        return
    folder = ROOT / preset.evidence
    stored = json.loads((folder / "config.json").read_text())["config"]
    config = json.loads(json.dumps(dataclasses.asdict(preset.config)))
    # Fields come and go, and None stands for what was written out before.
    shared = {k for k in config if k in stored and config[k] is not None}
    old, new = ({k: x[k] for k in shared} for x in (stored, config))
    assert differences(old, new) == {}
    summary = json.loads((folder / "summary.json").read_text())
    assert f"{summary['test_accuracy']:.2%}".replace("%", " %") in MEASUREMENTS
    assert f"({folder.relative_to(ROOT / 'benchmarks')})" in MEASUREMENTS


def test_the_figures_of_the_corruptions_are_the_measured_ones():
    path = "results/imagenet-resnet50-quick/evaluation.json"
    found = json.loads((ROOT / "benchmarks" / path).read_text())
    clean, corrupted = found["clean"]["accuracy"], found["mean_corrupted_accuracy"]
    text = " ".join(MEASUREMENTS.split())
    assert f"on {found['images']:,} images falls" in text
    assert f"from {clean:.1%} on clean images".replace("%", " %") in text
    assert f"to {corrupted:.1%} on average".replace("%", " %") in text
    assert f"over the {len(found['corruptions'])} corruptions" in text
    assert f"({path})" in text


@pytest.mark.parametrize("run", ["digits", "digits-jax0.12", "cifar10-quick"])
def test_the_runs_shown_are_the_measured_ones(run):
    summary = json.loads((RESULTS / run / "summary.json").read_text())
    assert f"{summary['test_accuracy']:.2%}".replace("%", " %") in MEASUREMENTS
    assert f"(results/{run})" in MEASUREMENTS
    config = json.loads((RESULTS / run / "config.json").read_text())
    assert config["config"]["sparsity"] == 0.9
    assert config["sessions"][0]["commit"]


def test_the_run_of_the_front_page_is_the_measured_one():
    summary = json.loads((RESULTS / "digits" / "summary.json").read_text())
    text = " ".join(README.split())
    assert f"accuracy is {summary['test_accuracy']:.2%}".replace("%", " %") in text
    live, total = summary["parameters_live"], summary["parameters"]
    assert f"{live:,} of {total:,} weights live" in text
    assert f"after {summary['seconds']:.0f} s of training" in text
    assert f"{summary['compile_seconds']:.0f} s of compilation" in text


def test_links_are_absolute_on_the_package_index(monkeypatch):
    interface = types.ModuleType("hatchling.metadata.plugin.interface")
    vars(interface)["MetadataHookInterface"] = object
    monkeypatch.setitem(sys.modules, interface.__name__, interface)
    hook = runpy.run_path(str(ROOT / ".github" / "pypi_readme.py"))
    text = hook["absolute"](README)
    found = re.findall(r"\]\(([^)\s]+)\)", text)
    assert len(found) == len(re.findall(r"\]\(([^)\s]+)\)", README))
    for link in found:
        assert link.startswith(("https://", "#")), link
        if "/zosam_jax/main/" in link or "/blob/main/" in link:
            path = re.split("/main/", link)[1].partition("#")[0]
            assert (ROOT / path).exists(), link
    (picture,) = re.findall(r"!\[Accuracy[^\]]*\]\(([^)]+)\)", text)
    assert picture.startswith("https://raw.githubusercontent.com/")


def test_the_site_builds(tmp_path):
    """Read and resolved; `.github/workflows/ci.yml` writes its pages too."""
    pytest.importorskip("sphinx")
    pytest.importorskip("myst_nb")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going"]
    result = subprocess.run(
        [*command, "-b", "dummy", ROOT / "examples" / "docs", tmp_path / "site"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
