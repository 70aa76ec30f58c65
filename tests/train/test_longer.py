"""More epochs for a run: bit for bit those of a run of all epochs, or a reason."""

import dataclasses
import json
import shutil

import pytest
import tiny_run

from zosam_jax.runs import folder
from zosam_jax.train import RunError, run

FIELDS = {"method": "random", "gradient": "backprop", "schedule": "constant"}


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    path = tmp_path_factory.mktemp("short") / "run"
    tiny_run.train(path, **FIELDS, warmup_epochs=1.0, epochs=2)
    return path


@pytest.mark.quick
def test_a_longer_run_is_the_run_of_all_epochs(short, tmp_path):
    whole = tiny_run.train(tmp_path / "a", **FIELDS, warmup_epochs=1.0, epochs=3)
    path = shutil.copytree(short, tmp_path / "b")
    longer = tiny_run.train(path, **FIELDS, warmup_epochs=1.0, epochs=3)
    assert longer.status == "finished"
    fields = {**FIELDS, "warmup_epochs": 1.0, "epochs": 3}
    tiny_run.assert_same(
        tiny_run.final(path, **fields), tiny_run.final(tmp_path / "a", **fields)
    )
    assert longer.summary["test_loss"] == whole.summary["test_loss"]
    assert [r["epoch"] for r in tiny_run.records(path)] == [1, 1, 2, 2, 3, 3]
    assert folder.read_config(path)["config"]["epochs"] == 3
    # It is a run of three epochs now.
    assert tiny_run.train(path, **fields).status == "unchanged"
    with pytest.raises(RunError, match="epochs: 3 -> 2"):
        tiny_run.train(path, **FIELDS, warmup_epochs=1.0, epochs=2)


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        (
            {"schedule": "cosine"},
            r"the learning rate \(--schedule cosine\) follows the",
        ),
        ({"schedule": "step"}, r"\(--schedule step\)"),
        ({"method": "rigl", "update_interval": 3}, r"the masks \(--method rigl\)"),
        ({"gradient": "aesam"}, "--gradient aesam depends on the number of steps"),
    ],
)
def test_schedules_over_all_epochs_are_named(short, tmp_path, fields, part):
    """Said before anything is written: the run stays finished."""
    path = shutil.copytree(short, tmp_path / "run")
    fields = {**FIELDS, **fields}
    config = tiny_run.config(path, **fields, epochs=2)
    content = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(content | {"config": config.record()}))
    with pytest.raises(RunError, match=part) as error:
        tiny_run.train(path, **fields, epochs=4)
    assert "has 2 epochs and cannot go on to 4" in str(error.value)
    assert (path / "summary.json").exists()


def test_a_run_whose_data_changed_does_not_go_on(short, tmp_path):
    path = shutil.copytree(short, tmp_path / "run")
    config = tiny_run.config(path, **FIELDS, warmup_epochs=1.0, epochs=3)
    data = tiny_run.dataset()
    fewer = dataclasses.replace(
        data, test_images=data.test_images[1:], test_labels=data.test_labels[1:]
    )
    with pytest.raises(RunError, match="has 21 test examples; it had 22 when the run"):
        run(config, dataset=fewer, model=tiny_run.Net())
