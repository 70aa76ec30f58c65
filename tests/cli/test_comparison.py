import dataclasses
import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from zosam_jax.cli import comparison, group_tables, pictures, report_files, terminal
from zosam_jax.runs import groups, record
from zosam_jax.runs.config import TrainConfig
from zosam_jax.runs.errors import RunError


def make_run(path, epochs=3, finished=True, **fields):
    """A run folder as the trainer writes it, without training."""
    path.mkdir(parents=True)
    config = dataclasses.asdict(TrainConfig(out=str(path), epochs=3, **fields))
    content = {"config": config, "sessions": []}
    (path / "config.json").write_text(json.dumps(content))
    lines = []
    for epoch in range(1, epochs + 1):
        where = {"step": 10 * epoch, "epoch": epoch, "sparsity": 0.9}
        train = {"split": "train", "loss": 1 / epoch, "accuracy": epoch / 4}
        test = {"split": "test", "loss": 1.5 / epoch, "accuracy": epoch / 5}
        lines += [
            {**where, **train, "images_per_second": 1000.0, "seconds": 61.0 * epoch},
            {**where, **test, "seconds": 61.0 * epoch},
        ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (path / "metrics.jsonl").write_text(text)
    if finished:
        summary = {"status": "finished", "sparsity": 0.9, "sparsity_all": 0.9}
        summary |= {"epochs": epochs, "steps": 10 * epochs, "seconds": 183.0}
        summary |= {"parameters": 280000, "parameters_live": 28639}
        summary |= {"parameters_sparsified": 270000, "images_per_second": 999}
        for split in ("train", "test"):
            last = next(x for x in lines[::-1] if x["split"] == split)
            summary |= {f"{split}_{x}": last[x] for x in ("loss", "accuracy")}
        summary |= {"compile_seconds": 1.0, "compile_seconds_by_program": {}}
        (path / "summary.json").write_text(json.dumps(summary))
    return path


def write(runs, folder):
    """The paths of the picture and of the page."""
    found = group_tables.compare(groups.group(runs))
    lines = report_files.write(runs, found, folder)
    return Path(lines[0]), Path(lines[-1])


def test_a_finished_and_an_unfinished_run_side_by_side(tmp_path):
    folders = [
        make_run(tmp_path / "one", rho=0.05),
        make_run(tmp_path / "two", rho=0.1, epochs=2, finished=False),
        make_run(tmp_path / "new", rho=0.2, epochs=0, finished=False),
    ]
    runs = record.read_all(folders)
    rows = [{c.header: c.cell(run) for c in comparison.COLUMNS} for run in runs]
    assert rows[0] == {
        "run": "one",
        "data set": "digits",
        "method": "rigl",
        "gradient": "zosam",
        "seed": "0",
        "status": "finished",
        "epoch": "3/3",
        "test accuracy": "60.00%",
        "test loss": "0.5000",
        "train loss": "0.3333",
        "sparsity": "90.00%",
        "live parameters": "28,639",
        "images/s": "999",
        "time": "3:03",
    }
    assert (rows[1]["status"], rows[1]["epoch"]) == ("unfinished", "2/3")
    assert rows[1]["test accuracy"] == "40.00%"
    assert (rows[2]["epoch"], rows[2]["test accuracy"]) == ("0/3", "-")
    assert comparison.config_differences(runs) == {"rho": [0.05, 0.1, 0.2]}
    assert runs[0].curve("test", "loss") == ([1, 2, 3], [1.5, 0.75, 0.5])


def test_the_page_holds_all_it_needs(tmp_path):
    a = make_run(tmp_path / "a" / "<run>", rho=0.05)
    b = make_run(tmp_path / "b" / "<run>", rho=0.1)
    runs = record.read_all([a, b])
    assert [run.name for run in runs] == [str(a), str(b)]
    picture, page = write(runs, tmp_path / "out" / "here")
    assert picture.read_bytes().startswith(b"\x89PNG")
    text = page.read_text()
    assert "data:image/png;base64," in text
    assert "&lt;run&gt;" in text
    assert "<run>" not in text
    assert f"<td>{a}</td><td>0.05</td>".replace("<run>", "&lt;run&gt;") in text
    assert "https:" not in text
    assert "http:" not in text


def test_label_noise_and_probes_are_shown_where_a_run_has_them(tmp_path, monkeypatch):
    plain = make_run(tmp_path / "plain")
    other = make_run(
        tmp_path / "other",
        label_noise=0.4,
        probe_fraction=0.25,
        perturb_from=0.5,
        perturb_every=2,
        perturb_probability=0.75,
    )
    path = other / "summary.json"
    shares = {"given": 0.8, "clean": 0.6}
    added = {f"train_accuracy_{kind}_labels": x for kind, x in shares.items()}
    added["parameters_removable"] = 1234
    path.write_text(json.dumps(json.loads(path.read_text()) | added))
    assert comparison.columns(record.read_all([plain])) == [*comparison.COLUMNS]
    runs = record.read_all([plain, other])
    rare = comparison.columns(runs)[len(comparison.COLUMNS) :]
    assert [[c.cell(run) for c in rare] for run in runs] == [
        ["-"] * 6,
        [
            *("40%", "80.00%", "60.00%", "0.25 of the batch"),
            *("from 50% on, every 2, with p = 0.75", "1,234"),
        ],
    ]
    _, page = write(runs, tmp_path / "out")
    assert "train accuracy, clean labels" in page.read_text()
    figures = []
    monkeypatch.setattr(pictures, "_save", lambda figure, path: figures.append(figure))
    pictures.curves(runs[:1], tmp_path / "curves.png")
    pictures.curves(runs, tmp_path / "curves.png")
    titles = [[axis.get_title() for axis in figure.axes] for figure in figures]
    assert titles[0][2:] == ["training accuracy", "training loss"]
    assert titles[1][2] == "training accuracy on the given, noisy labels"
    assert titles[1][3].startswith("training loss (with cheaper probes: at the pert")


def test_small_differences_do_not_fill_a_panel(tmp_path, monkeypatch):
    (run,) = record.read_all([make_run(tmp_path / "run")])
    for line in run.metrics:
        line["accuracy"] = 0.9 + line["epoch"] / 1000
        line["loss"] = 0.5 + line["epoch"] / 1000
    figures = []
    monkeypatch.setattr(pictures, "_save", lambda figure, path: figures.append(figure))
    pictures.curves([run], tmp_path / "curves.png")
    ranges = [axis.get_ylim() for axis in figures[0].axes]
    for low, high in ranges[::2]:
        assert high - low == pytest.approx(0.05)
        assert low < 0.901 < 0.903 < high
    for low, high in ranges[1::2]:
        assert high - low == pytest.approx(0.0503)
        assert low < 0.501 < 0.503 < high


def test_missing_lines_and_other_figures_are_told(tmp_path):
    path = make_run(tmp_path / "run")
    lines = (path / "metrics.jsonl").read_text().splitlines(keepends=True)
    for kept, part in (
        (lines[:2] + lines[4:], r"line 3 is of epoch 3, .* before it of epoch 1"),
        (lines[1:], r"line 2 is of epoch 2, .* 'train' before it of epoch none"),
        (lines[:4], r"metrics\.jsonl ends at 20, and the run at step 30"),
        ([], "ends at no step"),
        ([*lines[:-1], lines[-1].replace("0.6", "0.7")], "has test_accuracy 0.6, and"),
    ):
        (path / "metrics.jsonl").write_text("".join(kept))
        with pytest.raises(RunError, match=part):
            record.read(path)


def test_what_is_no_run_is_an_error_that_names_it(tmp_path):
    with pytest.raises(RunError, match="not the folder of a run"):
        record.read(tmp_path / "nowhere")
    path = make_run(tmp_path / "run")
    (path / "summary.json").write_text("{")
    with pytest.raises(RunError, match=r"summary\.json is not valid JSON"):
        record.read(path)
    (path / "config.json").write_text("{}")
    with pytest.raises(RunError, match="it has no 'config'"):
        record.read(path)
    with pytest.raises(
        RunError, match=r"several runs \(run\). Name one of them, or all"
    ):
        record.read(tmp_path)
    with pytest.raises(RunError, match="at least one"):
        record.read_all([])


NAMES = ("$x^{$bad", "run[red]x", "_hidden", "a" * 40, "two\nlines", "\x1b[31mred")


def test_names_are_shown_whole_and_never_taken_for_markup(tmp_path):
    runs = record.read_all([make_run(tmp_path / name) for name in NAMES])
    shown = [name.encode("unicode_escape").decode() for name in NAMES]
    for width in (60, 100, 200):
        console = Console(file=io.StringIO(), width=width)
        console.print(comparison.terminal_table(runs, width))
        lines = console.file.getvalue().splitlines()
        assert max(map(len, lines)) <= width
        text = re.sub(r"[ \n]", "", "".join(line[: width // 2] for line in lines))
        for name in shown if width > 60 else shown[:3]:
            assert name in text
        assert "rigl" in text
        assert "\x1b" not in text
    picture, page = write(runs, tmp_path / "out")
    assert picture.read_bytes().startswith(b"\x89PNG")
    for name in shown:
        assert f"<td>{name}</td>" in page.read_text()


def test_the_legend_of_curves_has_every_name(tmp_path, monkeypatch):
    runs = record.read_all([make_run(tmp_path / name) for name in NAMES[:3]])
    figures = []
    monkeypatch.setattr(pictures, "_save", lambda figure, path: figures.append(figure))
    pictures.curves(runs, tmp_path / "curves.png")
    (legend,) = figures[0].legends
    assert [text.get_text() for text in legend.get_texts()] == list(NAMES[:3])


def test_a_picture_that_cannot_be_drawn_is_said(tmp_path):
    def fail(path):
        raise RuntimeError("no font\nsecond line")

    said = terminal.drawn(fail, tmp_path / "a.png")
    assert said == f"{tmp_path}/a.png could not be drawn: RuntimeError: no font"
