import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zosam_jax.evaluate import calibration


def plain_error(probabilities, labels, num_bins):
    """Guo et al., equations 2, 3 and 5, one prediction at a time."""
    total, n = 0.0, len(labels)
    for b in range(num_bins):
        low, high = b / num_bins, (b + 1) / num_bins
        inside = [
            (p.max(), float(p.argmax() == y))
            for p, y in zip(probabilities, labels, strict=True)
            if low < p.max() <= high
        ]
        if inside:
            confidence, accuracy = np.mean(inside, 0)
            total += len(inside) / n * abs(accuracy - confidence)
    return total


@pytest.mark.parametrize("num_bins", [1, 10, 15])
@pytest.mark.parametrize("classes", [2, 10])
def test_the_error_is_that_of_a_plain_loop(classes, num_bins):
    rng = np.random.default_rng(classes)
    logits = rng.normal(0, 3, (500, classes)).astype(np.float32)
    labels = rng.integers(0, classes, 500)
    scaled = np.exp(logits.astype(np.float64))
    probabilities = scaled / scaled.sum(1, keepdims=True)
    found = calibration.bins(jnp.array(logits), jnp.array(labels), num_bins=num_bins)
    # float32 sums of 500 numbers below 1.
    expected = plain_error(probabilities, labels, num_bins)
    assert calibration.error(found) == pytest.approx(expected, abs=2e-6)
    assert np.sum(found.predictions) == 500
    correct = np.sum(probabilities.argmax(1) == labels)
    assert np.sum(found.correct) == correct


def two_classes(confidence, count, right):
    """Predictions of class 0 at a confidence, of which some are right."""
    logits = np.zeros((count, 2), np.float32)
    logits[:, 0] = np.log(confidence / (1 - confidence))
    return logits, (np.arange(count) >= right).astype(np.int32)


def test_cases_made_by_hand():
    # Right as often as it says.
    good = [two_classes(c, 100, round(100 * c)) for c in (0.55, 0.7, 0.95)]
    logits, labels = (np.concatenate(x) for x in zip(*good, strict=True))
    assert calibration.error(calibration.bins(logits, labels)) < 1e-6
    # Sure, and always wrong; sure, and always right.
    logits = np.tile(np.array([[50.0, 0.0]], np.float32), (10, 1))
    wrong, right = np.ones(10, np.int32), np.zeros(10, np.int32)
    assert calibration.error(calibration.bins(logits, wrong)) == pytest.approx(1)
    assert calibration.error(calibration.bins(logits, right)) == pytest.approx(0)
    # 0.8 said and 0.5 true, for half of the predictions; the others are right.
    parts = [two_classes(0.8, 10, 5), (logits, right)]
    logits, labels = (np.concatenate(x) for x in zip(*parts, strict=True))
    found = calibration.bins(logits, labels)
    assert calibration.error(found) == pytest.approx(0.5 * 0.3, abs=1e-6)
    share, confidence, accuracy = calibration.reliability(found)
    assert (share[11], share[14]) == (0.5, 0.5)
    assert (confidence[11], accuracy[11]) == (pytest.approx(0.8), 0.5)
    assert np.isnan(confidence[0])
    assert np.isnan(accuracy[0])


def test_bins_add_up_and_weights_leave_out():
    rng = np.random.default_rng(0)
    logits = jnp.array(rng.normal(0, 2, (60, 5)), jnp.float32)
    labels = jnp.array(rng.integers(0, 5, 60))
    whole = jax.jit(calibration.bins)(logits, labels)
    parts = [calibration.bins(logits[i : i + 20], labels[i : i + 20]) for i in (0, 20)]
    weights = (jnp.arange(60) >= 40).astype(jnp.float32)
    parts.append(calibration.bins(logits, labels, weights))
    total = jax.tree.map(lambda *x: sum(x), *parts)
    for a, b in zip(whole, total, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_nothing_has_no_error():
    none = calibration.bins(jnp.zeros((0, 3)), jnp.zeros((0,), jnp.int32))
    assert calibration.error(none) == 0
    assert not calibration.reliability(none)[0].any()


def test_an_infinite_logit_is_a_confidence_of_one():
    logits = jnp.array([[3e38, -3e38], [0.0, -jnp.inf]])
    found = calibration.bins(logits, jnp.array([0, 1]))
    np.testing.assert_array_equal(found.predictions, [0] * 14 + [2])
    assert calibration.error(found) == pytest.approx(0.5)
