"""Masks of one run or of several: densities, churn and overlap. No JAX program."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np

from zosam_jax import tree
from zosam_jax._types import Masks
from zosam_jax.sparsity.packing import PackedMasks, unpack


class LayerDensity(NamedTuple):
    """The live weights of a sparse leaf.

    Attributes:
      live: Number of live weights.
      weights: Number of weights.
      density: live / weights.
    """

    live: int
    weights: int
    density: float


class Overlap(NamedTuple):
    """How much two masks have in common.

    Attributes:
      shared: Number of weights that are live in both.
      first: Number of live weights of the first.
      second: Number of live weights of the second.
      jaccard: Shared weights / weights that are live in at least one, from 0 to 1.
      chance: Expected Jaccard index of random masks with the same numbers of live
        weights in every leaf: expected shared weights / expected union.
      churn: Live weights of the second that are not in the first / those of the second.
    """

    shared: int
    first: int
    second: int
    jaccard: float
    chance: float
    churn: float


def layer_densities(masks: Masks | PackedMasks) -> dict[str, LayerDensity]:
    """Returns the density of every sparse leaf, by its path.

    Args:
      masks: Mask tree, perhaps packed. Dense leaves are left out.

    Example:
      >>> import jax.numpy as jnp, zosam_jax as zs
      >>> masks = {"kernel": jnp.array([[True, False]]), "bias": True}
      >>> zs.analysis.layer_densities(masks)["kernel"]
      LayerDensity(live=1, weights=2, density=0.5)
    """
    leaves = _sparse(masks)
    counts = {path: (int(np.sum(m)), m.size) for path, m in leaves.items()}
    return {
        p: LayerDensity(n, size, n / max(size, 1)) for p, (n, size) in counts.items()
    }


def mask_overlap(
    first: Masks | PackedMasks, second: Masks | PackedMasks
) -> dict[str, Overlap]:
    r"""Returns the overlap of two masks, by leaf, and of all leaves under "all".

    .. math::
      J = \frac{|A \cap B|}{|A \cup B|}, \qquad
      \mathbb{E}|A \cap B| = \sum_l \frac{|A_l| |B_l|}{n_l}, \qquad
      \text{churn} = \frac{|B \setminus A|}{|B|}

    Masks at two steps of a run give its churn; masks of two runs say how much their
    topologies have in common, beside the expectation by chance.

    Args:
      first: Mask tree A, perhaps packed.
      second: Mask tree B of the same sparse leaves.

    Raises:
      ValueError: The masks have other sparse leaves or shapes.

    Example:
      >>> import numpy as np, zosam_jax as zs
      >>> a = np.array([True, True, False, False])
      >>> b = np.array([True, False, True, False])
      >>> found = zs.analysis.mask_overlap({"w": a}, {"w": b})["all"]
      >>> print(round(found.jaccard, 3), round(found.chance, 3), found.churn)
      0.333 0.333 0.5
    """
    a, b = _sparse(first), _sparse(second)
    if {p: m.shape for p, m in a.items()} != {p: m.shape for p, m in b.items()}:
        differs = [
            path
            for path in sorted({*a, *b})
            if path not in a or path not in b or a[path].shape != b[path].shape
        ]
        raise ValueError(
            "the masks have different sparse leaves or shapes, so they cannot be "
            f"compared: {', '.join(differs[:6])}."
        )
    counts = {
        path: np.array(
            [np.sum(m & b[path]), np.sum(m), np.sum(b[path]), _expected(m, b[path])],
            np.float64,
        )
        for path, m in a.items()
    }
    total = np.sum([*counts.values()], axis=0) if counts else np.zeros(4)
    return {**{p: _overlap(c) for p, c in counts.items()}, "all": _overlap(total)}


def overlap_matrix(masks: Mapping[str, Masks | PackedMasks]) -> np.ndarray:
    """Returns the Jaccard index of every pair of masks, `[n, n]`.

    Args:
      masks: Mask trees of the same sparse leaves, by name.
    """
    trees = list(masks.values())
    found = np.eye(len(trees))
    for i, first in enumerate(trees):
        for j in range(i):
            overlap = mask_overlap(trees[j], first)["all"].jaccard
            found[i, j] = found[j, i] = overlap
    return found


def _expected(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sum(a)) * float(np.sum(b)) / max(a.size, 1)


def _overlap(counts: np.ndarray) -> Overlap:
    shared, first, second, expected = counts
    union = first + second - shared
    return Overlap(
        shared=int(shared),
        first=int(first),
        second=int(second),
        jaccard=float(shared / union) if union else 1.0,
        chance=float(expected / (first + second - expected)) if union else 1.0,
        churn=float((second - shared) / second) if second else 0.0,
    )


def _sparse(masks: Masks | PackedMasks) -> dict[str, np.ndarray]:
    """The sparse leaves of a mask tree, by path."""
    masks = unpack(masks)
    leaves = zip(tree.paths(masks), jax.tree.leaves(masks), strict=True)
    return {p: np.asarray(m, bool) for p, m in leaves if not tree.is_dense(m)}
