"""The streams of random numbers: which integers are folded into which key.

Every draw comes from `jax.random.key(seed)` and integers that are folded into it, so
that a resumed run repeats it. Two uses of one key must fold in different integers. All
integers that the package folds in are listed here.

A user may draw parameters from `key(seed)` too, and `split(key, n)[i]` is
`fold_in(key, i)`. So what stays for a whole training, like the first masks, has a
stream with a large integer: from the parameters' key, masks would keep large weights.

    key(seed)
      0, 1, 2, ...     the gradient estimate of this step; below, "step key"
      INIT             the initial parameters, then 0
      ORDER            the order of the examples, then the epoch
      AUGMENT          augmentation, then the step
      DROPOUT          dropout, then the step
      MASKS            the first masks
      SPARSE           the scores of a topology change, then the step
    step key
      0, 1, 2, ...     the random direction of this number
      DESCENT          the directions of a zeroth-order descent
      COMPRESSION      the sparsity of this step, for `cram`
      EXAMPLES         the examples of the ascent step, for `ascent_fraction`
      TIMING           whether this step is perturbed, for `randomly`
      PASSES           the keys given to `value_fn` with `fresh_keys`, then the pass

A run has fewer than 2**32 - 16 steps, and an estimate fewer directions.
"""

import numpy as np

INIT = np.uint32(0xFFFFFFF0)
ORDER = np.uint32(0xFFFFFFF1)
AUGMENT = np.uint32(0xFFFFFFF2)
DROPOUT = np.uint32(0xFFFFFFF3)
MASKS = np.uint32(0xFFFFFFF4)
SPARSE = np.uint32(0xFFFFFFFF)

COMPRESSION = np.uint32(0xFFFFFFFB)
EXAMPLES = np.uint32(0xFFFFFFFC)
TIMING = np.uint32(0xFFFFFFFD)
DESCENT = np.uint32(0xFFFFFFFE)
PASSES = np.uint32(0xFFFFFFFF)
