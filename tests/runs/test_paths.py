import os
from pathlib import Path

import pytest

from zosam_jax.runs import paths
from zosam_jax.runs.config import TrainConfig, from_record
from zosam_jax.runs.errors import RunError, explained


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("a\0b", "NUL"),
        ("~nobody-here/x", "home of a user that this machine does not have"),
        ("x" * 300, "name too long. Choose a shorter name"),
        ("y/" * 3000, "too long"),
    ],
)
def test_a_path_that_cannot_be_is_a_sentence(path, part):
    for error in (RunError, ValueError):
        with pytest.raises(error, match=part) as raised:
            paths.absolute(path, "--out")
        assert "--out" in str(raised.value)
    with pytest.raises(ValueError, match=part):
        TrainConfig(out=path).folder  # noqa: B018
    fields = {"dataset": f"folder:{path}", "teacher": path, "data_dir": path}
    for name, value in fields.items():
        with pytest.raises(ValueError, match=part):
            TrainConfig(**{name: value})


def test_a_link_to_itself_is_a_sentence(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(RunError, match=r"loop.*"):
        paths.absolute(tmp_path / "loop" / "run", "RUN")


def test_a_deleted_working_directory_is_a_sentence(tmp_path, monkeypatch):
    def gone():
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(os, "getcwd", gone)
    with pytest.raises(RunError, match="working directory, which has been deleted"):
        paths.absolute("runs/a", "--out")
    assert paths.absolute("/runs/a", "--out") == Path("/runs/a")


def test_a_configuration_means_the_same_everywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = TrainConfig(
        dataset="folder:pets", teacher="runs/t", data_dir="tfds", out="runs/s"
    )
    monkeypatch.chdir("/")
    assert config.dataset == f"folder:{tmp_path}/pets"
    assert config.teacher == f"{tmp_path}/runs/t"
    assert config.data_dir == f"{tmp_path}/tfds"
    assert config.out == f"{tmp_path}/runs/s"
    assert config.folder == tmp_path / "runs" / "s"
    assert from_record(config.record()) == config
    assert TrainConfig().dataset == "digits"


def test_errors_of_the_file_system_name_path_and_way_out(tmp_path):
    with (
        pytest.raises(RunError, match=r"/a/b cannot be written: no such file.*Create"),
        explained(tmp_path),
    ):
        (tmp_path / "a" / "b").write_text("")
    with (
        pytest.raises(RunError, match=r"read-only file system\. Choose a place"),
        explained(tmp_path),
    ):
        raise OSError(30, "Read-only file system")
