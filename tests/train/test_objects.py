"""The user's own gradient, method, optimizer, loss, model and data set in a run."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_run

import zosam_jax as zs
from zosam_jax.evaluate import evaluate
from zosam_jax.runs import record
from zosam_jax.train import RunError, TrainConfig, load_run, objects, optimizers, run

STEPS = 12  # Of three epochs.


def squares(outputs, labels):
    """The Brier score."""
    return jnp.sum((jax.nn.softmax(outputs) - jax.nn.one_hot(labels, 4)) ** 2, -1)


OBJECTS = {
    "gradient": lambda: zs.vasso(rho=0.1),
    "method": lambda: zs.sparsity.set_(0.5, STEPS, interval=3, seed=7),
    "optimizer": lambda: optax.adam(1e-2),
    "loss": lambda: squares,
}
KINDS = {
    "gradient": "vasso (given)",
    "method": "set_ (given)",
    "optimizer": "ScaleByAdam (given)",
    "loss": "squares (given)",
}


def given(kind):
    """A run's arguments with one object of its own, beside model and data set."""
    return {"dataset": tiny_run.dataset(), "model": tiny_run.Net()} | own(kind)


def own(kind):
    return {kind: OBJECTS[kind]()} if kind else {}


def config(out, kind, **fields):
    usual = {"gradient": "backprop", "method": "dense", "epochs": 3}
    return tiny_run.config(out, **{**usual, **fields}, update_interval=None)


@pytest.mark.parametrize("kind", OBJECTS)
def test_a_given_object_trains_resumes_and_is_reported(tmp_path, kind):
    programs = tiny_run.prepare(config(tmp_path / "a", kind), **own(kind))
    whole = run(config(tmp_path / "a", kind), compiled=programs, **given(kind))
    assert whole.status == "finished"
    plain = run(config(tmp_path / "plain", kind), **given(""))
    assert whole.summary["test_loss"] != plain.summary["test_loss"]
    if kind == "method":
        assert whole.summary["sparsity"] == 0.5

    show = tiny_run.Recorder(6)
    path, given_too = tmp_path / "b", given(kind)
    cut = run(config(path, kind), display=show, compiled=programs.again(), **given_too)
    assert cut.status == "interrupted"
    again = run(config(path, kind), compiled=programs.again(), **given_too)
    a, b = (
        load_run.load(tmp_path / name, **given(kind)).variables for name in ("a", "b")
    )
    tiny_run.assert_same(a, b)
    assert again.summary["test_loss"] == whole.summary["test_loss"]

    (found,) = record.read_all([tmp_path / "a"])
    assert found.summary == whole.summary
    stored = json.loads((tmp_path / "a" / "config.json").read_text())
    assert stored["objects"] == {
        "dataset": "quadrants (given)",
        "model": "Net (given)",
        kind: KINDS[kind],
    }
    figures = evaluate(
        tmp_path / "a", corruptions=("fog",), severities=(1,), **given(kind)
    )
    assert figures["clean"]["accuracy"] == whole.summary["test_accuracy"]
    assert np.isclose(figures["clean"]["loss"], whole.summary["test_loss"], rtol=1e-5)


def test_a_run_is_not_continued_without_its_object_or_with_another(tmp_path):
    path = tmp_path / "run"
    run(config(path, "gradient"), display=tiny_run.Recorder(2), **given("gradient"))
    with pytest.raises(RunError, match=r"gradient, vasso \(given\), and none is"):
        run(config(path, "gradient"), **given(""))
    other = given("") | {"gradient": zs.sam(0.1)}
    with pytest.raises(RunError, match=r"sam \(given\) is given here"):
        run(config(path, "gradient"), **other)
    with pytest.raises(RunError, match="optimizer that its configuration names"):
        run(config(path, "x"), **given("gradient"), optimizer=optax.adam(1e-2))
    assert run(config(path, "x"), **given("gradient")).status == "finished"
    with pytest.raises(RunError, match="none is given here"):
        load_run.load(path, **given(""))


def test_a_run_of_an_older_version_has_no_record_of_objects(tmp_path):
    path = tmp_path / "run"
    run(config(path, ""), **given(""))
    stored = json.loads((path / "config.json").read_text())
    del stored["objects"]
    stored["config"]["ticket"] = None
    (path / "config.json").write_text(json.dumps(stored))
    found = load_run.load(path, **given(""))
    assert found.config.method == "dense"
    assert run(config(path, ""), **given("")).status == "unchanged"


@pytest.mark.parametrize(
    ("fields", "kind", "part"),
    [
        ({"rho": 0.3}, "gradient", "rho=0.3 is for a gradient"),
        ({"gradient_options": ("x=1",)}, "gradient", "gradient_options"),
        ({"budget": "uniform"}, "method", "budget='uniform' is for a method"),
        ({"gradient": "gsam", "gradient_options": ("rho_min=0",)}, "optimizer", "rate"),
        ({"probe_fraction": 0.5}, "", "whose ascent step only finds a direction"),
    ],
)
def test_fields_of_a_name_do_not_go_with_an_object(tmp_path, fields, kind, part):
    with pytest.raises(RunError, match=part):
        run(config(tmp_path / "run", kind, **fields), **given(kind))


@pytest.mark.parametrize(
    ("kind", "wrong", "part"),
    [
        ("gradient", 5, "must be a GradientEstimator, .* got int"),
        ("gradient", lambda: optax.sgd(0.1), "it returned GradientTransform.*, and"),
        ("gradient", lambda: 1 / 0, "raised ZeroDivisionError in test_objects.py, li"),
        ("gradient", functools.partial(zs.sam, rho=-1), "rho=-1 must be"),
        ("method", "rigl", "method= must be a SparseMethod"),
        ("method", lambda sparsity: {}, "it returned dict, and must return a Sparse"),
        ("optimizer", 0.1, "optimizer= must be a"),
        ("optimizer", optax.identity, "optimizer=identity has no parameter learning_"),
        ("optimizer", lambda learning_rate: 3, "returned int, and must return an opt"),
        ("model", 3, "model= must be a Linen module"),
        ("model", lambda train: 3, "raised TypeError: "),
        ("model", lambda: 3, "model= must be a Linen module"),
    ],
)
def test_what_is_no_such_object_is_refused(kind, wrong, part):
    chosen, usual = config("no folder", ""), {"model": tiny_run.Net()}
    with pytest.raises(RunError, match=part):
        tiny_run.prepare(chosen, tiny_run.dataset(), **usual | {kind: wrong})


def test_a_function_for_the_data_set_must_return_one():
    nothing = objects.Objects(dataset=lambda: None)
    with pytest.raises(RunError, match="returned None, and must return a zosam_jax"):
        nothing.made()


class Wide(tiny_run.Net):
    """It has parameters for what the trainer knows, and an option."""

    num_classes: int
    width: float
    features: int = 1


def test_constructors_get_the_fields_of_the_configuration():
    chosen = tiny_run.config(
        "no folder",
        model="mine",
        gradient="mine",
        method="mine",
        optimizer="mine",
        rho=0.3,
        gradient_options=("steps=2",),
        update_interval=2,
        method_options=("soft=True",),
        model_options=("features=3",),
        width=2.0,
        momentum=0.5,
    )
    seen = {}

    def rule(learning_rate, momentum, weight_decay, mask):
        seen.update(momentum=momentum, weight_decay=weight_decay, mask=mask)
        return optax.sgd(learning_rate, momentum)

    made = tiny_run.prepare(
        chosen,
        model=Wide,
        gradient=zs.sam,
        method=zs.sparsity.mest,
        optimizer=rule,
    ).experiment
    assert (made.model.num_classes, made.model.width, made.model.features) == (4, 2, 3)
    assert "sam(rho=0.3, steps=2, " in repr(made.gradient)
    assert "mest(sparsity=0.5, total_steps=12, soft=True, interval=2" in repr(
        made.method
    )
    assert seen == {"momentum": 0.5, "weight_decay": 5e-4, "mask": None}
    assert made.learning_rate(0) == chosen.learning_rate
    assert made.labels["optimizer"].endswith("rule (given)")


def test_the_weight_decay_reaches_an_optimizer_without_one():
    chosen = TrainConfig(weight_decay=0.5, clip_norm=1.0)
    rule = optimizers.update_rule(chosen, lambda _: 0.1, (), optax.sign_sgd)
    weights = jnp.asarray([2.0, -4.0])
    updates, _ = rule.update(jnp.zeros(2), rule.init(weights), weights)
    # The gradient is 0, and the decay's is (1, -2): the step is against its signs.
    np.testing.assert_allclose(np.asarray(updates), [-0.1, 0.1], rtol=1e-6)


def test_a_field_that_a_constructor_does_not_take_is_refused():
    for fields, kind, make in (
        ({"rho": 0.2}, "gradient", zs.backprop),
        ({"momentum": 0.5}, "optimizer", optax.adam),
        ({"width": 2.0}, "model", tiny_run.Net),
    ):
        chosen = config("no folder", kind, **fields)
        with pytest.raises(RunError, match="has no effect: the constructor of the"):
            tiny_run.prepare(chosen, **{kind: make})


def test_a_given_gradient_may_look_at_part_of_the_batch(tmp_path):
    """As the named one does, to the same bits."""
    fields = {"probe_fraction": 0.5, "epochs": 1}
    chosen = config(tmp_path / "a", "", gradient="sam", **fields)
    named = run(chosen, **given(""))
    chosen = dataclasses.replace(chosen, out=str(tmp_path / "b"), gradient="mine")
    own = run(chosen, **given(""), gradient=zs.sam())
    assert own.summary["test_loss"] == named.summary["test_loss"]


def test_given_model_and_data_need_no_names(tmp_path):
    chosen = TrainConfig(
        dataset="mine", model="mine", out=str(tmp_path), epochs=1, method="dense"
    )
    chosen = dataclasses.replace(chosen, batch_size=16)
    result = run(chosen, **given(""))
    assert np.isfinite(result.summary["test_loss"])
