"""The sparse leaves of a pytree, layer by layer: which they are, and in which order.

The methods work with lists of arrays, one array for each layer. A sparse leaf is one
layer, or a stack of layers along its leading axes. `SparseLeaves` holds the order,
takes such a list from a tree, and makes a mask tree of one.
"""

import dataclasses
import fnmatch
import functools
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zosam_jax import _check, tree
from zosam_jax._types import Masks, Params, PyTree, Shape, StackRule

Predicate = Callable[[str, Shape], bool]
"""`(path, shape of a layer) -> bool`."""

DenseRule = str | Predicate | Sequence[str | Predicate]
"""Names leaves: glob patterns on their paths, functions of path and shape, or both."""


class Leaf(NamedTuple):
    """A leaf: one layer, or a stack of layers.

    Attributes:
      path: Its key path, the parts joined by `/`.
      place: Its index among all leaves of the tree.
      shape: Its shape.
      axes: Number of leading axes along which layers are stacked; 0 for one layer.
    """

    path: str
    place: int
    shape: Shape
    axes: int = 0

    @property
    def indices(self) -> list[tuple[int, ...]]:
        """Index of each layer in the stack; of a leaf that is one layer, `[()]`."""
        return list(np.ndindex(*self.shape[: self.axes]))

    @property
    def names(self) -> list[str]:
        """Name of each layer: the path of the leaf, and the index in the stack."""
        return ["/".join((self.path, *map(str, index))) for index in self.indices]

    def layers_of(self, x: jax.Array) -> list[jax.Array]:
        """Returns the layers of an array of this leaf's shape.

        A scalar, which marks a dense leaf in a mask tree, is that of each layer.
        """
        if not self.axes or not jnp.ndim(x):
            return [x] * len(self.indices)
        return list(jnp.unstack(jnp.reshape(x, (-1, *self.shape[self.axes :]))))

    def stack(self, layers: Sequence[jax.Array]) -> jax.Array:
        """Returns the array of this leaf's shape that has these layers."""
        if not self.axes:
            return layers[0]
        return jnp.reshape(jnp.stack(layers), self.shape)


@dataclasses.dataclass(frozen=True)
class SparseLeaves:
    """The layers of the sparse leaves of a tree, in flattening order.

    A method sees a stack of layers as it would see a list of them: `names` and order
    are the same.

    Attributes:
      leaves: The leaves that hold the layers.
      treedef: Structure of the tree.

    Example:
      >>> import jax.numpy as jnp
      >>> from zosam_jax.sparsity.leaves import sparse_leaves
      >>> params = {"bias": jnp.zeros(2), "kernel": jnp.ones((3, 2))}
      >>> layers = sparse_leaves(params)
      >>> layers.names, layers.sizes, [x.shape for x in layers.of(params)]
      (('kernel',), (6,), [(3, 2)])
      >>> params = {"bias": jnp.zeros((4, 2)), "kernel": jnp.ones((4, 3, 2))}
      >>> layers = sparse_leaves(params, stacked="*")
      >>> layers.names[0], len(layers.names), layers.shapes[0]
      ('kernel/0', 4, (3, 2))
    """

    leaves: tuple[Leaf, ...]
    treedef: Any

    @classmethod
    def at(
        cls, tree_: PyTree, places: Sequence[int], stacked: StackRule = ()
    ) -> "SparseLeaves":
        """Returns the layers of the leaves at the given indices.

        Args:
          tree_: Pytree of arrays; only its structure and shapes are read.
          places: Indices of leaves, in flattening order.
          stacked: Leaves that are stacks of layers; see `sparse_leaves`.
        """
        found, treedef = _leaves(tree_, stacked)
        return cls(tuple(found[i] for i in places), treedef)

    @classmethod
    def every(cls, tree_: PyTree, stacked: StackRule = ()) -> "SparseLeaves":
        """Returns the layers of all leaves, dense ones too.

        Args:
          tree_: Pytree of arrays; only its structure and shapes are read.
          stacked: Leaves that are stacks of layers; see `sparse_leaves`.
        """
        return cls.at(tree_, range(len(jax.tree.leaves(tree_))), stacked)

    @classmethod
    def of_masks(cls, masks: Masks, stacked: StackRule = ()) -> "SparseLeaves":
        """Returns the layers of the leaves that a mask tree marks as sparse.

        Args:
          masks: Mask tree.
          stacked: Leaves that are stacks of layers; see `sparse_leaves`.
        """
        places = [
            i for i, m in enumerate(jax.tree.leaves(masks)) if not tree.is_dense(m)
        ]
        return cls.at(masks, places, stacked)

    @functools.cached_property
    def paths(self) -> tuple[str, ...]:
        """Key path of the leaf of each layer."""
        return tuple(leaf.path for leaf in self.leaves for _ in leaf.indices)

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """Name of each layer: the path of its leaf, and its index in a stack."""
        return tuple(name for leaf in self.leaves for name in leaf.names)

    @functools.cached_property
    def shapes(self) -> tuple[Shape, ...]:
        """Shape of each layer."""
        return tuple(
            leaf.shape[leaf.axes :] for leaf in self.leaves for _ in leaf.indices
        )

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of weights of each layer."""
        return tuple(map(math.prod, self.shapes))

    def of(self, tree_: PyTree) -> list[jax.Array]:
        """Returns the layers of a tree of this structure."""
        all_leaves = jax.tree.leaves(tree_)
        return [
            layer
            for leaf in self.leaves
            for layer in leaf.layers_of(all_leaves[leaf.place])
        ]

    def put(self, tree_: PyTree, layers: Sequence[jax.Array]) -> PyTree:
        """Returns the tree with its sparse leaves replaced."""
        replaced = self._stacked(layers)
        return self.treedef.unflatten(
            [replaced.get(i, x) for i, x in enumerate(jax.tree.leaves(tree_))]
        )

    def masks(self, masks: Sequence[jax.Array]) -> Masks:
        """Returns the mask tree with these masks, and True for every dense leaf."""
        # One array for each dense leaf: a donated state may not hold an array twice.
        sparse = self._stacked(masks)
        number = self.treedef.num_leaves
        return self.treedef.unflatten(
            [sparse.get(i, jnp.asarray(True)) for i in range(number)]
        )

    def all_live(self) -> list[jax.Array]:
        """Returns masks that prune nothing."""
        return [jnp.ones(shape, bool) for shape in self.shapes]

    def _stacked(self, layers: Sequence[jax.Array]) -> dict[int, jax.Array]:
        """Returns `{place: leaf}` from the layers of all leaves."""
        found, start = {}, 0
        for leaf in self.leaves:
            stop = start + len(leaf.indices)
            found[leaf.place] = leaf.stack(layers[start:stop])
            start = stop
        return found


class LeafRule(NamedTuple):
    """Which leaves are sparse, and which leaves are stacks of layers.

    Attributes:
      dense: Leaves that stay dense; see `sparse_leaves`.
      stacked: Leaves that are stacks of layers; see `sparse_leaves`.
    """

    dense: DenseRule = ()
    stacked: StackRule = ()

    def sparse(self, params: Params) -> SparseLeaves:
        """Returns the layers that are sparsified."""
        return sparse_leaves(params, self.dense, self.stacked)


def live_counts(masks: Sequence[jax.Array]) -> jax.Array:
    """Returns the number of live weights of each mask, int32 `[masks]`.

    Example:
      >>> import jax.numpy as jnp
      >>> from zosam_jax.sparsity.leaves import live_counts
      >>> print(live_counts([jnp.array([True, False, True]), jnp.array([False])]))
      [2 0]
    """
    return jnp.stack([jnp.sum(m, dtype=jnp.int32) for m in masks])


def sparse_leaves(
    params: Params, dense: DenseRule = (), stacked: StackRule = ()
) -> SparseLeaves:
    """Returns the layers that are sparsified.

    Biases and the parameters of norms are always dense: layers with fewer than two
    axes, and layers with more than two of which at most one is longer than 1 (a bias of
    shape `(out, 1, 1)`, a class token of shape `(1, 1, d)`).

    Args:
      params: Pytree of arrays; only its structure and shapes are read.
      dense: Further leaves that stay dense: a glob pattern on `/`-joined key paths, as
        `"head/*"` or `"*/embedding"`; a function `(path, shape) -> bool`, as
        `first_layer(3)`; or a sequence of both. The shape is that of one layer.
      stacked: Leaves that are stacks of layers along their leading axes, as `nn.scan`
        and expert layers make them: a glob pattern, as `"layers/*"`, for one axis; a
        function `(path, shape) -> number of axes`; a sequence of both; or a mapping
        from patterns to numbers of axes, of which the first that matches counts, as
        `{"layers/experts/*": 2, "layers/*": 1}`.

    Raises:
      ValueError: A pattern matches no leaf, a leaf has fewer axes than `stacked` says,
        two leaves have the same path, no leaf is left, or a sparse layer has more than
        2**31 - 1 weights.

    Example:
      >>> import jax.numpy as jnp
      >>> from zosam_jax.sparsity.leaves import sparse_leaves
      >>> params = {"bias": jnp.zeros(2), "body": jnp.ones((3, 2)), "head": jnp.eye(2)}
      >>> sparse_leaves(params, dense="head").names
      ('body',)
    """
    leaves, treedef = _leaves(params, stacked)
    paths = [leaf.path for leaf in leaves]
    check_rule("dense", dense, paths)
    sparse = []
    for leaf in leaves:
        layer = leaf.shape[leaf.axes :]
        if _is_kernel(layer) and math.prod(leaf.shape) > 0:
            sparse += [] if named(dense, leaf.path, layer) else [leaf]
    if not sparse:
        raise ValueError(
            "No leaf of params is left to sparsify: it needs at least two axes beside "
            f"those of a stack, and must not match dense={dense!r}. The leaves are: "
            f"{', '.join(paths)}."
        )
    found = SparseLeaves(tuple(sparse), treedef)
    check_sizes(found)
    return found


def _leaves(tree_: PyTree, stacked: StackRule) -> tuple[list[Leaf], Any]:
    """Returns all leaves of a tree, and its structure."""
    leaves, treedef = jax.tree.flatten(tree_)
    paths = tree.paths(tree_)
    if len(set(paths)) < len(paths):
        twice = sorted({path for path in paths if paths.count(path) > 1})
        raise ValueError(f"Two leaves of params have one path: {', '.join(twice)}.")
    if isinstance(stacked, Mapping):
        for pattern, number in stacked.items():
            _check.whole(f"stacked[{pattern!r}]", number, least=0)
    check_rule("stacked", stacked, paths)
    found = []
    for place, (path, x) in enumerate(zip(paths, leaves, strict=True)):
        shape = jnp.shape(x)
        # A scalar in a mask tree is a dense leaf. A stack of no layers has no weights.
        is_one = not shape or 0 in shape
        axes = 0 if is_one else stack_axes(stacked, path, shape)
        found.append(Leaf(path, place, shape, axes))
    return found, treedef


def stack_axes(stacked: StackRule, path: str, shape: Shape) -> int:
    """Returns the number of leading axes along which a leaf stacks layers.

    Args:
      stacked: As in `sparse_leaves`.
      path: Key path of the leaf, joined by `/`.
      shape: Shape of the leaf.

    Raises:
      ValueError: The leaf has fewer axes.

    Example:
      >>> from zosam_jax.sparsity.leaves import stack_axes
      >>> rule = {"layers/experts/*": 2, "layers/*": 1}
      >>> stack_axes(rule, "layers/experts/w", (6, 8, 16, 16))
      2
      >>> stack_axes(rule, "head/kernel", (16, 10))
      0
    """
    if isinstance(stacked, Mapping):
        found = (axes for pattern, axes in stacked.items() if _matches(pattern, path))
        number = next(found, 0)
    else:
        parts = _parts("stacked", stacked)
        number = max((_axes_by(part, path, shape) for part in parts), default=0)
    if not 0 <= number <= len(shape):
        raise ValueError(
            f"stacked= says that {path} stacks layers along {number} leading axes; its "
            f"shape is {shape}."
        )
    # A vector stays dense. That is meant for a bias, and never for a kernel.
    if number and len(shape) - number < 2 and path.rpartition("/")[2] == "kernel":
        raise ValueError(
            f"stacked= says that {path} of shape {shape} stacks layers along {number} "
            "leading axes, which leaves no kernel of two axes. Say fewer axes."
        )
    return number


def _axes_by(part: Any, path: str, shape: Shape) -> int:
    """Returns the number of stacked axes by one pattern or function."""
    number = _matches(part, path) if isinstance(part, str) else part(path, shape)
    if not isinstance(number, bool | int | np.integer | np.bool_):
        raise TypeError(
            "stacked= must be a function (path, shape) -> number of axes; it returned "
            f"{number!r} for {path}."
        )
    return int(number)


def check_sizes(leaves: SparseLeaves) -> None:
    """Raises `ValueError` for a layer of more weights than programs count, named."""
    for name, size in zip(leaves.names, leaves.sizes, strict=True):
        advice = f"Split the leaf, or keep it dense: dense=({name!r},)."
        _check.countable(f"params: {name}", size, advice)


def _is_kernel(shape: Shape) -> bool:
    return len(shape) == 2 or sum(n > 1 for n in shape) >= 2


def named(rule: DenseRule, path: str, shape: Shape) -> bool:
    """Returns whether a rule names a leaf.

    Args:
      rule: Glob patterns, functions `(path, shape) -> bool`, or a sequence of both.
      path: Key path of the leaf, joined by `/`.
      shape: Shape of the leaf, or of one layer of a stack.

    Example:
      >>> from zosam_jax.sparsity.leaves import first_layer, named
      >>> rule = ("head/*", first_layer(3))
      >>> named(rule, "stem/kernel", (3, 3, 3, 64)), named(rule, "body/kernel", (8, 8))
      (True, False)
    """
    return any(
        part(path, shape) if callable(part) else _matches(part, path)
        for part in _parts("dense", rule)
    )


def _matches(pattern: str, path: str) -> bool:
    return path == pattern or fnmatch.fnmatch(path, pattern)


def check_rule(
    argument: str, rule: DenseRule | StackRule, paths: Sequence[str]
) -> None:
    """Raises `ValueError` if a pattern of the rule matches no path.

    Args:
      argument: The argument's name, for the error.
      rule: As in `named`; its functions are not checked.
      paths: Key paths of all leaves.

    Raises:
      TypeError: It is no rule.
    """
    patterns = [part for part in _parts(argument, rule) if not callable(part)]
    tree.matching(argument, patterns, paths)


_RESULTS = {
    "stacked": "(path, shape) -> number of axes, a mapping {pattern: number of axes}",
}


def _parts(argument: str, rule: Any) -> list[Any]:
    """Returns the patterns and functions of a rule; of a mapping, its patterns."""
    if argument == "stacked" and isinstance(rule, Mapping):
        rule = list(rule)
    function = _RESULTS.get(argument, "(path, shape) -> bool")
    return [] if rule is None else _check.patterns(argument, rule, function)


_POSITION = re.compile(r"pos(ition)?(al|s)?[_/]?(emb|enc)|(^|[_/])wpe")
_BIASES = {"bias", "biases", "beta", "offset", "offsets"}
_SCALES = {"scale", "scales", "gamma"}
_NORMS = {"ln", "bn", "gn"}


def warn_of_biases(layers: SparseLeaves) -> None:
    """Warns of sparse leaves that are biases, scales of norms or position embeddings.

    It goes by the name of a leaf and of the module around it.

    Args:
      layers: The layers that are sparsified.

    Warns:
      UserWarning: There are such leaves; all are named in one warning.
    """
    suspects = [leaf.path for leaf in layers.leaves if _is_usually_dense(leaf.path)]
    if not suspects:
        return
    first, rest = suspects[0], len(suspects) - 6
    listed = ", ".join(suspects[:6]) + (f" and {rest} more" if rest > 0 else "")
    warnings.warn(
        f"the sparse leaves include {listed}. By name these are biases, scales of "
        "norms or position embeddings, which usually stay dense: say "
        f"dense=({first!r},); or, if the first axis stacks layers, as under a scan, "
        f"stacked=({_module_of(first)!r},).",
        stacklevel=_check.outside(),
    )


def _module_of(path: str) -> str:
    """The pattern of all leaves in the outermost module of a leaf."""
    module, inside, _ = path.partition("/")
    return f"{module}/*" if inside else path


def _is_usually_dense(path: str) -> bool:
    *_, module, name = ("", *path.split("/"))
    if _POSITION.search(f"{module}/{name}".lower()):
        return True
    words = set(_words(name))
    around = set(_words(module)) if name != "kernel" else set()
    is_norm = any(word in _NORMS or word.endswith("norm") for word in words | around)
    return is_norm or "bias" in around or bool(words & (_BIASES | _SCALES))


def _words(name: str) -> list[str]:
    """Returns the words of a name in snake case or camel case, in lower case."""
    return [x.lower() for x in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)]


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
