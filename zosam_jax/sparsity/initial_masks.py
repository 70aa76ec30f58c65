"""The first masks of a method: the highest scores under a budget."""

from collections.abc import Callable, Sequence
from typing import Protocol

import jax
import jax.numpy as jnp

from zosam_jax import _check, _streams
from zosam_jax._types import Key, Masks, Params, PyTree
from zosam_jax.sparsity import scores
from zosam_jax.sparsity.leaves import LeafRule, SparseLeaves


class MaskBudget(Protocol):
    """How many weights the sparse leaves keep, and which of their scores compete.

    `budgets.PerLayer`, `budgets.Global` and `patterns.Pattern` are the three. A ranking
    is a set of weights whose scores compete: a leaf, or all leaves together.
    """

    @property
    def sparsity(self) -> float:
        """The fraction of pruned weights over the sparse leaves together."""
        ...

    @property
    def across(self) -> bool:
        """Whether the count of each leaf follows from the scores of all leaves."""
        ...

    def counts(self, leaves: SparseLeaves) -> list[int]:
        """Returns the number of weights that each leaf keeps."""
        ...

    def by_ranking(self, numbers: Sequence[int]) -> list[int]:
        """Returns the number of each ranking, from one number for each leaf."""
        ...

    def select(
        self,
        leaves: SparseLeaves,
        scores: Sequence[jax.Array],
        counts: Sequence[jax.typing.ArrayLike] | jax.Array | None = None,
        candidates: Sequence[jax.Array] | None = None,
    ) -> list[jax.Array]:
        """Returns the masks of the highest scores.

        Args:
          leaves: The sparse leaves.
          scores: Scores of each leaf.
          counts: How many to select of each; by default `self.counts`.
          candidates: Masks of what may be selected; by default everything.
        """
        ...


def highest(
    params: Params, ranking: PyTree, budget: MaskBudget, rule: LeafRule
) -> Masks:
    """Returns the mask tree of the highest scores, ties to the lower index.

    Args:
      params: Pytree of arrays; only its structure and shapes are read.
      ranking: Scores, a tree like `params`.
      budget: How many weights each leaf keeps.
      rule: Which leaves are sparse, and which are stacks.

    Raises:
      ValueError: A score is not finite, or the budget cannot be met.
    """
    ranking = jax.tree.map(jnp.asarray, ranking)
    _check_scores(jax.tree.leaves(ranking))
    leaves = rule.sparse(params)
    return leaves.masks(budget.select(leaves, leaves.of(ranking)))


def at_random(
    budget: MaskBudget, rule: LeafRule, seed: jax.typing.ArrayLike
) -> Callable[[Params], Masks]:
    """Returns `params -> masks`: random masks under a budget.

    Args:
      budget: How many weights each leaf keeps.
      rule: Which leaves are sparse, and which are stacks.
      seed: Integer.
    """
    return lambda params: random_masks(params, mask_key(seed), budget, rule)


def random_masks(params: Params, key: Key, budget: MaskBudget, rule: LeafRule) -> Masks:
    """Returns random masks under a budget.

    Args:
      params: Pytree of arrays; only its structure and shapes are read.
      key: PRNG key of the draw.
      budget: How many weights each leaf keeps.
      rule: Which leaves are sparse, and which are stacks.
    """
    leaves = rule.sparse(params)
    drawn = scores.of_layers(scores.random, params, None, key, leaves.of)
    return leaves.masks(budget.select(leaves, drawn))


def mask_key(seed: jax.typing.ArrayLike) -> Key:
    """Returns the key of the first masks."""
    return jax.random.fold_in(jax.random.key(seed), _streams.MASKS)


def _check_scores(ranked: Sequence[jax.Array]) -> None:
    # Under jit the answer is traced even where the scores are constants.
    finite = [jnp.all(jnp.isfinite(x)) for x in ranked]
    if not all(_check.is_traced(x) or bool(x) for x in finite):
        raise ValueError(
            "the scores of the initial mask are not finite: the loss or the parameters "
            "that they were computed from hold NaN or infinity."
        )
