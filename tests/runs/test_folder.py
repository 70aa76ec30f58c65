import dataclasses
import errno
import itertools
import json
import os
from pathlib import Path

import pytest
import tiny_run

from zosam_jax.runs import dataset_facts, environment, files, folder
from zosam_jax.runs.config import TrainConfig
from zosam_jax.runs.errors import RunError

DEVICES = {"backend": "cpu", "device": "cpu", "devices": 1}


def test_a_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    for overwrite in (False, True):
        c = TrainConfig(out=str(tmp_path), overwrite=overwrite)
        with pytest.raises(RunError, match="holds no run"):
            folder.check(c)
    assert (tmp_path / "thesis.tex").exists()
    with pytest.raises(RunError, match="is a file"):
        folder.check(TrainConfig(out=str(tmp_path / "thesis.tex")))


@pytest.mark.quick
def test_a_run_of_another_configuration_is_refused(tmp_path):
    c = TrainConfig(out=str(tmp_path))
    folder.write_config(tmp_path, c, ["python", "-m", "zosam_jax", "train"], 0, DEVICES)
    folder.check(c)
    other = dataclasses.replace(c, rho=0.1, seed=1)
    with pytest.raises(RunError, match="another configuration") as error:
        folder.check(other)
    text = str(error.value)
    assert "rho: None -> 0.1" in text
    assert "seed: 0 -> 1" in text
    assert "--out" in text
    assert "--overwrite" in text
    assert "another version" not in text
    folder.check(dataclasses.replace(other, overwrite=True))
    session = folder.read_config(tmp_path)["sessions"][0]
    assert session["command"][-1] == "train"
    assert {"python", "jax", "zosam-jax"} <= set(session["versions"])


def test_a_run_that_has_other_fields_is_of_another_version(tmp_path):
    c = TrainConfig(out=str(tmp_path))
    folder.write_config(tmp_path, c, None, 0, DEVICES)
    path = tmp_path / "config.json"
    content = json.loads(path.read_text())
    del content["config"]["batch_size"]
    path.write_text(json.dumps(content))
    with pytest.raises(RunError, match=r"by another version of zosam_jax .*batch_size"):
        folder.check(c)


def test_a_session_on_other_software_is_told(tmp_path, monkeypatch):
    c = TrainConfig(out=str(tmp_path))
    assert not folder.write_config(tmp_path, c, None, 0, DEVICES)
    assert not folder.write_config(tmp_path, c, None, 4, DEVICES)
    now = environment.versions()
    monkeypatch.setattr(environment, "versions", lambda: now | {"jax": "9.9"})
    devices = DEVICES | {"devices": 8}
    changes = folder.write_config(tmp_path, c, None, 8, devices)
    assert changes == {"jax": f"{now['jax']} -> 9.9", "devices": "1 -> 8"}
    steps = [s["step"] for s in folder.read_config(tmp_path)["sessions"]]
    assert steps == [0, 4, 8]


def test_overwriting_deletes_the_run_and_nothing_else(tmp_path):
    c = TrainConfig(out=str(tmp_path))
    folder.write_config(tmp_path, c, None, 0, DEVICES)
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    (tmp_path / "checkpoints" / "4").mkdir(parents=True)
    (tmp_path / "notes.txt").write_text("mine")
    again = dataclasses.replace(c, overwrite=True)
    with folder.claim(again):
        left = {"notes.txt", ".lock", "config.json"}
        assert {p.name for p in tmp_path.iterdir()} == left
        # The new run replaces the record, and begins its list of sessions.
        assert not folder.write_config(tmp_path, again, None, 0, {})
    (session,) = folder.read_config(tmp_path)["sessions"]
    assert "backend" not in session


def test_overwriting_that_was_killed_at_any_moment_goes_on(tmp_path, monkeypatch):
    """What else lies in the folder stays, and the folder stays that of a run."""
    c = TrainConfig(out=str(tmp_path))
    again = dataclasses.replace(c, overwrite=True)
    files = ("summary.json", "metrics.jsonl", "curves.png", "evaluation.json")
    mine = {tmp_path / "notes.txt", tmp_path / "plots" / "metrics.jsonl"}
    (tmp_path / "plots").mkdir()
    for path in mine:
        path.write_text("mine")
    left = -1
    remove, remove_tree = Path.unlink, folder.shutil.rmtree

    def counted(delete):
        def call(path, **options):
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
            return delete(path, **options)

        return call

    for moment in itertools.count():
        folder.write_config(tmp_path, c, None, 0, DEVICES)
        for name in files:
            (tmp_path / name).write_text("")
        (tmp_path / "checkpoints" / "4").mkdir(parents=True, exist_ok=True)
        left = moment
        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", counted(remove))
            patch.setattr(folder.shutil, "rmtree", counted(remove_tree))
            try:
                with folder.claim(again):
                    break
            except KeyboardInterrupt:
                pass
        assert (tmp_path / "summary.json").exists() == (moment == 0)
        assert folder.check(c) == c.epochs
        assert folder.check(again) is None
        assert {p.read_text() for p in mine} == {"mine"}
    assert moment > len(files)
    assert {p.read_text() for p in mine} == {"mine"}
    names = {"notes.txt", "plots", ".lock", "config.json"}
    assert {p.name for p in tmp_path.iterdir()} == names


def test_a_search_deletes_no_run_that_is_not_its_own(tmp_path):
    """Beside the record of a search, `config.json` and its kin are the user's."""
    (tmp_path / "lottery.json").write_text("{}")
    for name in ("config.json", "metrics.jsonl"):
        (tmp_path / name).write_text("mine")
    deleted = []
    c = TrainConfig(out=str(tmp_path), overwrite=True)
    with folder.claim(c, "lottery.json", deleted.append):
        assert deleted == [tmp_path]
    assert (tmp_path / "config.json").read_text() == "mine"
    assert (tmp_path / "metrics.jsonl").read_text() == "mine"


@pytest.mark.parametrize(
    ("record", "left"),
    [
        ("config.json", [".lock"]),
        ("config.json", [".lock", "config.json.tmp"]),
        ("config.json", [".lock", "checkpoints/", "config.json.tmp"]),
        ("lottery.json", [".lock", "lottery.json.tmp"]),
    ],
)
def test_a_run_that_was_killed_before_its_record_begins_again(record, left, tmp_path):
    for name in left:
        path = tmp_path / name
        path.mkdir() if name.endswith("/") else path.touch()
    c = TrainConfig(out=str(tmp_path))
    assert folder.check(c, record) is None


@pytest.mark.parametrize("name", ["notes.txt.tmp", "checkpoints/4", "metrics.jsonl"])
def test_what_no_beginning_leaves_is_not_taken_for_one(name, tmp_path):
    (tmp_path / name).mkdir(parents=True)
    with pytest.raises(RunError, match="not empty and holds no run"):
        folder.check(TrainConfig(out=str(tmp_path)))


def test_two_processes_cannot_train_in_one_folder(tmp_path):
    c = TrainConfig(out=str(tmp_path))
    with (
        folder.claim(c),
        pytest.raises(RunError, match="another process"),
        folder.claim(c),
    ):
        pass


def test_a_full_disk_is_seen_before_the_start(tmp_path, monkeypatch):
    usage = folder.shutil.disk_usage(tmp_path)._replace(free=3 * 2**20)
    monkeypatch.setattr(folder.shutil, "disk_usage", lambda path: usage)
    c = TrainConfig(out=str(tmp_path / "new" / "run"))
    with pytest.raises(RunError, match=r"3\.0 MiB left; the run needs about 4\.0 MiB"):
        folder.check_space(c, 3 * 2**20)
    folder.check_space(c, 2 * 2**20)


def test_a_folder_that_cannot_be_used_is_a_sentence(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    c = TrainConfig(out=str(tmp_path / "file" / "run"))
    with (
        pytest.raises(RunError, match=r"cannot be written: not a directory\. A part"),
        folder.claim(c),
    ):
        pass
    c = TrainConfig(out=str(tmp_path / "run"))
    (tmp_path / "run" / ".lock").mkdir(parents=True)
    with (
        pytest.raises(RunError, match=r"run/\.lock cannot be .* Move that folder away"),
        folder.claim(c),
    ):
        pass
    (tmp_path / "run" / ".lock").rmdir()

    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    with monkeypatch.context() as patch:
        patch.setattr(folder.fcntl, "flock", refuse)
        with (
            pytest.raises(RunError, match=r"run/\.lock cannot be locked: no locks"),
            folder.claim(c),
        ):
            pass

    def read_only(self, *_, **__):
        raise OSError(errno.EROFS, "Read-only file system", str(self))

    monkeypatch.setattr(Path, "mkdir", read_only)
    with (
        pytest.raises(RunError, match=r"run cannot be written: read-only .* Choose"),
        folder.claim(c),
    ):
        pass


def test_a_link_to_nothing_becomes_the_folder_that_it_names(tmp_path):
    (tmp_path / "link").symlink_to("target")
    c = TrainConfig(out=str(tmp_path / "link"))
    assert folder.check(c) is None
    with folder.claim(c) as path:
        assert path == tmp_path / "target"


def test_overwriting_deletes_what_lies_in_the_place_of_a_file(tmp_path):
    c = TrainConfig(out=str(tmp_path))
    folder.write_config(tmp_path, c, None, 0, DEVICES)
    (tmp_path / "summary.json").mkdir()
    (tmp_path / "checkpoints").write_text("")
    (tmp_path / "metrics.jsonl").symlink_to("nowhere")
    with folder.claim(dataclasses.replace(c, overwrite=True)):
        pass
    assert {p.name for p in tmp_path.iterdir()} == {".lock", "config.json"}


@pytest.mark.parametrize("name", ["config.json", "summary.json", "metrics.jsonl"])
def test_what_is_no_file_is_never_opened(tmp_path, name):
    """To open a pipe would wait for a writer."""
    path = tmp_path / name
    for make, part in (
        (lambda: os.mkfifo(path), "a device or a pipe"),
        (lambda: path.symlink_to("nowhere"), "a link to nowhere, which is not there"),
        (lambda: path.symlink_to(name), "link"),
        (path.mkdir, "a folder"),
    ):
        make()
        with pytest.raises(RunError, match=part) as error:
            files.read_text(path)
        assert str(path) in str(error.value)
        path.rmdir() if path.is_dir() else path.unlink()


def test_moved_data_are_the_same_configuration_if_their_facts_are_kept(tmp_path):
    c = TrainConfig(out=str(tmp_path), dataset="folder:/a/pets", teacher="/a/t")
    moved = dataclasses.replace(c, dataset="folder:/b/pets", teacher="/b/t")
    folder.write_config(tmp_path, c, None, 0, DEVICES)
    with pytest.raises(RunError, match=r"dataset: .*/a/pets.* -> .*teacher: "):
        folder.check(moved)
    facts = dataset_facts.of(tiny_run.dataset()).record()
    kept = {"dataset": facts, "teacher": {"weights_crc32": 3}}
    folder.write_config(tmp_path, c, None, 0, DEVICES, kept)
    assert folder.check(moved) == c.epochs
    for other in ({"dataset": "digits"}, {"teacher": None}):
        with pytest.raises(RunError, match="another configuration"):
            folder.check(dataclasses.replace(moved, **other))


def test_more_epochs_are_left_to_the_trainer(tmp_path):
    c = TrainConfig(out=str(tmp_path), epochs=4)
    folder.write_config(tmp_path, c, None, 0, DEVICES)
    assert folder.check(dataclasses.replace(c, epochs=6)) == 4
    for fields in ({"epochs": 3}, {"epochs": 6, "seed": 1}):
        with pytest.raises(RunError, match="epochs: 4 -> "):
            folder.check(dataclasses.replace(c, **fields))


@pytest.mark.parametrize("record", ["config.json", "lottery.json"])
@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "is not valid JSON"),
        ("[]", r"it is \[\], not an object"),
        ("[" * 100_000, "too deep"),
        ('{"config": null}', "'config' is null, not an object"),
        ('{"config": {}}', "in 'config', it has no 'dataset'"),
        ({"epochs": "ten"}, "in 'config', 'epochs' is 'ten', not an integer"),
        ({"rho": [0.1]}, r"rho=\[0.1\] must be a number or None"),
        ({"sessions": None}, "'sessions' is null, not a list of values, each an obj"),
        ({"sessions": [{"step": 0}]}, "in session 1, it has no 'versions'"),
        ({"objects": {"model": 3}}, "'objects' is an object, not an object of texts"),
    ],
)
def test_a_record_of_the_wrong_shape_is_a_sentence(tmp_path, record, text, part):
    if isinstance(text, dict):
        content = {"config": TrainConfig().record()}
        beside = {k: v for k, v in text.items() if k in ("sessions", "objects")}
        content["config"] |= {k: v for k, v in text.items() if k not in beside}
        text = json.dumps(content | beside)
    (tmp_path / record).write_text(text)
    with pytest.raises(RunError, match=part) as error:
        folder.check(TrainConfig(out=str(tmp_path)), record)
    assert str(tmp_path / record) in str(error.value)
    assert "restore the file from a copy" in str(error.value)
