import json

import pytest

from zosam_jax.runs import metrics
from zosam_jax.runs.errors import RunError


def line(epoch, split="train", **fields):
    usual = {"step": 4 * epoch, "epoch": epoch, "split": split, "loss": 1.5}
    usual |= {"accuracy": 0.5, "sparsity": 0.9, "seconds": 1.0 * epoch}
    if split == "train":
        usual["images_per_second"] = 10.0
    return usual | fields


def test_metrics_are_cut_back_to_the_restored_step(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = metrics.MetricsLog(tmp_path)
    for epoch in (1, 2, 3):
        log.write(line(epoch))
    log.close()
    with path.open("a") as file:
        file.write('{"step": 16, "spl')
    kept = metrics.cut(path, 8)
    assert [r["step"] for r in kept] == [4, 8]
    assert [json.loads(line) for line in path.read_text().splitlines()] == kept
    assert metrics.cut(tmp_path / "none.jsonl", 8) == []


def test_a_damaged_metrics_file_is_an_error_with_its_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    good = json.dumps(line(1))
    path.write_text(f"{good}\nnot json\n{good}\n")
    with pytest.raises(RunError, match=r"line 2 of .*metrics\.jsonl .* good: 1\. Dele"):
        metrics.read(path)


@pytest.mark.parametrize(
    ("second", "part"),
    [
        ([], "it is \\[\\], not an object"),
        ({"step": "8"}, "'step' is '8', not an integer"),
        ({"split": "tset"}, "'split' is 'tset', not 'train' or"),
        ({"accuracy": None}, "'accuracy' is null"),
        ({"loss": True}, "'loss' is True, not a finite number"),
        ({"images_per_second": {}}, "'images_per_second' is"),
    ],
)
def test_a_line_of_the_wrong_shape_says_what_is_wrong(tmp_path, second, part):
    path = tmp_path / "metrics.jsonl"
    second = line(2) | second if isinstance(second, dict) else second
    path.write_text("".join(json.dumps(x) + "\n" for x in (line(1), second)))
    with pytest.raises(RunError, match=f"line 2 .* is damaged: .*{part}"):
        metrics.read(path)


def test_a_line_without_an_entry_names_it(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for name in line(1):
        short = {k: v for k, v in line(1).items() if k != name}
        path.write_text(json.dumps(short) + "\n")
        with pytest.raises(RunError, match=f"it has no '{name}'"):
            metrics.read(path)
