"""The tables, the files and the page of `zosam report`."""

import csv
import html.parser
import io
import json
import shutil
import subprocess
from pathlib import Path

import pytest
from rich.console import Console
from test_comparison import make_run

from zosam_jax.cli import group_tables, main, pictures, report_files
from zosam_jax.cli import report as report_command
from zosam_jax.runs import groups, record

ACCURACIES = {
    ("backprop", 0): 0.90,
    ("backprop", 1): 0.91,
    ("backprop", 2): 0.89,
    ("<i>&", 0): 0.93,
    ("<i>&", 1): 0.92,
    ("<i>&", 2): 0.94,
}


def make_grid(path):
    """Runs of two gradients and three seeds with test accuracies of their own."""
    folders = []
    for (gradient, seed), accuracy in ACCURACIES.items():
        name = f"run{len(folders)}"
        folder = make_run(path / name, gradient=gradient, seed=seed)
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        last = json.loads(lines[-1]) | {"accuracy": accuracy}
        lines = [*lines[:-1], json.dumps(last)]
        (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
        summary = json.loads((folder / "summary.json").read_text())
        summary |= {"test_accuracy": accuracy, "layers": {"conv": 0.1 + seed / 100}}
        (folder / "summary.json").write_text(json.dumps(summary))
        evaluation = {
            "step": summary["steps"],
            "clean": {"accuracy": accuracy, "loss": 0.3, "ece": 0.02},
            "mean_corrupted_accuracy": accuracy - 0.2,
            "mean_corrupted_ece": 0.05,
        }
        (folder / "evaluation.json").write_text(json.dumps(evaluation))
        folders.append(folder)
    return folders


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    return make_grid(tmp_path_factory.mktemp("grid"))


@pytest.fixture(scope="module")
def report(grid):
    """The folder of the files of a report, written by the command."""
    out = grid[0].parent / "report"
    options = ["--baseline", "gradient=backprop", "--target", "0.92"]
    assert main.main(["report", *map(str, grid), "--out", str(out), *options]) == 0
    return out


def compare(folders, **options):
    runs = record.read_all(folders)
    found = group_tables.compare(groups.group(runs), **options)
    return runs, found


def test_the_table_has_means_intervals_and_paired_differences(grid):
    _, found = compare(grid, baseline=["gradient=backprop"], target=0.92)
    shown = {c.header: c.cells for c in group_tables.columns(found)}
    first = [
        "runs that differ in seed alone",
        "n",
        "test accuracy, %",
        "95 % interval",
        "difference to the baseline",
        "p",
        "baseline",
    ]
    assert list(shown)[:7] == first
    assert [shown[name][1] for name in first] == [
        "gradient=<i>&",
        "3",
        "93.00 ± 1.00",
        "90.52 to 95.48",
        # scipy.stats.ttest_rel([.93, .92, .94], [.90, .91, .89])
        "+3.00 ± 4.97",
        "0.122",
        "gradient=backprop",
    ]
    assert shown["difference to the baseline"][0] == "-"
    assert shown["corrupted accuracy, %"] == ["70.00 ± 1.00", "73.00 ± 1.00"]
    assert shown["calibration error, %"] == ["2.00 ± 0.00"] * 2
    assert shown["epochs to 92 %"] == ["-", "3.0 ± 0.0"]
    assert shown["seconds to 92 %"] == ["-", "183.0 ± 0.0"]
    _, found = compare(grid, target=0.93)
    shown = {c.header: c.cells for c in group_tables.columns(found)}
    assert shown["epochs to 93 %"] == ["-", "3.0 ± 0.0 (n=2)"]


@pytest.mark.parametrize("width", [60, 90, 200])
def test_the_terminal_shows_as_many_columns_as_fit(grid, width):
    """Those that are asked for come before the others, in the order of the files."""
    _, found = compare(grid, baseline=["gradient=backprop"], target=0.92)
    console = Console(file=io.StringIO(), width=width)
    console.print(group_tables.terminal_table(found, width))
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert "93.00 ± 1.00" in text
    assert "+3.00 ± 4.97" in text
    assert ("183.0 ± 0.0" in text) == (width > 60)
    assert ("90.52 to 95.48" in text) == (width == 200)
    if width == 200:
        headers = [column.header for column in group_tables.columns(found)]
        assert headers[3] == "95 % interval"
        assert text.index("95 % interval") < text.index("+3.00")


@pytest.mark.parametrize("width", [40, 60, 80, 100])
def test_a_narrow_terminal_breaks_no_word_of_the_groups(grid, width):
    runs = record.read_all(grid)
    for run in runs:
        run.config["sparsity"] = 0.9 if run.config["seed"] else 0.98
    found = group_tables.compare(groups.group(runs), target=0.92)
    console = Console(file=io.StringIO(), width=width)
    console.print(group_tables.terminal_table(found, width))
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    words = {word for line in lines for word in line.split()}
    for column in group_tables.columns(found)[:3]:
        assert set(column.header.split()) <= words
        for cell in column.cells:
            assert set(cell.split()) <= words
    assert ("groups.md" in words) == (width < 200)


def test_the_tables_in_files_have_the_same_figures(grid, report):
    files = ("curves.png", "groups.csv", "groups.md", "groups.tex", "report.html")
    assert {*files, "report.json"} == {path.name for path in report.iterdir()}
    rows = list(csv.DictReader(io.StringIO((report / "groups.csv").read_text())))
    chosen = [row for row in rows if row["figure"] == "test_accuracy"]
    assert [float(row["mean"]) for row in chosen] == pytest.approx([0.9, 0.93])
    assert float(chosen[1]["difference"]) == pytest.approx(0.03)
    assert [row["gradient"] for row in chosen] == ["backprop", "<i>&"]
    markdown = (report / "groups.md").read_text().splitlines()
    assert r"gradient=\<i\>&" in markdown[3]
    assert len({line.replace("\\|", "").count("|") for line in markdown[:4]}) == 1
    latex = (report / "groups.tex").read_text()
    assert r"gradient=$<$i$>$\& & 3 & 93.00 $\pm$ 1.00 &" in latex
    first, second = json.loads((report / "report.json").read_text())["groups"]
    assert second["values"]["test_accuracy"] == {"0": 0.93, "1": 0.92, "2": 0.94}
    assert first["layers"] == pytest.approx({"conv": 0.11})
    p_value = second["statistics"]["test_accuracy"]["p_value"]
    assert p_value == pytest.approx(0.12169, 1e-4)


class Reader(html.parser.HTMLParser):
    """The tables of a page by id, as rows of texts, and the text of its data."""

    def __init__(self):
        super().__init__()
        self.tables, self.data, self.links = {}, "", []
        self.text = None
        self.in_data = False

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.links += [attrs[name] for name in ("src", "href") if name in attrs]
        if tag == "table":
            self.rows = self.tables[attrs["id"]] = []
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.text = ""
        self.in_data = attrs.get("id") == "data"

    def handle_data(self, data):
        if self.in_data:
            self.data += data
        if self.text is not None:
            self.text += data

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.rows[-1].append(self.text)
            self.text = None
        self.in_data = False


def test_the_figures_of_the_page_are_those_of_the_files(grid, report):
    reader = Reader()
    reader.feed((report / "report.html").read_text())
    assert json.loads(reader.data) == json.loads((report / "report.json").read_text())
    assert all(link.startswith("data:") for link in reader.links)
    header, *rows = reader.tables["runs"]
    assert len(rows) == len(grid)
    for folder, row in zip(grid, rows, strict=True):
        summary = json.loads((folder / "summary.json").read_text())
        shown = dict(zip(header, row, strict=True))
        assert shown["run"] == folder.name
        assert shown["test accuracy"] == f"{summary['test_accuracy']:.2%}"
        assert shown["sparsity"] == f"{summary['sparsity']:.2%}"
        assert shown["live parameters"] == f"{summary['parameters_live']:,d}"
    _, found = compare(grid, baseline=["gradient=backprop"], target=0.92)
    made = group_tables.columns(found)
    header, *rows = reader.tables["groups"]
    assert header == [column.header for column in made]
    assert rows == [list(row) for row in zip(*(c.cells for c in made), strict=True)]
    assert reader.tables["layers"][1] == ["conv", "11.00", "11.00"]
    header, first, *_ = reader.tables["differences"]
    assert header == ["run", "gradient", "seed"]
    assert first == ["run0", "backprop", "0"]


def test_the_page_goes_where_it_is_asked(grid, tmp_path):
    runs, found = compare(grid)
    path = tmp_path / "new" / "page.html"
    lines = report_files.write(runs, found, tmp_path / "out", path)
    assert lines[-1] == str(path)
    assert path.read_text().startswith("<!doctype html>")
    assert not (tmp_path / "out" / "report.html").exists()


def test_a_group_is_a_line_in_a_band_and_what_changes_has_a_panel(
    grid, tmp_path, monkeypatch
):
    runs = record.read_all(grid)
    for run in runs:
        for line in run.metrics:
            line |= {"perturbation_cosine": line["epoch"] / 4, "learning_rate": 0.1}
            # A constant, as float32 measures it.
            line |= {"perturbation_norm": 0.05 + 1e-8 * line["epoch"]}
    figures = []
    monkeypatch.setattr(pictures, "_save", lambda figure, path: figures.append(figure))
    pictures.curves(runs, tmp_path / "curves.png")
    axes = figures[0].axes
    titles = [axis.get_title() for axis in axes]
    assert titles[4:] == ["cosine of perturbation and gradient"]
    assert [len(axis.lines) for axis in axes] == [2] * 5
    assert axes[0].lines[1].get_ydata()[-1] == pytest.approx(0.93)
    assert len(axes[0].collections) == 2
    names = [text.get_text() for text in figures[0].legends[0].get_texts()]
    assert names == ["gradient=backprop (3 seeds)", "gradient=<i>& (3 seeds)"]


def test_evaluations_of_other_weights_are_left_out(tmp_path):
    path = make_grid(tmp_path)[0]
    found = json.loads((path / "evaluation.json").read_text())
    (path / "evaluation.json").write_text(json.dumps(found | {"step": 1}))
    assert record.read(path).evaluation is None
    (path / "evaluation.json").write_text(json.dumps(found | {"clean": {}}))
    with pytest.raises(record.RunError, match="in 'clean', it has no 'accuracy'"):
        record.read(path)


CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_chromium_sorts_and_searches_the_page(report, tmp_path):
    """The page of the report with a script that acts as a reader does."""
    text = (report / "report.html").read_text()
    script = """<script>
    const out = [];
    addEventListener("error", event => out.push("error: " + event.message));
    const table = document.getElementById("runs");
    const column = () => [...table.tBodies[0].rows].filter(row => !row.hidden)
      .map(row => row.cells[7].textContent);
    const head = table.tHead.rows[0].cells[7].firstElementChild;
    head.click(); out.push(column().join(" "));
    head.click(); out.push(column().join(" "));
    const search = document.getElementById("search");
    search.value = "BACKPROP 91.00%";
    search.dispatchEvent(new Event("input")); out.push(column().join(" "));
    out.push(document.documentElement.scrollWidth <= innerWidth ? "fits" : "too wide");
    document.title = "said:" + out.join("|");
    </script></body>"""
    path = tmp_path / "page.html"
    path.write_text(text.replace("</body>", script))
    words = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu"]
    words += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=500,900"]
    done = subprocess.run(
        [*words, "--enable-logging=stderr", "--dump-dom", path.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    said = done.stdout.split("<title>said:")[1].split("</title>")[0]
    rising = "89.00% 90.00% 91.00% 92.00% 93.00% 94.00%"
    falling = " ".join(rising.split()[::-1])
    assert said == f"{rising}|{falling}|91.00%|fits"
    assert "CONSOLE" not in done.stderr


def test_watching_shows_what_is_new_and_ends_with_the_runs(
    tmp_path, monkeypatch, capsys
):
    done = make_run(tmp_path / "done", seed=0)
    young = make_run(tmp_path / "young", seed=1, epochs=2, finished=False)
    whole = make_run(tmp_path / "later" / "young", seed=1)
    naps = []

    def nap(seconds):
        naps.append(seconds)
        # Nothing is new after the first nap; the run has ended after the second.
        if len(naps) == 2:
            for name in ("metrics.jsonl", "summary.json"):
                shutil.copy(whole / name, young / name)

    monkeypatch.setattr(report_command.time, "sleep", nap)
    words = ["report", str(done), str(young), "--out", str(tmp_path / "out")]
    assert main.main([*words, "--watch"]) == 0
    assert len(naps) == 2
    shown = capsys.readouterr().out
    assert shown.count("test accuracy, %") == 2
    assert "unfinished" in shown.split("test accuracy, %")[0]
    assert "unfinished" not in shown.split("test accuracy, %")[1]
    assert (tmp_path / "out" / "report.json").exists()


def test_the_page_of_a_single_run_has_the_way_to_a_target(grid, tmp_path):
    runs, found = compare(grid[:1], target=0.5)
    path = report_files.write(runs, found, tmp_path)[-1]
    reader = Reader()
    reader.feed(Path(path).read_text())
    header, cells = reader.tables["groups"]
    row = dict(zip(header, cells, strict=True))
    # Test accuracies are 0.2, 0.4 and 0.9, an epoch takes 61 seconds.
    assert (row["epochs to 50 %"], row["seconds to 50 %"]) == ("3.0", "183.0")


def test_the_times_of_a_shared_program_are_told(grid, tmp_path):
    folder = shutil.copytree(grid[0], tmp_path / "run")
    content = json.loads((folder / "config.json").read_text())
    versions = {"versions": {}, "step": 0, "together": 4}
    (folder / "config.json").write_text(json.dumps(content | {"sessions": [versions]}))
    _, found = compare([folder], target=0.5)
    said = [note for note in group_tables.notes(found) if "whole program" in note]
    assert len(said) == 1
    _, found = compare(grid, target=0.5)
    assert not any("whole program" in note for note in group_tables.notes(found))


def test_a_target_is_an_accuracy(grid, capsys):
    assert main.main(["report", str(grid[0]), "--target", "90"]) == 2
    assert "--target 90 must be above 0 and at most 1" in capsys.readouterr().err
