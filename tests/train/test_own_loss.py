"""A loss of the user's own: where it is used, what it is given, what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_run

from zosam_jax.analysis import of_runs
from zosam_jax.evaluate import evaluate
from zosam_jax.train import RunError, divergence, load_run, run
from zosam_jax.train.loss import checked, cross_entropy

USUAL = {"gradient": "backprop", "method": "snip", "epochs": 2, "weight_decay": 0.0}
GIVEN = {"dataset": tiny_run.dataset(), "model": tiny_run.Net()}


def doubled(outputs, labels):
    return 2 * cross_entropy(outputs, labels) - 8


@pytest.fixture(scope="module")
def twice(tmp_path_factory):
    """A run of twice the cross-entropy, below 0, at half of the learning rate."""
    out = tmp_path_factory.mktemp("twice") / "run"
    chosen = tiny_run.config(out, **USUAL, learning_rate=0.05)
    return run(chosen, **GIVEN, loss=doubled)


def test_training_and_masks_are_those_of_the_loss(twice, tmp_path):
    chosen = tiny_run.config(tmp_path / "run", **USUAL, learning_rate=0.1)
    once = run(chosen, **GIVEN)
    found, wanted = (
        load_run.load(each.folder, model=tiny_run.Net()) for each in (twice, once)
    )
    tiny_run.assert_same(found.masks, wanted.masks)
    # A power of two changes no other bit.
    tiny_run.assert_same(found.params, wanted.params)
    for figure in ("train_loss", "test_loss"):
        wanted = 2 * once.summary[figure] - 8
        np.testing.assert_allclose(twice.summary[figure], wanted, rtol=1e-5)
        assert twice.summary[figure] < 0
    assert twice.summary["test_accuracy"] == once.summary["test_accuracy"]


def test_an_evaluation_is_of_its_loss(twice, tmp_path):
    asked = {"corruptions": ("fog",), "severities": (1,), "out": tmp_path, **GIVEN}
    own = evaluate(twice.folder, loss=doubled, **asked)
    np.testing.assert_allclose(
        own["clean"]["loss"], twice.summary["test_loss"], rtol=1e-5
    )
    # Results of one loss are not taken for those of another, of the same weights.
    net = load_run.load(twice.folder, model=tiny_run.Net())
    plain = evaluate(net.save(tmp_path / "net.safetensors"), **asked)
    np.testing.assert_allclose(
        own["clean"]["loss"], 2 * plain["clean"]["loss"] - 8, rtol=1e-5
    )


def test_analysis_and_loading_use_the_loss(twice):
    settings = of_runs.Settings(
        parts=("masks",), split="test", images=22, batch_size=22
    )
    found = of_runs.analyze(twice.folder, settings, **GIVEN, loss=doubled)
    np.testing.assert_allclose(
        found["runs"][0]["loss"], twice.summary["test_loss"], rtol=1e-5
    )
    with pytest.raises(RunError, match=r"loss, doubled \(given\), and none is"):
        of_runs.analyze(twice.folder, settings, **GIVEN)
    # Its predictions need none.
    net = load_run.load(twice.folder, model=tiny_run.Net())
    assert len(net.predict(GIVEN["dataset"].test_images)) == 22


def test_scores_of_masks_are_of_the_loss():
    """The loss reads the first output alone, so no other one has weights left."""
    programs = tiny_run.prepare(
        tiny_run.config("no folder", method="snip", gradient="backprop"),
        loss=lambda outputs, labels: jnp.square(outputs[:, 0] - labels),
    )
    state = tiny_run.begin(programs.experiment)
    kernel = np.asarray(state.params["head"]["kernel"])
    np.testing.assert_array_equal(kernel.any(0), [True, False, False, False])


def prepare(loss, **fields):
    usual = {"gradient": "esam", "method": "dense"} | fields
    return tiny_run.prepare(tiny_run.config("no folder", **usual), loss=loss)


def test_advice_on_a_loss_that_is_not_finite_names_what_can_be_changed():
    chosen = tiny_run.config("no folder", gradient="sam", method="dense")
    usual = tiny_run.prepare(chosen).experiment
    assert divergence.advice(chosen, usual) == (
        "Try, with another --out, a lower --learning-rate (now 0.1), --clip-norm 1 or "
        "a smaller --rho (now 0.05)."
    )
    own = tiny_run.prepare(chosen, loss=doubled, optimizer=optax.adam(1e-3)).experiment
    assert divergence.advice(chosen, own) == (
        "See that doubled (given) is finite for every output and label. Try, with "
        "another --out, a lower learning rate of ScaleByAdam (given), --clip-norm 1 "
        "or a smaller --rho (now 0.05)."
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_given_outputs_and_labels(smoothing):
    seen = set()

    def loss(outputs, labels):
        seen.add((outputs.shape, outputs.dtype.name, labels.shape, labels.dtype.name))
        return cross_entropy(outputs, labels)

    prepare(loss, label_smoothing=smoothing, dtype="bfloat16")
    trained = ((16, 4), "float32") if smoothing else ((16,), "int32")
    assert ((16, 4), "float32", *trained) in seen
    assert ((22, 4), "float32", (22,), "int32") in seen


def test_losses_of_tokens_are_averaged():
    """Also where the labels are probabilities, of another shape than the losses."""
    rng = np.random.default_rng(0)
    outputs, labels = rng.normal(size=(2, 2, 3, 5)).astype(np.float32)
    loss = checked(lambda o, y: jnp.sum(o * y, -1), "mine")
    wanted = np.mean(np.sum(outputs * labels, -1), -1)
    np.testing.assert_allclose(loss(outputs, labels), wanted, rtol=1e-5)


@pytest.mark.parametrize(
    ("loss", "part"),
    [
        (lambda outputs, labels: jnp.mean(outputs), r"returned float32\[\] for"),
        (
            lambda outputs, labels: outputs[:, :1] - labels,
            r"returned float32\[16,16\] for outputs float32\[16,4\].*for each",
        ),
        (
            lambda outputs, labels: outputs - labels,
            "loss=<lambda> raised ValueError for",
        ),
        (lambda outputs: outputs, "must be a function .*; it takes"),
        ("mse", "loss='mse' must be a function"),
        (
            functools.partial(lambda o, y, k: k(o, y), k=lambda o, y: float(o[0, 0])),
            "raised ConcretizationTypeError",
        ),
    ],
)
def test_what_is_no_loss_of_examples_is_refused(loss, part):
    with pytest.raises(RunError, match=part):
        prepare(loss)


def test_a_loss_that_cannot_evaluate_is_refused_before_the_training():
    """It takes the smoothed labels of training, and not the classes of the test set."""
    with pytest.raises(RunError, match=r"raised ValueError .* labels int32\[22\]"):
        prepare(lambda o, y: jnp.sum(jax.nn.softmax(o) * y, -1), label_smoothing=0.1)
