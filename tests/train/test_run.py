"""Whole runs of a tiny network, in this process."""

import dataclasses
import json
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run
from tiny_run import Recorder

import zosam_jax as zs
from zosam_jax.runs import folder, metrics
from zosam_jax.train import Divergence, RunError, checkpoint, learning_rates, loop, run
from zosam_jax.train import step as steps
from zosam_jax.train.checkpoint import Checkpoints


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run of three epochs."""
    path = tmp_path_factory.mktemp("whole") / "run"
    show = Recorder()
    result = tiny_run.again(path, display=show)
    return result, tiny_run.final(path), show


@pytest.mark.quick
def test_a_run_leaves_its_record(whole):
    result, _, show = whole
    assert result.status == "finished"
    records = metrics.read(result.folder / "metrics.jsonl")
    assert [(r["step"], r["split"]) for r in records] == [
        (step, split) for step in (4, 8, 12) for split in ("train", "test")
    ]
    train = records[-2]
    assert train["perturbation_norm"] == pytest.approx(0.05, rel=1e-5)
    assert train["unperturbed_steps"] == 0
    assert train["learning_rate"] == pytest.approx(
        0.05 * (1 + np.cos(np.pi * 11 / 12)), rel=1e-5
    )
    summary = json.loads((result.folder / "summary.json").read_text())
    assert summary == result.summary
    assert summary["test_accuracy"] == records[-1]["accuracy"]
    assert set(summary["compile_seconds_by_program"]) == {
        "order",
        "train",
        "evaluate",
        "init",
    }
    assert [s.step for s in show.seen] == sorted(s.step for s in show.seen)
    assert show.seen[-1].sparsity == summary["sparsity"]


@pytest.mark.quick
def test_sparsity_is_exact_and_counted_twice(whole):
    result, state, _ = whole
    # 3 x 3 x 1 x 8 and 8 x 4 weights are sparsified; 8 + 8 + 8 + 4 are not.
    assert result.summary["parameters"] == 104 + 28
    assert result.summary["parameters_sparsified"] == 104
    assert result.summary["sparsity"] == 0.5
    assert result.summary["sparsity_all"] == 52 / 132
    assert result.summary["parameters_live"] == 80
    layers = result.summary["layers"]
    conv, head = (layers[f"{name}/kernel"] for name in ("conv", "head"))
    assert len(layers) == 2
    assert 72 * conv + 32 * head == pytest.approx(52)
    # The convolution is applied at 36 places.
    share = (36 * 72 * conv + 32 * head) / (36 * 72 + 32)
    assert result.summary["flops_share"] == pytest.approx(share)
    masks = zs.sparsity.masks(state.opt_state)
    for mask, x in zip(
        jax.tree.leaves(masks), jax.tree.leaves(state.params), strict=True
    ):
        if np.ndim(mask):
            assert not np.any(x[~np.asarray(mask)])


@pytest.mark.quick
def test_the_figures_are_those_of_the_final_parameters(whole):
    """Test loss and accuracy against NumPy over the whole test set at once."""
    result, state, _ = whole
    data = tiny_run.dataset()
    images = (data.test_images / 255 - 0.3) / 0.2
    variables = {"params": state.params, **state.model_state}
    logits = np.asarray(
        tiny_run.Net().apply(variables, images.astype(np.float32), train=False)
    ).astype(np.float64)
    peak = logits.max(1, keepdims=True)
    log_sum = np.log(np.exp(logits - peak).sum(1)) + peak[:, 0]
    losses = log_sum - logits[np.arange(22), data.test_labels]
    assert result.summary["test_loss"] == pytest.approx(losses.mean(), rel=1e-5)
    right = (logits.argmax(1) == data.test_labels).mean()
    assert result.summary["test_accuracy"] == pytest.approx(right)


def test_a_finished_run_does_nothing(whole):
    result, _, _ = whole
    before = {p: p.stat().st_mtime_ns for p in result.folder.rglob("*")}
    show = Recorder()
    again = tiny_run.train(result.folder, display=show, keep=5)
    assert again.status == "unchanged"
    assert again.summary == result.summary
    assert "finished already" in show.said[0]
    assert before == {p: p.stat().st_mtime_ns for p in result.folder.rglob("*")}


@pytest.mark.parametrize("step", [2, 4])
def test_a_signal_leaves_a_checkpoint_and_the_run_goes_on(whole, tmp_path, step):
    """Step 2 is within an epoch, step 4 at the end of one."""
    show = Recorder(step)
    path = tmp_path / "run"
    cut = tiny_run.again(path, display=show)
    assert (cut.status, cut.signal) == ("interrupted", signal.SIGTERM)
    assert "goes on" in show.said[-1]
    assert not (path / "summary.json").exists()
    stopped = int(tiny_run.final(path).step)
    assert step <= stopped < 12
    result = tiny_run.again(path)
    assert result.status == "finished"
    tiny_run.assert_same(tiny_run.final(path), whole[1])
    old = metrics.read(whole[0].folder / "metrics.jsonl")
    new = metrics.read(path / "metrics.jsonl")
    for a, b in zip(old, new, strict=True):
        for name in ("step", "split", "loss", "accuracy", "sparsity"):
            assert a[name] == b[name]
    sessions = folder.read_config(path)["sessions"]
    assert [s["step"] for s in sessions] == [0, stopped]


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(whole, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(whole[0].folder, path)
    (path / "summary.json").unlink()
    for file in (path / "checkpoints" / "12" / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(b"noise")
    show = Recorder()
    result = tiny_run.again(path, display=show)
    assert result.status == "finished"
    said = " ".join(show.said)
    assert "step 12 is damaged" in said
    assert "the one before it, of step 8" in said
    tiny_run.assert_same(tiny_run.final(path), whole[1])


def test_one_compiled_loop_equals_a_loop_of_steps(whole, tmp_path):
    path = tmp_path / "run"
    result = tiny_run.again(path, loop="scan")
    state = tiny_run.final(path, loop="scan")
    for x, y in zip(jax.tree.leaves(state), jax.tree.leaves(whole[1]), strict=True):
        np.testing.assert_allclose(np.float32(x), np.float32(y), rtol=2e-3, atol=2e-4)
    assert result.summary["test_loss"] == pytest.approx(
        whole[0].summary["test_loss"], rel=1e-3
    )


def test_the_step_is_traced_once(tmp_path, monkeypatch):
    traces = []
    step = steps.train_step

    def counted(*arguments):
        traces.append(1)
        return step(*arguments)

    monkeypatch.setattr(steps, "train_step", counted)
    tiny_run.train(tmp_path / "run", gradient="backprop", method="dense")
    assert len(traces) == 1


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, monkeypatch):
    """The seventh update is NaN, so the eighth loss is the first bad one."""
    broken = lambda c, *_: lambda t: jnp.where(t == 6, jnp.nan, c.learning_rate)  # noqa: E731
    monkeypatch.setitem(learning_rates.SCHEDULES, "constant", broken)
    path = tmp_path / "run"
    with pytest.raises(Divergence, match=r"not finite at step 8 \(epoch 2\)") as error:
        tiny_run.train(path, schedule="constant")
    assert "The last good checkpoint is that of step 4" in str(error.value)
    for flag in ("--learning-rate", "--clip-norm", "--rho (now 0.05)"):
        assert flag in str(error.value)
    assert not (path / "summary.json").exists()
    assert int(tiny_run.final(path, schedule="constant").step) == 4
    assert [r["step"] for r in metrics.read(path / "metrics.jsonl")] == [4, 4]


def test_a_state_that_is_not_finite_is_never_saved(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "is_finite", lambda state: False)
    with pytest.raises(RunError, match="not finite"):
        tiny_run.train(tmp_path / "run", gradient="backprop", method="dense", epochs=1)
    assert not any((tmp_path / "run" / "checkpoints").iterdir())


def test_a_disk_that_fills_up_keeps_the_earlier_checkpoint(tmp_path, monkeypatch):
    save = Checkpoints.save

    def full(self, step, *arguments):
        if step == 8:
            raise RunError("No space left on device.")
        save(self, step, *arguments)

    monkeypatch.setattr(Checkpoints, "save", full)
    path = tmp_path / "run"
    with pytest.raises(RunError, match="No space"):
        tiny_run.train(path, gradient="backprop", method="dense")
    monkeypatch.undo()
    result = tiny_run.train(path, gradient="backprop", method="dense")
    assert result.status == "finished"
    assert folder.read_config(path)["sessions"][1]["step"] == 4


def test_nothing_is_written_before_the_checks(tmp_path, monkeypatch):
    usage = folder.shutil.disk_usage(tmp_path)._replace(free=10)
    path = tmp_path / "run"
    bad = [
        ({"batch_size": 71}, "batch_size=71 is more than the 70 training images"),
        ({"sparsity": 0.999}, "sparsity=0.999"),
    ]
    for fields, part in bad:
        with pytest.raises(RunError, match=part):
            tiny_run.train(path, **fields)
    for fields, part in (
        ({"model": "resnet21"}, "Did you mean"),
        ({"dataset": "digit"}, "Did you mean 'digits'"),
    ):
        config = dataclasses.replace(tiny_run.config(path, dataset="digits"), **fields)
        if "dataset" in fields:
            config = dataclasses.replace(config, model="resnet20")
        with pytest.raises(RunError, match=part):
            run(config)
    monkeypatch.setattr(folder.shutil, "disk_usage", lambda p: usage)
    with pytest.raises(RunError, match="MiB left"):
        tiny_run.train(path)
    assert not path.exists()


@pytest.mark.parametrize(
    ("method", "optimizer", "fields"),
    [
        ("snip", "adamw", {"learning_rate": 1e-3, "clip_norm": 1.0}),
        ("set", "rmsprop", {"learning_rate": 1e-3, "update_interval": 2}),
        ("magnitude", "lion", {"learning_rate": 1e-4, "dtype": "bfloat16"}),
        ("random", "adafactor", {"learning_rate": 1e-3, "gradient": "esam"}),
        ("grasp", "sgd", {"gradient": "backprop"}),
        ("synflow", "sgd", {"gradient": "backprop"}),
        ("srigl", "sgd", {"update_interval": 1}),
        (
            "nm",
            "sgd",
            {
                "method_options": ("n=2", "m=4"),
                "dense": ("conv/*",),
                "update_interval": 1,
            },
        ),
        ("gmp", "sgd", {"update_interval": 1, "budget": "global"}),
        ("safe", "sgd", {"update_interval": 1, "method_options": ("strength=0.01",)}),
        ("ste", "adamw", {"method_options": ("decay=2e-4",), "learning_rate": 1e-3}),
        ("mest", "sgd", {"method_options": ("soft=True", "gradient_weight=0.1")}),
        ("dsr", "sgd", {"gradient": "backprop", "update_interval": 1, "epochs": 3}),
    ],
)
def test_other_rows_of_the_tables_train(tmp_path, method, optimizer, fields):
    fields = {"epochs": 1, **fields}
    result = tiny_run.train(
        tmp_path / "run", method=method, optimizer=optimizer, **fields
    )
    if method == "srigl":  # A fan-in is a whole number, rounded down.
        assert result.summary["sparsity"] > 0.5
    else:
        assert result.summary["sparsity"] == 0.5
    assert np.isfinite(result.summary["test_loss"])


def test_loop_module_is_loaded_on_first_use_only():
    from zosam_jax import train

    assert train.run is loop.run
    with pytest.raises(AttributeError, match="no attribute 'runs'"):
        train.runs  # noqa: B018
