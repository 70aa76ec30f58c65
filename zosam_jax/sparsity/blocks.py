"""Block sparsity: a method of single weights that prunes and grows whole blocks."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zosam_jax import _check, tree
from zosam_jax._options import checks_arguments
from zosam_jax._types import Grads, Masks, Params, PyTree, Shape
from zosam_jax.sparsity.method import SparseMethod, Topology

_UNDIVIDED = ("error", "dense")


@checks_arguments
def blocks(
    method: SparseMethod,
    size: int | tuple[int, int],
    *,
    axes: tuple[int, int] = (-2, -1),
    undivided: str = "error",
) -> SparseMethod:
    r"""Returns the method on blocks in place of single weights.

    Each sparse layer is cut into blocks of r x c weights along the two axes of its
    matrix product. The method sees one number for each block B, the L1 norm of its
    weights or of their gradients, in float32,

    .. math:: \lVert w_B \rVert_1 = \sum_{i \in B} |w_i|, \qquad
              \lVert g_B \rVert_1 = \sum_{i \in B} |\partial L / \partial w_i|

    (the salience of a group of weights in arXiv:1705.08922), and its masks are those of
    whole blocks. All else is the method's own: counts are exact in blocks, budgets see
    the layer's shape in blocks, a block that is grown starts at zero. Blocks of 1 x 1
    are single weights, bit for bit.

    The kernel of a convolution, `[H, W, in, out]`, is the matrix `[H W in, out]` of its
    im2col product. Since r divides `in`, a block lies within one position.

    `start_from` gives the method first masks of whole blocks.

    Args:
      method: `static` (by "random" or "magnitude"), `gmp`, `set_`, `rigl`, `itop`,
        `svite`, `mest`, `dsr` or `dynamic`. Scores of weight times gradient see the
        product of the two norms, and signs are not seen.
      size: r and c; or one number for both.
      axes: The axes of inputs and outputs, as in the kernels `(..., in, out)` of Flax
        and Haiku; (1, 0) for Equinox's.
      undivided: What becomes of layers that are not whole blocks: "error", or "dense",
        they stay dense.

    Returns:
      A method for `sparsify`.

    Raises:
      ValueError: An argument is out of range, or the method prunes no single weights;
        at init, a layer is not whole blocks, or none is.

    Example:
      >>> import jax.numpy as jnp, zosam_jax as zs
      >>> params = {"kernel": jnp.array([[1.0, 2, 0, 9], [1, 2, 0, 0]])}
      >>> method = zs.sparsity.static(0.5, "magnitude")
      >>> print(zs.sparsity.blocks(method, 2).init(params).masks["kernel"])
      [[False False  True  True]
       [False False  True  True]]
    """
    _check.one_of("undivided", undivided, _UNDIVIDED)
    if method.begin is None and method.name != "gmp":
        raise ValueError(
            f"blocks: {method} has a structure or a criterion of its own. Give a "
            "method of single weights, as zs.sparsity.rigl, set_, gmp or static."
        )
    cut = _Cut(*_pair("size", size), _pair("axes", axes))

    def init(params: Params) -> Topology:
        masks = jax.eval_shape(method.init, params).masks
        sparse = cut.layers(params, masks, undivided)
        found = method.init(cut.norms(params, sparse))
        _check_found(found.masks, sparse)
        return cut.whole(found)

    def change(
        topology: Topology, params: Params, grads: Grads, step: jax.Array
    ) -> Topology:
        assert method.change is not None
        masks = topology.masks
        sparse = [not tree.is_dense(m) for m in jax.tree.leaves(masks)]
        new = method.change(
            topology._replace(masks=cut.of_blocks(masks)),
            cut.norms(params, sparse),
            cut.norms(grads, sparse),
            step,
        )
        return cut.whole(new)

    return method._replace(
        init=init,
        change=None if method.change is None else change,
        begin=method.begin and _beginning(method.begin, cut),
        call="",
    )


def _beginning(
    begin: Callable[[Params, Masks], Topology], cut: "_Cut"
) -> Callable[[Params, Masks], Topology]:
    """Returns the first topology of blocks as a function of given masks."""

    def begun(params: Params, masks: Masks) -> Topology:
        cut.check_whole(masks)
        sparse = [not tree.is_dense(m) for m in jax.tree.leaves(masks)]
        return cut.whole(begin(cut.norms(params, sparse), cut.of_blocks(masks)))

    return begun


def _check_found(masks: Masks, sparse: Sequence[bool]) -> None:
    """Raises `ValueError` if the method keeps a layer dense that is whole blocks."""
    leaves = zip(tree.paths(masks), jax.tree.leaves(masks), sparse, strict=True)
    lost = [path for path, m, is_sparse in leaves if is_sparse and tree.is_dense(m)]
    if lost:
        raise ValueError(
            f"blocks: of {lost[0]} too few blocks are left for a sparse layer, or a "
            "rule of dense= by shape takes it for another. Keep it dense by its path, "
            f"dense=({lost[0]!r},), or take smaller blocks."
        )


class _Cut(NamedTuple):
    """How layers are cut into blocks.

    Attributes:
      rows: Weights of a block along the first axis.
      columns: Weights of a block along the second axis.
      axes: The two axes of a layer.
    """

    rows: int
    columns: int
    axes: tuple[int, int]

    def divides(self, shape: Shape) -> bool:
        """Whether a layer is whole blocks."""
        inputs, outputs = self.axes
        return not (shape[inputs] % self.rows or shape[outputs] % self.columns)

    def layers(self, params: Params, masks: Masks, undivided: str) -> list[bool]:
        """Returns for each leaf whether it is cut: a sparse layer of whole blocks.

        Raises:
          ValueError: A layer is not whole blocks and shall not be dense, or none is.
        """
        leaves = zip(
            tree.paths(params),
            jax.tree.leaves(params),
            [m.ndim > 0 for m in jax.tree.leaves(masks)],
            strict=True,
        )
        found = [(path, x.shape, is_sparse) for path, x, is_sparse in leaves]
        cut = [is_sparse and self.divides(shape) for _, shape, is_sparse in found]
        wrong = [
            (path, shape)
            for path, shape, is_sparse in found
            if is_sparse and not self.divides(shape)
        ]
        if not wrong or (undivided == "dense" and any(cut)):
            return cut
        listed = ", ".join(f"{path} of shape {shape}" for path, shape in wrong[:6])
        more = f" and {len(wrong) - 6} more" if len(wrong) > 6 else ""
        what = f"blocks of {self.rows} x {self.columns} do not divide {listed}{more}"
        if undivided == "dense":
            raise ValueError(f"{what}, so nothing is sparse. Take other blocks.")
        raise ValueError(
            f"{what}. Keep such layers dense, as dense=({wrong[0][0]!r},) or "
            "undivided='dense', or take other blocks."
        )

    def norms(self, values: PyTree, sparse: Sequence[bool]) -> PyTree:
        """Returns the L1 norm of each block, float32; 0 in place of a dense leaf."""
        leaves, structure = jax.tree.flatten(values)
        found = [
            self._norm(x) if is_sparse else jnp.zeros((), jnp.float32)
            for x, is_sparse in zip(leaves, sparse, strict=True)
        ]
        return jax.tree.unflatten(structure, found)

    def _norm(self, x: jax.Array) -> jax.Array:
        shape, summed = list[int](), list[int]()
        parts = dict(zip(self._places(x.ndim), (self.rows, self.columns), strict=True))
        for axis, length in enumerate(x.shape):
            if axis in parts:
                summed.append(len(shape) + 1)
                shape += [length // parts[axis], parts[axis]]
            else:
                shape.append(length)
        # In float32: a sum in bfloat16 would lose the smaller weights of a block.
        sizes = jnp.abs(x.astype(jnp.float32))
        return jnp.sum(sizes.reshape(shape), tuple(summed))

    def _places(self, ndim: int) -> tuple[int, int]:
        inputs, outputs = self.axes
        return inputs % ndim, outputs % ndim

    def of_blocks(self, masks: Masks) -> Masks:
        """Returns the masks of blocks, of masks of whole blocks."""

        def leaf(m: jax.Array) -> jax.Array:
            if tree.is_dense(m):
                return m
            steps = [1] * m.ndim
            inputs, outputs = self._places(m.ndim)
            steps[inputs], steps[outputs] = self.rows, self.columns
            return m[tuple(slice(None, None, step) for step in steps)]

        return jax.tree.map(leaf, masks)

    def check_whole(self, masks: Masks) -> None:
        """Raises `ValueError` unless masks are those of whole blocks.

        Of traced masks, only the shapes are known.
        """
        for path, m in zip(tree.paths(masks), jax.tree.leaves(masks), strict=True):
            if tree.is_dense(m) or (self.divides(m.shape) and self._is_whole(m)):
                continue
            raise ValueError(
                f"masks: {path} of shape {m.shape} is not made of whole blocks of "
                f"{self.rows} x {self.columns}. Take the blocks that the masks were "
                "made with, or a method of single weights."
            )

    def _is_whole(self, mask: jax.Array) -> bool:
        if _check.is_traced(mask):
            return True
        found = np.asarray(mask)
        first = self.of_blocks(found)
        inputs, outputs = self._places(found.ndim)
        repeated = np.repeat(np.repeat(first, self.rows, inputs), self.columns, outputs)
        return np.array_equal(repeated, found)

    def whole(self, topology: Topology) -> Topology:
        """Returns a topology of blocks with masks of weights."""

        def leaf(m: jax.Array) -> jax.Array:
            if tree.is_dense(m):
                return m
            inputs, outputs = self._places(m.ndim)
            return jnp.repeat(jnp.repeat(m, self.rows, inputs), self.columns, outputs)

        return topology._replace(masks=jax.tree.map(leaf, topology.masks))


def _pair(name: str, value: int | tuple[int, int]) -> tuple[int, int]:
    """Returns two numbers, or one number twice; sizes are at least 1."""
    try:
        first, second = (value, value) if isinstance(value, int) else value
    except (TypeError, ValueError):
        raise ValueError(f"{name}={value!r} must be two whole numbers.") from None
    for number in (first, second):
        _check.whole(name, number, least=1 if name == "size" else -32)
    return first, second
