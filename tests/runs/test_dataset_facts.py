import dataclasses
import json
from pathlib import Path

import pytest
import tiny_run

from zosam_jax.runs import dataset_facts
from zosam_jax.runs.errors import RunError

FACTS = dataset_facts.of(tiny_run.dataset())


@pytest.mark.quick
def test_facts_are_the_same_after_json():
    content = json.loads(json.dumps({"dataset": FACTS.record()}))
    assert dataset_facts.read(content, Path("config.json")) == FACTS
    assert dataset_facts.read({}, Path("config.json")) is None


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"class_names": ["a", "b", "c", 4]}, "'class_names'"),
        ({"class_names": []}, "'class_names' is empty"),
        ({"image_shape": [6, 6]}, "'image_shape' is"),
        ({"mean": []}, "'mean' has 0 numbers for 1 channels"),
        ({"std": [-1.0]}, "'std'"),
        ({"kind": "sound"}, "'kind' is 'sound'"),
        ({"resize": "no"}, "'resize'"),
        ({"num_train": None}, "'num_train' is null"),
    ],
)
def test_damaged_facts_are_named(fields, part):
    content = json.loads(json.dumps({"dataset": FACTS.record() | fields}))
    with pytest.raises(RunError, match=part) as error:
        dataset_facts.read(content, Path("runs/a/config.json"))
    assert "runs/a/config.json is damaged" in str(error.value)


def test_what_permutes_labels_or_does_not_fit_is_a_misfit():
    assert FACTS.misfit(FACTS) is None

    def misfit(**fields):
        return FACTS.misfit(dataclasses.replace(FACTS, **fields))

    assert "class 1 is 'c', where that of the network is 'b'" in misfit(
        class_names=("a", "c", "b", "d")
    )
    assert "it has 3 classes; those of the network are 4: a, b, c, d" in misfit(
        class_names=("a", "b", "c")
    )
    assert "images of 8 x 8 x 3; those that" in misfit(image_shape=(8, 8, 3))
    assert "texts of 6 tokens" in misfit(kind="text", image_shape=(6,))
    assert misfit(mean=(0.5,), num_train=3, name="elsewhere") is None


def test_changes_that_do_not_hinder_are_told():
    now = dataclasses.replace(FACTS, mean=(0.5,), resize=20, num_test=3)
    changes = dataclasses.replace(FACTS, resize=18).changes(now)
    assert [c.split(" ")[0] for c in changes] == ["the", "test", "quadrants"]
    assert "quadrants has 3 test examples; it had 22" in changes[2]
    assert FACTS.changes(FACTS) == []
