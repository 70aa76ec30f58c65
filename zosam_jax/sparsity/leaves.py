"""The sparse leaves of a pytree: which they are, and in which order.

The methods work with lists of arrays, one array for each sparse leaf. `SparseLeaves`
holds the order, takes such a list from a tree, and makes a mask tree of one.
"""

import dataclasses
import fnmatch
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from zosam_jax import _check, tree
from zosam_jax._types import Masks, Params, PyTree

Shape = tuple[int, ...]

Predicate = Callable[[str, Shape], bool]
"""`(path, shape) -> bool`."""

DenseRule = str | Predicate | Sequence[str | Predicate]
"""Names leaves: glob patterns on their paths, functions of path and shape, or both."""


@dataclasses.dataclass(frozen=True)
class SparseLeaves:
    """The sparse leaves of a tree, in flattening order.

    Attributes:
      paths: Key path of each sparse leaf, its parts joined by `/`.
      shapes: Shape of each.
      places: Index of each among all leaves of the tree.
      treedef: Structure of the tree.

    Example:
      >>> import jax.numpy as jnp
      >>> from zosam_jax.sparsity.leaves import sparse_leaves
      >>> params = {"bias": jnp.zeros(2), "kernel": jnp.ones((3, 2))}
      >>> leaves = sparse_leaves(params)
      >>> leaves.paths, leaves.sizes, [x.shape for x in leaves.of(params)]
      (('kernel',), (6,), [(3, 2)])
    """

    paths: tuple[str, ...]
    shapes: tuple[Shape, ...]
    places: tuple[int, ...]
    treedef: Any

    @classmethod
    def at(cls, tree_: PyTree, places: Sequence[int]) -> "SparseLeaves":
        """Returns the leaves of a tree at the given indices."""
        leaves, treedef = jax.tree.flatten(tree_)
        paths = tree.paths(tree_)
        return cls(
            tuple(paths[i] for i in places),
            tuple(jnp.shape(leaves[i]) for i in places),
            tuple(places),
            treedef,
        )

    @classmethod
    def of_masks(cls, masks: Masks) -> "SparseLeaves":
        """Returns the leaves that a mask tree marks as sparse."""
        places = [
            i for i, m in enumerate(jax.tree.leaves(masks)) if not tree.is_dense(m)
        ]
        return cls.at(masks, places)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of weights of each leaf."""
        return tuple(map(math.prod, self.shapes))

    def of(self, tree_: PyTree) -> list[jax.Array]:
        """Returns the sparse leaves of a tree of this structure."""
        leaves = jax.tree.leaves(tree_)
        return [leaves[i] for i in self.places]

    def put(self, tree_: PyTree, leaves: Sequence[jax.Array]) -> PyTree:
        """Returns the tree with its sparse leaves replaced."""
        replaced = dict(zip(self.places, leaves, strict=True))
        return self.treedef.unflatten(
            [replaced.get(i, x) for i, x in enumerate(jax.tree.leaves(tree_))]
        )

    def masks(self, masks: Sequence[jax.Array]) -> Masks:
        """Returns the mask tree with these masks, and True for every dense leaf."""
        # One array for each dense leaf: a donated state may not hold an array twice.
        sparse = dict(zip(self.places, masks, strict=True))
        number = self.treedef.num_leaves
        return self.treedef.unflatten(
            [sparse.get(i, jnp.asarray(True)) for i in range(number)]
        )

    def all_live(self) -> list[jax.Array]:
        """Returns masks that prune nothing."""
        return [jnp.ones(shape, bool) for shape in self.shapes]


def live_counts(masks: Sequence[jax.Array]) -> jax.Array:
    """Returns the number of live weights of each mask, int32 `[leaves]`.

    Example:
      >>> import jax.numpy as jnp
      >>> from zosam_jax.sparsity.leaves import live_counts
      >>> print(live_counts([jnp.array([True, False, True]), jnp.array([False])]))
      [2 0]
    """
    return jnp.stack([jnp.sum(m, dtype=jnp.int32) for m in masks])


def sparse_leaves(params: Params, dense: DenseRule = ()) -> SparseLeaves:
    """Returns the leaves that are sparsified.

    Biases and the parameters of norms are always dense: leaves with fewer than two
    axes, and leaves with more than two of which at most one is longer than 1 (a bias of
    shape `(out, 1, 1)`, a class token of shape `(1, 1, d)`).

    Args:
      params: Pytree of arrays; only its structure and shapes are read.
      dense: Further leaves that stay dense: a glob pattern on `/`-joined key paths, as
        `"head/*"` or `"*/embedding"`; a function `(path, shape) -> bool`, as
        `first_layer(3)`; or a sequence of both.

    Raises:
      ValueError: A pattern matches no leaf, two leaves have the same path, or no leaf
        is left.

    Example:
      >>> import jax.numpy as jnp
      >>> from zosam_jax.sparsity.leaves import sparse_leaves
      >>> params = {"bias": jnp.zeros(2), "body": jnp.ones((3, 2)), "head": jnp.eye(2)}
      >>> sparse_leaves(params, dense="head").paths
      ('body',)
    """
    paths = tree.paths(params)
    if len(set(paths)) < len(paths):
        twice = sorted({path for path in paths if paths.count(path) > 1})
        raise ValueError(f"Two leaves of params have one path: {', '.join(twice)}.")
    check_rule("dense", dense, paths)
    shapes = [jnp.shape(x) for x in jax.tree.leaves(params)]
    places = [
        i
        for i, (path, shape) in enumerate(zip(paths, shapes, strict=True))
        if _is_kernel(shape) and math.prod(shape) > 0 and not named(dense, path, shape)
    ]
    if not places:
        raise ValueError(
            "No leaf of params is left to sparsify: it needs at least two axes and "
            f"must not match dense={dense!r}. The leaves are: {', '.join(paths)}."
        )
    return SparseLeaves.at(params, places)


def _is_kernel(shape: Shape) -> bool:
    return len(shape) == 2 or sum(n > 1 for n in shape) >= 2


def named(rule: DenseRule, path: str, shape: Shape) -> bool:
    """Returns whether a rule names a leaf.

    Args:
      rule: Glob patterns, functions `(path, shape) -> bool`, or a sequence of both.
      path: Key path of the leaf, joined by `/`.
      shape: Shape of the leaf.

    Example:
      >>> from zosam_jax.sparsity.leaves import first_layer, named
      >>> rule = ("head/*", first_layer(3))
      >>> named(rule, "stem/kernel", (3, 3, 3, 64)), named(rule, "body/kernel", (8, 8))
      (True, False)
    """
    return any(
        part(path, shape)
        if callable(part)
        else path == part or fnmatch.fnmatch(path, part)
        for part in _parts(rule)
    )


def check_rule(argument: str, rule: DenseRule, paths: Sequence[str]) -> None:
    """Raises `ValueError` if a pattern of the rule matches none of the paths.

    Args:
      argument: The argument's name, for the error.
      rule: As in `named`; its functions are not checked.
      paths: Key paths of all leaves.
    """
    patterns = [part for part in _parts(rule) if not callable(part)]
    tree.matching(argument, patterns, paths)


def _parts(rule: DenseRule) -> Sequence[str | Predicate]:
    return [rule] if isinstance(rule, str) or callable(rule) else list(rule or ())


def first_layer(inputs: int) -> Predicate:
    """Returns a rule for `dense=`: kernels with this number of input channels.

    Input channels are the second-last axis, as in the kernels `(..., in, out)` of Flax
    and Haiku, for dense layers and convolutions. The kernel of a grouped or depthwise
    convolution has the channels of one group there.

    Args:
      inputs: Channels of the network's input, 3 for colour images.

    Example:
      >>> from zosam_jax.sparsity import leaves
      >>> rule = leaves.first_layer(3)
      >>> rule("stem/kernel", (3, 3, 3, 16)), rule("conv/kernel", (3, 3, 16, 16))
      (True, False)
    """
    _check.whole("inputs", inputs)
    return lambda _, shape: len(shape) >= 2 and shape[-2] == inputs


def last_layer(outputs: int) -> Predicate:
    """Returns a rule for `dense=`: kernels with this number of outputs.

    Outputs are the last axis, as in the kernels `(..., in, out)` of Flax and Haiku. A
    hidden layer of the same width matches too; in that case name the last layer by its
    path.

    Args:
      outputs: Outputs of the network, such as the number of classes.
    """
    _check.whole("outputs", outputs)
    return lambda _, shape: len(shape) >= 2 and shape[-1] == outputs
