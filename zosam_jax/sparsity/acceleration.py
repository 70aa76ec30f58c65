"""A network whose sparse layers are sparse matrices where that is faster."""

import functools
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zosam_jax import _check, tree
from zosam_jax._types import Masks, Params, PyTree
from zosam_jax.sparsity.mask_trees import filled
from zosam_jax.sparsity.matrix_products import dense_product, with_weights
from zosam_jax.sparsity.packing import unpack

if TYPE_CHECKING:
    from jax.experimental.sparse import BCSR


class LayerTime(NamedTuple):
    """The times of a sparse leaf's products.

    Attributes:
      path: Path of the leaf.
      shape: Its shape.
      sparsity: Share of its weights that are pruned.
      columns: Vectors that it is multiplied with: examples, or tokens of all examples.
      dense_ms: Shortest time of its products as a dense matrix, in milliseconds.
      sparse_ms: Shortest time of its products as a sparse one, in milliseconds.
      is_sparse: Which of the two is used.
    """

    path: str
    shape: tuple[int, ...]
    sparsity: float
    columns: int
    dense_ms: float
    sparse_ms: float
    is_sparse: bool


class Accelerated:
    """A network that `accelerate` made: call it with examples, and `print` it.

    Attributes:
      layers: The times of every sparse leaf that could be a sparse matrix.
      dense_ms: Shortest time of the network with dense matrices, in milliseconds.
      milliseconds: Shortest time of this network, in milliseconds; `dense_ms` if no
        layer is a sparse matrix.
    """

    def __init__(
        self,
        layers: Sequence[LayerTime],
        dense_ms: float,
        milliseconds: float,
        program: Callable[[Any, PyTree], PyTree],
        weights: Any,
    ):
        self.layers = tuple(layers)
        self.dense_ms, self.milliseconds = dense_ms, milliseconds
        self._program, self._weights = program, weights

    def __call__(self, x: PyTree) -> PyTree:
        """Returns the outputs. Other shapes than those measured compile again."""
        return self._program(self._weights, x)

    def __str__(self) -> str:
        """Returns a line for each layer, and one for the network."""
        lines = [
            f"{row.path} {'x'.join(map(str, row.shape))}, {row.sparsity:.1%} pruned, "
            f"{row.columns:,} columns: dense {row.dense_ms:.3g} ms, sparse "
            f"{row.sparse_ms:.3g} ms -> {'sparse' if row.is_sparse else 'dense'}"
            for row in self.layers
        ]
        count = sum(row.is_sparse for row in self.layers)
        lines.append(
            f"{count} of {len(self.layers)} layers sparse: {self.dense_ms:.3g} ms -> "
            f"{self.milliseconds:.3g} ms"
        )
        return "\n".join(lines)


def accelerate(
    apply: Callable[[Params, PyTree], PyTree],
    params: Params,
    masks: Masks,
    x: PyTree,
    *,
    repeats: int = 20,
) -> Accelerated:
    """Returns a network whose sparse layers are sparse matrices where that is faster.

    Each sparse leaf of two axes is measured, on this machine and for the shapes of `x`,
    as a dense matrix and as a compressed one (`jax.experimental.sparse.BCSR`), which
    JAX multiplies fast on CPUs. The faster one is used. The network as a whole is
    measured too: if the chosen layers do not make it faster, all stay dense. Outputs
    differ from those of `apply(params * masks, x)` by rounding only.

    On CPUs, compressed matrices tend to win from 90 or 95 % of pruned weights on, for
    32 columns or more. Layers of transformers, MLPs and language models profit.
    Convolutions, products within loops, and leaves that something else than a product
    reads (an embedding) stay dense. The network cannot be differentiated. `compact`
    makes a smaller dense network, which every device runs fast; use it first.

    Args:
      apply: `(params, x) -> outputs`, as `lambda p, x: model.apply({"params": p}, x,
        train=False)`.
      params: Pytree of arrays.
      masks: Their mask tree, concrete: it is read on the host.
      x: Examples of the shapes to be fast for: a pytree of arrays.
      repeats: Number of times that each product is measured; the shortest counts,
        since other processes can only make it longer.

    Raises:
      ValueError: The masks do not fit the parameters.

    Example:
      >>> import jax.numpy as jnp, zosam_jax as zs
      >>> params = {"w": jnp.ones((64, 32))}
      >>> masks = zs.sparsity.static(0.95).init(params).masks
      >>> fast = zs.sparsity.accelerate(
      ...     lambda p, x: x @ p["w"], params, masks, jnp.ones((8, 64))
      ... )
      >>> fast.layers[0].columns, fast(jnp.ones((8, 64))).shape
      (8, (8, 32))
    """
    _check.whole("repeats", repeats)
    masks = filled(unpack(masks), params)
    tree.check_masks(masks, params)
    params = jax.tree.map(jnp.asarray, tree.mask(params, masks))
    like = jax.eval_shape(lambda: params)
    dense = jax.tree.leaves(params)
    network = jax.jit(lambda weights, x: with_weights(apply, weights, like)(x))
    layers: list[LayerTime] = []
    chosen = list[Any](dense)
    names, flags = _check.paths(params), jax.tree.leaves(masks)
    for place, products in enumerate(_products(apply, params, flags, x)):
        if not products:
            continue
        weight = dense[place]
        matrices = {
            axis: _matrix(weight, axis) for axis in {axes[0] for _, axes, _ in products}
        }
        times = np.sum([_times(weight, matrices, *p, repeats) for p in products], 0)
        layers.append(
            LayerTime(
                names[place],
                weight.shape,
                1 - np.count_nonzero(flags[place]) / weight.size,
                sum(other.size // other.shape[axes[1]] for other, axes, _ in products),
                *(1000 * times),
                is_sparse=bool(times[1] < times[0]),
            )
        )
        if layers[-1].is_sparse:
            chosen[place] = SparseWeight(matrices)
    dense_ms, fast_ms = (
        1000 * t for t in _best([(network, w, x) for w in (dense, chosen)], repeats)
    )
    if not any(row.is_sparse for row in layers) or fast_ms >= dense_ms:
        layers = [row._replace(is_sparse=False) for row in layers]
        chosen, fast_ms = dense, dense_ms
    return Accelerated(layers, dense_ms, fast_ms, network, chosen)


@jax.tree_util.register_pytree_node_class
class SparseWeight:
    """A leaf as compressed rows, by the axis of the leaf that products sum over.

    A sparse matrix must stand on the left of a product: the weights of outputs x inputs
    multiply inputs x columns.
    """

    def __init__(self, matrices: "dict[int, BCSR]"):
        self.matrices = matrices

    def tree_flatten(self) -> "tuple[tuple[dict[int, BCSR]], None]":
        """Returns the matrices."""
        return (self.matrices,), None

    @classmethod
    def tree_unflatten(cls, _: None, children: Sequence[Any]) -> "SparseWeight":
        """Returns the weight of the matrices."""
        return cls(*children)

    def product(
        self, other: jax.Array, axes: tuple[int, int], is_left: bool
    ) -> jax.Array:
        """Returns a product, as `matrix_products.Weight` describes it."""
        inputs = jnp.moveaxis(other, axes[1], 0)
        found = self.matrices[axes[0]] @ inputs.reshape(len(inputs), -1)
        found = found.reshape(-1, *inputs.shape[1:])
        return found if is_left else jnp.moveaxis(found, 0, -1)

    def dense(self) -> jax.Array:
        """Raises `ValueError`: such leaves stay dense arrays."""
        raise ValueError("the network reads its weights otherwise than it was traced.")


def _matrix(weight: jax.Array, axis: int) -> "BCSR":
    """Returns a leaf as outputs x inputs, whose inputs are an axis of it."""
    # It loads SciPy, which `import zosam_jax` does not need.
    from jax.experimental.sparse import BCSR

    array = np.asarray(weight) if axis == 1 else np.asarray(weight).T
    rows, columns = np.nonzero(array)
    starts = np.searchsorted(rows, np.arange(len(array) + 1))
    parts = array[rows, columns], columns.astype(np.int32), starts.astype(np.int32)
    data, indices, pointers = map(jnp.asarray, parts)
    return BCSR(
        (data, indices, pointers),
        shape=array.shape,
        indices_sorted=True,
        unique_indices=True,
    )


_Product = tuple[jax.ShapeDtypeStruct, tuple[int, int], bool]


class _Seen:
    """A dense leaf that notes its products, and whether it is read otherwise."""

    def __init__(self, array: jax.Array):
        self.array, self.products, self.is_read = array, list[_Product](), False

    def product(
        self, other: jax.Array, axes: tuple[int, int], is_left: bool
    ) -> jax.Array:
        if other.dtype != self.array.dtype:
            self.is_read = True
        like = jax.ShapeDtypeStruct(other.shape, other.dtype)
        self.products.append((like, axes, is_left))
        return dense_product(self.array, other, axes, is_left)

    def dense(self) -> jax.Array:
        self.is_read = True
        return self.array


def _products(
    apply: Callable[[Params, PyTree], PyTree],
    params: Params,
    masks: Sequence[Any],
    x: PyTree,
) -> list[list[_Product]]:
    """Returns the products of each leaf; none of a leaf that must stay dense."""
    leaves = jax.tree.leaves(params)
    # The kernel on the CPU takes these types.
    seen = [
        _Seen(leaf)
        if not tree.is_dense(mask)
        and leaf.ndim == 2
        and leaf.dtype in (np.float32, np.float64)
        else leaf
        for leaf, mask in zip(leaves, masks, strict=True)
    ]
    jax.eval_shape(with_weights(apply, seen, params), x)
    return [
        leaf.products if isinstance(leaf, _Seen) and not leaf.is_read else []
        for leaf in seen
    ]


@functools.partial(jax.jit, static_argnums=(2, 3))
def _sparse_product(
    weight: SparseWeight, other: jax.Array, axes: tuple[int, int], is_left: bool
) -> jax.Array:
    return weight.product(other, axes, is_left)


def _times(
    weight: jax.Array,
    matrices: "dict[int, BCSR]",
    other: jax.ShapeDtypeStruct,
    axes: tuple[int, int],
    is_left: bool,
    repeats: int,
) -> list[float]:
    """Returns the seconds of a product, dense and sparse."""
    # Not zeros, and nothing subnormal: both can be faster or slower than real inputs.
    x = jnp.asarray(np.random.default_rng(0).normal(size=other.shape), other.dtype)
    return _best(
        [
            (dense_product, weight, x, axes, is_left),
            (_sparse_product, SparseWeight(matrices), x, axes, is_left),
        ],
        repeats,
    )


def _best(calls: Sequence[Sequence[Any]], repeats: int) -> list[float]:
    """Returns the shortest time of each call, in seconds, taken in turns."""
    times = []
    for _ in range(1 + repeats):  # the first one compiles
        times.append([])
        for function, *arguments in calls:
            start = time.perf_counter()
            jax.block_until_ready(function(*arguments))
            times[-1].append(time.perf_counter() - start)
    return np.min(times[1:], axis=0).tolist()
