"""Labels with errors, to study training on them."""

import numpy as np

from zosam_jax import _check


def symmetric(
    labels: np.ndarray, num_classes: int, fraction: float, seed: int
) -> np.ndarray:
    r"""Returns the labels with symmetric noise: a fraction replaced by other classes.

    .. math::
      \tilde y_i = (y_i + k_i) \bmod K, \quad k_i \sim U\{1, \dots, K - 1\}
      \quad \text{for } \mathrm{round}(r N) \text{ of the } N \text{ examples}

    Every changed label is wrong. (Some papers draw from all K classes, so that one in K
    of the drawn labels stays right: their rate r is `fraction * K / (K - 1)`.)

    Args:
      labels: Classes, integers `[N]` from 0 to K - 1.
      num_classes: K, at least 2.
      fraction: r, the fraction of changed labels, in [0, 1].
      seed: Integer >= 0. The same seed changes the same labels; a larger fraction
        changes others.

    Returns:
      An array of the shape and dtype of `labels`.

    Raises:
      ValueError: An argument is out of range, or `labels` is not one-dimensional.

    >>> symmetric(np.array([0, 1, 2, 3]), 4, 0.5, seed=0)
    array([0, 1, 1, 1])
    """
    _check.number("fraction", fraction, least=0, most=1)
    _check.whole("num_classes", num_classes, least=2)
    _check.whole("seed", seed, least=0)
    if labels.ndim != 1:
        raise ValueError(f"labels must have the shape [N]; got {list(labels.shape)}.")
    # The stream is that of these draws alone, in whatever else the seed is used.
    random = np.random.default_rng([seed, 0x6E6F6973])
    changed = random.permutation(len(labels))[: round(fraction * len(labels))]
    shift = random.integers(1, num_classes, len(changed))
    noisy = labels.copy()
    noisy[changed] = (labels[changed] + shift) % num_classes
    return noisy
