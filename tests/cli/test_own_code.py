"""Code of the user's own that a command line names; no file can have it imported."""

import dataclasses
import importlib
import json
import sys
import textwrap

import optax
import pytest
import tiny_run

import zosam_jax as zs
from zosam_jax.cli import main as cli
from zosam_jax.train import RunError, TrainConfig, load_run, run

MODULE = """
    import jax, optax, zosam_jax as zs
    import tiny_run
    from tiny_run import Net

    def ascent(rho=0.1, **options):
        return zs.sam(2 * rho, **options)

    made = zs.sam(0.1)

    def squares(outputs, labels):
        return ((jax.nn.softmax(outputs) - jax.nn.one_hot(labels, 4)) ** 2).sum(-1)

    class Squares:
        def __call__(self, outputs, labels):
            return squares(outputs, labels)

    def wrong(rho=0.1):
        raise LookupError("no such ascent")
"""
OWN = {
    "dataset": "pieces:tiny_run.dataset",
    "model": "pieces:Net",
    "method": "zosam_jax.sparsity:rigl",
    "gradient": "pieces:ascent",
    "optimizer": "optax:adam",
    "loss": "pieces:squares",
}
FLAGS = [word for kind, name in OWN.items() for word in (f"--{kind}", name)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("own")
    (path / "pieces.py").write_text(textwrap.dedent(MODULE))
    (path / "broken.py").write_text("import json\n\nvalue = {}['rho']\n")
    (path / "needs.py").write_text("import not_there\n")
    (path / "trap.py").write_text("import os\n\nos.mkdir('imported')\n")
    return path


@pytest.fixture
def here(folder, monkeypatch):
    """The working directory of the commands, which is importable in them alone."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return folder


@pytest.fixture(scope="module")
def trained(folder):
    """A run of own code, by the command line."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", [*sys.path])
        assert cli.main(LINE) == 0
    return folder / "runs" / "mine"


LINE = ["train", *FLAGS, "--rho", "0.2", "--gradient-options", "microbatches=2"]
LINE += ["--epochs", "2", "--batch-size", "16", "--update-interval", "3"]
LINE += ["--sparsity", "0.5", "--out", "runs/mine"]


def failure(line, capsys):
    assert cli.main(line) == 2
    return capsys.readouterr().err


def test_a_command_line_names_every_part_of_a_run(here, trained, capsys):
    stored = json.loads((trained / "config.json").read_text())
    assert stored["objects"] == {
        "dataset": "quadrants (given)",
        "model": "Net (given)",
        "method": "rigl (given)",
        "gradient": "ascent (given)",
        "optimizer": "adam (given)",
        "loss": "squares (given)",
    }
    assert {kind: stored["config"].get(kind) for kind in OWN if kind != "loss"} == {
        kind: name for kind, name in OWN.items() if kind != "loss"
    }
    assert cli.main(LINE) == 0
    assert "is finished already" in capsys.readouterr().out
    assert cli.main(["train", "--resume", "runs/mine", *FLAGS]) == 0
    assert "is finished already" in capsys.readouterr().out
    bare = [x for x in LINE if x not in ("--loss", OWN["loss"])]
    assert "squares (given), and none is given here" in failure(bare, capsys)


def test_a_command_line_trains_as_python_does(here, trained, tmp_path):
    config = dataclasses.replace(
        TrainConfig(**json.loads((trained / "config.json").read_text())["config"]),
        out=str(tmp_path / "python"),
    )
    pieces = importlib.import_module("pieces")
    found = {"dataset": tiny_run.dataset(), "model": tiny_run.Net()}
    found |= {"method": zs.sparsity.rigl, "gradient": pieces.ascent}
    found |= {"optimizer": optax.adam, "loss": pieces.squares}
    again = run(config, **found)
    a, b = (load_run.load(path, **found) for path in (trained, again.folder))
    tiny_run.assert_same(a.variables, b.variables)


def test_commands_that_read_a_run_take_its_code(here, trained, capsys):
    own = [w for k, n in OWN.items() if k != "dataset" for w in (f"--{k}", n)]
    assert cli.main(["export", "runs/mine", *own, "--out", "net.safetensors"]) == 0
    flags = ["--corruptions", "fog", "--severities", "1", *FLAGS]
    assert cli.main(["evaluate", "runs/mine", *flags]) == 0
    summary = json.loads((trained / "summary.json").read_text())
    evaluation = json.loads((trained / "evaluation.json").read_text())
    assert evaluation["clean"]["accuracy"] == summary["test_accuracy"]
    flags = ["--parts", "masks", "--images", "16", "--out", "analysis", *FLAGS]
    assert cli.main(["analyze", "runs/mine", *flags]) == 0
    capsys.readouterr()
    for command in ("evaluate", "analyze", "export"):
        error = failure([command, "runs/mine"], capsys)
        assert "code of your own" in error
        assert "command line" in error
    assert "must be code" in failure(["export", "runs/mine", "--model", "vgg"], capsys)


@pytest.mark.parametrize("kind", [kind for kind in OWN if kind != "loss"])
def test_no_file_and_no_run_has_code_imported(here, tmp_path, kind, capsys):
    trap = {kind: "trap:value"}
    record = TrainConfig(out=str(tmp_path / "run")).record() | trap
    file = tmp_path / "config.json"
    file.write_text(json.dumps(record | {"loss": "trap:value"}))
    stored = tmp_path / "stored"
    stored.mkdir()
    objects = {kind: "value (given)"}
    (stored / "config.json").write_text(
        json.dumps({"config": record, "objects": objects, "sessions": []})
    )
    (stored / "metrics.jsonl").write_text("")
    lines = [
        ["train", "--config", str(file)],
        ["train", "--config", str(file), "--dry-run"],
        ["train", "--resume", str(stored)],
        *([x, str(stored)] for x in ("evaluate", "export", "analyze")),
        ["predict", str(stored), "x.png"],
        ["sweep", f"--{kind}", "trap:value", "--out", str(tmp_path / "sweep")],
        ["sweep", "--config", str(file)],
    ]
    if kind != "method":
        lines.append(["lottery", f"--{kind}", "trap:value", "--out", str(tmp_path)])
    for line in lines:
        error = failure(line, capsys)
        assert "trap:value" in error or "value (given)" in error or "loss" in error
    cli.main(["report", str(stored)])
    with pytest.raises(RunError):
        run(TrainConfig(**record))
    assert not (here / "imported").exists()
    assert "trap" not in sys.modules


def test_the_trap_springs_where_the_command_line_names_it(here, capsys):
    """So the test above would see an import."""
    assert "has no 'value'" in failure(["train", "--gradient", "trap:value"], capsys)
    assert (here / "imported").exists()


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (["--gradient", "nothere:x"], "there is no module 'nothere' in "),
        (["--gradient", "pieces.sub:x"], "there is no module 'pieces.sub' in "),
        (["--gradient", "pieces:asent"], "has no 'asent'. Did you mean 'ascent'?"),
        (["--gradient", "broken:x"], "raised KeyError in broken.py, line 3: 'rho'."),
        (["--gradient", "needs:x"], "raised ModuleNotFoundError in needs.py, line 1"),
        (
            ["--gradient", "pieces:wrong"],
            "LookupError in pieces.py, line 19: no such asc",
        ),
        (["--gradient", "pieces:tiny_run"], "got module."),
        (["--gradient", "pieces:ascent", "--gradient-options", "x=1"], "no option 'x'"),
        (
            ["--gradient", "pieces:made", "--rho", "0.2"],
            "--rho 0.2 has no effect: --gr",
        ),
        (["--optimizer", "pieces:squares"], "has no parameter learning_rate"),
        (["--loss", "mse"], "--loss 'mse' must be code of your own, as MODULE:NAME"),
        (
            ["--loss", "pieces:made.rho"],
            "--loss 0.1 must be a function (outputs, labels",
        ),
        (
            ["--dataset", "pieces:wrong"],
            "--dataset wrong raised LookupError in pieces.py",
        ),
        (["--model", "pieces:squares"], "raised TypeError: "),
    ],
)
def test_what_cannot_be_imported_is_explained(here, flags, part, capsys):
    line = ["train", *flags, "--out", "runs/none"]
    assert part in failure(line, capsys)
    assert not (here / "runs" / "none").exists()


def test_an_object_takes_no_fields_from_a_file(here, capsys):
    """Those of its part that are not typed are left at their defaults."""
    line = [
        "train",
        "--gradient",
        "pieces:made",
        "--loss",
        "pieces:Squares",
        *FLAGS[:4],
    ]
    line += ["--batch-size", "16", "--config", "radius.json", "--method", "dense"]
    (here / "radius.json").write_text(json.dumps({"rho": 0.2, "epochs": 1}))
    assert cli.main([*line, "--dry-run"]) == 0
    assert "dry run: " in capsys.readouterr().out
