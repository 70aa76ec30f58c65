"""Errors of labels and of values, against scikit-learn."""

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics

from zosam_jax import analysis


def outputs(params, batch):
    return batch + params


def in_batches(outputs, labels, fill, size=16):
    """Batches of one size; the last is filled up with rows that do not count."""
    for start in range(0, len(labels), size):
        x, y = outputs[start : start + size], labels[start : start + size]
        short = [(0, size - len(y)), (0, 0)]
        yield jnp.asarray(np.pad(x, short)), np.pad(y, short, constant_values=fill)


def test_the_figures_of_labels_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    has = rng.uniform(size=(50, 4)) < (0.5, 0.2, 0.8, 0.3)
    # Ties, which average precision takes together.
    logits = np.round(2 * has - 1 + rng.normal(0, 1.5, has.shape), 1)
    batches = in_batches(logits.astype(np.float32), has.astype(np.int8), -1)
    found = analysis.label_errors(outputs, 0.0, batches)
    assert len(found.labels) == 50
    np.testing.assert_array_equal(found.labels, has)
    np.testing.assert_allclose(found.probabilities, 1 / (1 + np.exp(-logits)), 1e-6)
    predicted = logits > 0
    wanted = metrics.precision_recall_fscore_support(has, predicted)
    each = found.precision, found.recall, found.f1
    np.testing.assert_allclose(each, wanted[:3])
    average = metrics.average_precision_score(has, found.probabilities, average=None)
    np.testing.assert_allclose(found.average_precision, average)
    assert found.accuracy == np.mean(predicted == has)


def test_a_label_that_nothing_defines_has_no_figure():
    """No example has the first label; the second is never predicted."""
    has = np.array([[0, 1], [0, 0]], np.int8)
    logits = np.array([[1.0, -1.0], [-1.0, -2.0]], np.float32)
    found = analysis.label_errors(outputs, 0.0, [(logits, has)])
    np.testing.assert_array_equal(found.precision, [0, np.nan])
    np.testing.assert_array_equal(found.recall, [np.nan, 0])
    np.testing.assert_array_equal(found.f1, [0, 0])
    np.testing.assert_array_equal(found.average_precision, [np.nan, 1])


def test_the_figures_of_values_are_those_of_scikit_learn():
    rng = np.random.default_rng(1)
    true = rng.normal(5, (1, 2, 3), (50, 3)).astype(np.float32)
    guess = (true + rng.normal(0.5, (0.1, 1, 4), true.shape)).astype(np.float32)
    found = analysis.value_errors(outputs, 0.0, in_batches(guess, true, np.nan))
    np.testing.assert_array_equal(found.labels, true)
    np.testing.assert_allclose(found.residuals, guess.astype(float) - true)
    raw = {"multioutput": "raw_values"}
    squares = metrics.mean_squared_error(true, guess, **raw)
    np.testing.assert_allclose(found.rmse, np.sqrt(squares), 1e-5)
    mae = metrics.mean_absolute_error(true, guess, **raw)
    np.testing.assert_allclose(found.mae, mae, 1e-5)
    np.testing.assert_allclose(found.r2, metrics.r2_score(true, guess, **raw), 1e-5)
    pooled = metrics.r2_score(true, guess, multioutput="variance_weighted")
    assert found.total_r2 == pytest.approx(pooled, rel=1e-5)
    equal = analysis.ValueErrors(np.ones((3, 1)), np.zeros((3, 1)))
    np.testing.assert_array_equal(equal.r2, [np.nan])


@pytest.mark.parametrize(
    ("instrument", "labels", "message"),
    [
        ("label_errors", np.full((2, 1), -1), "no row of labels counts"),
        ("value_errors", np.full((2, 1), np.nan), "no row of values counts"),
        ("value_errors", np.zeros((2, 2)), r"outputs are \[2, 1\] and the labels \[2"),
        ("label_errors", None, "batches is empty"),
    ],
)
def test_what_has_no_errors_is_said(instrument, labels, message):
    batches = [] if labels is None else [(np.zeros((2, 1), np.float32), labels)]
    with pytest.raises(ValueError, match=message):
        getattr(analysis, instrument)(outputs, 0.0, batches)
