import numpy as np
import pytest
import scipy.stats

from zosam_jax.runs import intervals


@pytest.mark.parametrize("count", [2, 3, 7])
def test_intervals_and_p_values_are_those_of_scipy(count):
    rng = np.random.default_rng(count)
    a, b = rng.normal(size=(2, count))
    test = scipy.stats.ttest_rel(a, b)
    found = intervals.paired(a.tolist(), b.tolist())
    low, high = test.confidence_interval(0.95)
    np.testing.assert_allclose(found.mean - found.half_width, low)
    np.testing.assert_allclose(found.mean + found.half_width, high)
    p = intervals.p_value(a.tolist(), b.tolist())
    assert p == pytest.approx(test.pvalue)
    low, high = scipy.stats.ttest_1samp(a, 0).confidence_interval(0.95)
    alone = intervals.interval(a.tolist())
    np.testing.assert_allclose(alone.mean - alone.half_width, low)
    np.testing.assert_allclose(alone.mean + alone.half_width, high)


def test_equal_differences_have_no_p_value():
    assert intervals.p_value([0.9, 0.8], [0.9, 0.8]) is None
    # Equal in decimals, not in binary.
    assert intervals.p_value([0.3, 0.7], [0.2, 0.6]) is None
