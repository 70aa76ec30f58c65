"""The plan of `benchmarks.paper`, its published numbers, tables and trainings."""

import dataclasses
import itertools

import pytest

from benchmarks import paper, paper_plan, paper_tables, record
from benchmarks.paper import CORRUPTED, SPEED, TRAINING, Paper
from benchmarks.paper_plan import SCALES, TABLES, Cell
from benchmarks.paper_published import PUBLISHED
from zosam_jax.lottery import LotteryConfig
from zosam_jax.runs.errors import Divergence
from zosam_jax.train import choices

CELLS = {cell for table in TABLES.values() for cell in table.all_of("smoke")}
SNIP = Cell("ResNet-32", "CIFAR-10", "SNIP", 0.9, "SGD")
ZO = SNIP._replace(gradient="ZO-SAM")


def published(measure: str, *cell) -> float:
    return PUBLISHED[Cell("ResNet-32", "CIFAR-10", *cell), measure].value


def test_published_numbers_stand_in_a_table():
    shown = {
        (cell, measure)
        for table in TABLES.values()
        for cell, measure in itertools.product(table.cells, table.measures)
    }
    assert PUBLISHED.keys() <= shown


@pytest.mark.parametrize(
    ("data", "method", "sparsity", "gain"),
    [
        ("CIFAR-10", "LT", 0.95, 1.63),
        ("CIFAR-10", "LT", 0.98, 0.68),
        ("CIFAR-10", "SNIP", 0.9, 0.79),
        ("CIFAR-10", "SNIP", 0.98, 0.71),
        ("CIFAR-10", "RigL", 0.95, 0.38),
        ("CIFAR-10", "MEST", 0.98, 2.31),
        ("CIFAR-100", "SNIP", 0.9, 0.65),
        ("CIFAR-100", "RigL", 0.9, 2.54),
        ("CIFAR-100", "RigL", 0.98, 1.10),
        ("CIFAR-100", "MEST", 0.9, 1.76),
        ("CIFAR-100", "MEST", 0.98, 1.42),
    ],
)
def test_published_values_have_the_published_gains(data, method, sparsity, gain):
    """A transposed digit, or a value in the wrong column, shows here."""
    values = [
        PUBLISHED[Cell("ResNet-32", data, method, sparsity, gradient), "accuracy"]
        for gradient in ("ZO-SAM", "SGD")
    ]
    assert values[0].value - values[1].value == pytest.approx(gain, abs=1e-6)
    assert all(value.sure for value in values)


def test_published_speeds_have_the_published_shares():
    shares = {"SAM": 47.67, "ESAM": 40.49, "LookSAM, k=10": 75.30, "ZO-SAM": 76.66}
    for gradient, share in shares.items():
        found = published("share", "MEST", 0.9, gradient)
        assert found == pytest.approx(share, abs=0.01)


def test_published_accuracies_fall_with_the_sparsity():
    for data, method in itertools.product(("CIFAR-10", "CIFAR-100"), paper_plan.HOSTS):
        values = [
            PUBLISHED[Cell("ResNet-32", data, method, sparsity, "SGD"), "accuracy"]
            for sparsity in paper_plan.SPARSITIES
        ]
        assert sorted(values, reverse=True) == values


@pytest.mark.parametrize("scale", SCALES)
def test_every_cell_is_a_run_of_its_own_that_can_be_built(tmp_path, scale):
    """Names and options exist, and no two trainings share a folder."""
    folders, checked = [], set()
    for cell in sorted(CELLS):
        if cell.data not in SCALES[scale].data:
            continue
        made = paper_plan.config(cell, 3, SCALES[scale], tmp_path, None)
        folders.append(made.folder)
        run = made.train if isinstance(made, LotteryConfig) else made
        assert (run.seed, run.sparsity) == (3, cell.sparsity)
        key = run.model, cell.method, cell.gradient
        if key not in checked and not isinstance(made, LotteryConfig):
            checked.add(key)
            choices.check(run)
    assert len(set(folders)) == len(folders)


def test_full_is_the_papers_setting(tmp_path):
    made = paper_plan.config(ZO, 0, SCALES["full"], tmp_path, None)
    assert (made.model, made.width, made.epochs, made.batch_size) == (
        *("resnet32", 2.0, 160),
        64,
    )
    sgd = paper_plan.config(SNIP, 0, SCALES["full"], tmp_path, None)
    assert dataclasses.replace(sgd, gradient="zosam", out=made.out) == made
    tiny = Cell("DeiT-Tiny", "ImageNet-1K", "SViTE", 0.5, "ZO-SAM")
    made = paper_plan.config(tiny, 0, SCALES["full"], tmp_path, None)
    assert (made.width, made.budget, made.update_interval) == (1, "erk_fused", 10_000)
    assert (made.optimizer, made.dataset) == ("adamw", "imagenet2012")


def test_tables_share_what_they_train(tmp_path):
    scale = Paper("full", tmp_path, None, tmp_path / "paper.json")
    every = list(paper.jobs(TABLES, scale, 2))
    assert len(set(every)) == len(every)
    assert [job[2] for job in every] == sorted(job[2] for job in every)
    trained = {job[1:] for job in every if job[0] == TRAINING}
    cells = {cell for table in TABLES.values() for cell in table.cells}
    assert trained == set(itertools.product(cells, (0, 1)))
    timed = {job[1:] for job in every if job[0] == SPEED}
    assert timed == {(cell, 0) for cell in TABLES["T4"].cells}
    evaluated = {job[1] for job in every if job[0] == CORRUPTED}
    assert evaluated == set(TABLES["T5"].cells)


def row(cell: Cell, measure: str, *values) -> dict:
    return {**cell._asdict(), "measure": measure, "values": dict(enumerate(values))}


def test_a_line_has_published_ours_and_the_difference():
    rows = [row(ZO, "accuracy", 93.0, 94.0), row(SNIP, "accuracy", 92.0, None)]
    rigl = ZO._replace(method="SET")
    header, *found = paper_tables.lines(TABLES["T1"], [ZO, SNIP, rigl], rows, "full")
    assert header[-3:] == ["top-1, %: published", "ours, full", "difference"]
    assert found[0][-3:] == ["93.38", "93.50 ± 0.71 (2)", "+0.12"]
    assert found[1][-3:] == ["92.59", "1 of 2 diverged", ""]
    assert found[2][-3:] == ["not found", "not run", ""]
    unsure = SNIP._replace(method="SET")
    (_, line) = paper_tables.lines(TABLES["T1"], [unsure], [], "full")
    assert line[-3:] == ["92.30 ?", "not run", ""]


def test_epochs_are_those_to_the_target():
    scale = SCALES["smoke"]
    curve = [scale.target - 0.1, scale.target, 0.0, 1.0]
    line = {"accuracy": 1.0, "curve": curve, "diverged": False}
    assert paper._values(TRAINING, line, scale) == {"accuracy": 100, "epochs": 2}
    line["curve"] = [0.0]
    assert paper._values(TRAINING, line, scale)["epochs"] is None
    mest = Cell("ResNet-32", "CIFAR-10", "MEST", 0.9, "ZO-SAM")
    rows = [row(mest, "epochs", 3, None)]
    (_, found) = paper_tables.lines(TABLES["T3"], [mest], rows, "smoke")
    assert found[-2:] == ["70", "1 of 2 did not reach it"]


def test_the_documentation_shows_the_largest_scale():
    smoke = {"rows": [row(ZO, "accuracy", 50.0)]}
    full = {"rows": [row(ZO, "clean", 93.0)]}
    found = paper_tables.tables({"smoke": smoke, "full": full})
    # Of other data than the papers', so without a difference.
    assert found["paper-T1"][0][-1] == "ours, smoke"
    assert found["paper-T5"][0][-2] == "ours, full"
    (line,) = (x for x in found["paper-T1"] if x[-1] == "50.00 (1)")
    assert line[-2] == "93.38"
    assert {x[-2] for x in found["paper-T3"][1:]} == {"not run"}


@pytest.fixture(scope="module")
def tried(tmp_path_factory):
    """A training of the smallest scale, in one epoch, and its corrupted accuracy."""
    folder = tmp_path_factory.mktemp("paper")
    scale = SCALES["smoke"]
    short = scale._replace(
        base={**scale.base, "epochs": 1, "checkpoint_every": 1},
        corruptions={"images": 20, "severities": (1, 5), "corruptions": ("fog",)},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SCALES, "smoke", short)
        made = Paper("smoke", folder, None, folder / "paper.json")
        assert made.train(SNIP, 1)
        assert made.corrupt(SNIP, 1)
    return made


def test_a_training_leaves_its_figures(tried):
    line = tried.done()[TRAINING, SNIP, 1]
    assert 0.1 < line["accuracy"] == line["curve"][-1] <= 1
    assert line["sparsity"] == pytest.approx(0.9, abs=0.01)
    found = tried.done()[CORRUPTED, SNIP, 1]
    assert 0 < found["corrupted"] <= 1
    measures = {row["measure"]: row["values"] for row in paper.measured(tried)}
    assert measures["accuracy"] == {1: pytest.approx(100 * line["accuracy"])}
    assert set(measures) == {"accuracy", "epochs", "clean", "corrupted"}


def test_what_is_done_is_not_done_again(tried, monkeypatch):
    seen = []
    monkeypatch.setattr(tried, "train", lambda *job: not seen.append(job))
    monkeypatch.setattr(tried, "corrupt", lambda *_: True)
    monkeypatch.setattr(tried, "done", lambda: {(TRAINING, SNIP, 0): {}})
    monkeypatch.setattr(tried, "values", dict)
    monkeypatch.setitem(TABLES, "T1", TABLES["T1"]._replace(few=[SNIP, ZO]))
    assert paper.execute(tried, ["T1"], 2, "1/1")
    assert seen == [(ZO, 0), (SNIP, 1), (ZO, 1)]
    seen.clear()
    assert paper.execute(tried, ["T1"], 2, "2/2")
    assert seen == [(ZO, 0), (ZO, 1)]


def test_what_the_result_file_has_is_kept_and_not_done_again(tmp_path, monkeypatch):
    monkeypatch.setitem(TABLES, "T1", TABLES["T1"]._replace(few=[SNIP, ZO]))
    monkeypatch.setitem(TABLES, "T5", TABLES["T5"]._replace(cells=[SNIP]))
    first, second = (
        Paper("smoke", tmp_path / name, None, tmp_path / "paper.json") for name in "ab"
    )
    figures = {"accuracy": 0.5, "curve": [0.5], "sparsity": 0.9, "diverged": False}
    first.note(TRAINING, SNIP, 0, figures)
    paper.merge(first)
    seen = []

    def train(cell, seed):
        seen.append((TRAINING, cell, seed))
        second.note(TRAINING, cell, seed, {**figures, "accuracy": 0.25})
        return True

    monkeypatch.setattr(second, "train", train)
    corrupt = lambda *job: not seen.append((CORRUPTED, *job))  # noqa: E731
    monkeypatch.setattr(second, "corrupt", corrupt)
    assert paper.execute(second, ["T1"], 1, "1/1")
    assert seen == [(TRAINING, ZO, 0)]
    paper.merge(second)
    assert second.values()[SNIP, "accuracy"] == {0: 50}
    assert second.values()[ZO, "accuracy"] == {0: 25}
    # To be evaluated it has to be trained here: its network is not in the file.
    seen.clear()
    assert paper.execute(second, ["T5"], 1, "1/1")
    assert seen == [(TRAINING, SNIP, 0), (CORRUPTED, SNIP, 0)]
    # A file of another scale counts for nothing, or of one with another target.
    other = Paper("medium", tmp_path / "c", None, tmp_path / "paper.json")
    assert not other.values()
    moved = SCALES["smoke"]._replace(target=0.5)
    monkeypatch.setitem(SCALES, "smoke", moved)
    assert not Paper("smoke", tmp_path / "c", None, tmp_path / "paper.json").values()


def test_a_training_that_diverges_is_noted(tmp_path, monkeypatch):
    def diverging(*_, **__):
        raise Divergence("the loss is not finite at step 3")

    monkeypatch.setattr(paper.train, "run", diverging)
    made = Paper("smoke", tmp_path, None, tmp_path / "paper.json")
    assert made.train(SNIP, 0)
    (found,) = (r for r in paper.measured(made) if r["measure"] == "accuracy")
    assert found["values"] == {0: None}


def test_nothing_is_merged_of_nothing(tmp_path):
    with pytest.raises(SystemExit, match="has no lines: run"):
        paper.merge(Paper("smoke", tmp_path, None, tmp_path / "paper.json"))
    assert not (tmp_path / "paper.json").exists()


def test_a_log_of_another_scale_is_refused(tried, tmp_path):
    medium = Paper("medium", tmp_path, None, tmp_path / "paper.json")
    log = record.Log(tried.log.path, medium.log.settings)
    with pytest.raises(SystemExit, match="other settings"):
        log.rows()
