"""Multiply-adds of a function, by the parameter leaf in each product.

The function is traced, not run. The products in its jaxpr are counted: `dot_general`
and `conv_general_dilated`. A product belongs to a leaf if one of its operands is that
leaf, perhaps reshaped, transposed, sliced, cast, masked or scaled: operations after
which a pruned weight is still zero. Anything else that is computed from a leaf (a sum
with another array, a product with activations) is no longer that leaf.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend import core

# Primitives that move entries, so that a leaf is still recognized.
_LAYOUT = {"transpose", "reshape", "squeeze", "broadcast_in_dim", "unstack"}
# Primitives that keep the axes, and zeros zero.
_SAME_AXES = {
    *("convert_element_type", "reduce_precision", "copy", "copy_p", "device_put"),
    *("stop_gradient", "sharding_constraint", "name", "pvary"),
    *(
        "slice",
        "dynamic_slice",
        "split",
        "rev",
        "neg",
        "abs",
        "sign",
        "sqrt",
        "tanh",
        "round",
    ),
    *("integer_pow", "square"),
}
# Primitives with other operands beside the leaf, which may be anything.
_SCALED = {"mul", "div", "select_n", "clamp", "max", "min"}
_SUMS = {"add", "sub", "add_any"}
# Primitives that may compute products, which cannot be seen from outside.
_NOT_COUNTED = {
    *("pallas_call", "ragged_dot", "ragged_dot_general", "scaled_matmul", "ffi_call"),
    *("pure_callback", "io_callback", "tpu_custom_call", "dot_product_attention_fwd"),
}


class KernelAxes(NamedTuple):
    """The meaning of the axes of a kernel.

    Attributes:
      inputs: Axes over which a product sums, except those of a window.
      outputs: Axes of the result.
      window: Spatial axes of a convolution. All other axes stack kernels.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    window: tuple[int, ...] = ()


class Products(NamedTuple):
    """The products of a function.

    Attributes:
      macs: Multiply-adds of every leaf, in flattening order.
      order: Indices of the leaves with products, in the order of their first products.
      other: Multiply-adds of products that belong to no leaf.
      units: `{leaf: axes}` according to the leaf's first product. Leaves whose axes are
        not known are left out.
      notes: Sentences on products that were counted in an unexpected way, or not.
    """

    macs: list[int]
    order: list[int]
    other: int
    units: dict[int, KernelAxes]
    notes: list[str]


class _Weight(NamedTuple):
    """A value that is a leaf or a part of it.

    Attributes:
      leaf: Index of the leaf.
      axes: For each axis of the value, the axis of the leaf that it is, or None.
    """

    leaf: int
    axes: tuple[int | None, ...]


# A value has one of three origins: a leaf (`_Weight`); an activation, which is the
# result of a product or computed from one; or None for inputs, constants and masks.
_ACTIVATION = "activation"
_Origin = _Weight | str | None
_OTHER = -1


def products(function: Callable[[Any], Any], params: Any) -> Products:
    """Returns the multiply-adds of `function(params)`, leaf by leaf.

    Args:
      function: Traced once. The body of a `scan` counts `length` times, the body of a
        `while` once, and of a `cond` the branch with the most multiply-adds. Zero
        padding counts like data, except that no zero counts if the input is dilated (a
        transposed convolution).
      params: Pytree of arrays or of `jax.ShapeDtypeStruct`.

    Example:
      >>> import jax.numpy as jnp
      >>> from zosam_jax.sparsity.reports.flops import products
      >>> found = products(lambda w: jnp.ones((5, 4)) @ w, jnp.ones((4, 3)))
      >>> found.macs, found.units
      ([60], {0: KernelAxes(inputs=(0,), outputs=(1,), window=())})
    """
    leaves = jax.tree.leaves(params)
    jaxpr = jax.make_jaxpr(function)(params).jaxpr
    walk = _Walk([tuple(np.shape(x)) for x in leaves])
    origins: list[_Origin] = [
        _Weight(i, tuple(range(len(shape)))) for i, shape in enumerate(walk.shapes)
    ]
    macs, _ = walk.run(jaxpr, origins)
    per_leaf = [macs[i] for i in range(len(leaves))]
    return Products(
        per_leaf, list(walk.order), macs[_OTHER], walk.units, list(walk.notes)
    )


class _Walk:
    """A pass over a jaxpr and the jaxprs nested in it."""

    def __init__(self, shapes: list[tuple[int, ...]]):
        self.shapes = shapes
        self.order: dict[int, None] = {}
        self.units: dict[int, KernelAxes] = {}
        self.notes: dict[str, None] = {}

    def _size(self, leaf: int) -> int:
        return math.prod(self.shapes[leaf])

    def run(
        self, jaxpr: Any, inputs: Sequence[_Origin]
    ) -> tuple[Counter[int], list[_Origin]]:
        """Returns the multiply-adds by leaf, and the origins of the outputs."""
        env: dict[Any, _Origin] = dict(zip(jaxpr.invars, inputs, strict=True))

        def read(atom: Any) -> _Origin:
            return None if isinstance(atom, core.Literal) else env.get(atom)

        total: Counter[int] = Counter()
        for eqn in jaxpr.eqns:
            macs, outputs = self._equation(eqn, [read(x) for x in eqn.invars])
            total += macs
            env.update(zip(eqn.outvars, outputs, strict=True))
        return total, [read(x) for x in jaxpr.outvars]

    def _equation(
        self, eqn: Any, inputs: list[_Origin]
    ) -> tuple[Counter[int], list[_Origin]]:
        name, params = eqn.primitive.name, eqn.params
        if name in ("dot_general", "conv_general_dilated"):
            return self._product(eqn, inputs), [_ACTIVATION]
        if name in _NOT_COUNTED:
            self.notes[f"`{name}` is not counted"] = None
        elif name == "scan":
            return self._scan(eqn, inputs)
        elif name == "while":
            return self._while(params, inputs)
        elif name == "cond":
            ran = [self.run(_open(b), inputs[1:]) for b in params["branches"]]
            # An upper bound: which branch runs is not known when the program is traced.
            macs = max((macs for macs, _ in ran), key=lambda macs: macs.total())
            outputs = [_join(x) for x in zip(*(outs for _, outs in ran), strict=True)]
            return macs, outputs
        else:
            for body in map(_open, params.values()):
                if hasattr(body, "eqns") and len(body.invars) == len(inputs):
                    macs, outputs = self.run(body, inputs)
                    if name == "shard_map":  # Shapes inside are those of one device.
                        macs = _times(macs, params["mesh"].size)
                    return macs, outputs
        # It has one output for each input, in order; others mix their inputs.
        if name == "optimization_barrier":
            return Counter(), inputs
        if not eqn.outvars:
            return Counter(), []
        return Counter(), [self._passed(eqn, inputs)] * len(eqn.outvars)

    def _scan(
        self, eqn: Any, inputs: list[_Origin]
    ) -> tuple[Counter[int], list[_Origin]]:
        # Constants, carries and sliced inputs are told apart by their ranks, since the
        # parameters that hold their numbers depend on the version of JAX.
        body = _open(eqn.params["jaxpr"])
        carries = sum(map(_same_rank, eqn.outvars, body.outvars))
        start = sum(map(_same_rank, eqn.invars, body.invars)) - carries
        fixed, rest = inputs[:start], inputs[start + carries :]
        slices = [
            _Weight(x.leaf, x.axes[1:]) if isinstance(x, _Weight) else x for x in rest
        ]
        macs, carry, out = self._loop(
            body, lambda carry: [*fixed, *carry, *slices], inputs[start:][:carries]
        )
        # Stacked outputs have an axis more than the leaf had: no longer the leaf.
        stacked = [None if isinstance(x, _Weight) else x for x in out[carries:]]
        return _times(macs, eqn.params["length"]), [*carry, *stacked]

    def _while(
        self, params: Any, inputs: list[_Origin]
    ) -> tuple[Counter[int], list[_Origin]]:
        test, body = params["cond_nconsts"], params["body_nconsts"]
        fixed, start = inputs[test : test + body], inputs[test + body :]
        macs, carry, _ = self._loop(
            _open(params["body_jaxpr"]), lambda carry: [*fixed, *carry], start
        )
        macs += self.run(_open(params["cond_jaxpr"]), [*inputs[:test], *carry])[0]
        if macs:
            self.notes["the products in a `while` are counted for one turn"] = None
        return macs, carry

    def _loop(
        self,
        body: Any,
        arguments: Callable[[list[_Origin]], list[_Origin]],
        carry: list[_Origin],
    ) -> tuple[Counter[int], list[_Origin], list[_Origin]]:
        """Returns one iteration, with carry origins that hold for every iteration.

        A carry may be a leaf at first and an activation later. So the body is walked
        until the origins no longer change.
        """
        while True:
            macs, out = self.run(body, arguments(carry))
            after = [_join(x) for x in zip(carry, out[: len(carry)], strict=True)]
            # It ends: origins only move from a leaf to None or an activation, never
            # back.
            if after == carry:
                return macs, carry, out
            carry = after

    def _product(self, eqn: Any, inputs: list[_Origin]) -> Counter[int]:
        out = eqn.outvars[0].aval.shape
        shapes = [x.aval.shape for x in eqn.invars]
        if eqn.primitive.name == "dot_general":
            contracted, batch = eqn.params["dimension_numbers"]
            # Every entry of the result sums over the contracted axes; batch axes are
            # among the result's.
            macs = math.prod(out) * math.prod(shapes[0][d] for d in contracted[0])
            sides = [
                ({*c}, {*range(len(s))} - {*c} - {*b}, set())
                for s, c, b in zip(shapes, contracted, batch, strict=True)
            ]
        else:
            macs, sides = _convolution(eqn.params, shapes[0], shapes[1], out)
        # If both operands are leaves (a kernel, and a scale on the inputs), the larger
        # one is the kernel.
        found = [
            ((self._size(x.leaf), len(self.shapes[x.leaf])), i, x)
            for i, x in enumerate(inputs)
            if isinstance(x, _Weight)
        ]
        if not found:
            return Counter({_OTHER: macs})
        _, operand, weight = max(found)
        self.order.setdefault(weight.leaf)
        names = [tuple(weight.axes[d] for d in sorted(axes)) for axes in sides[operand]]
        # A kernel that was reshaped on the way has axes that no longer are the leaf's.
        if len(weight.axes) == len(shapes[operand]) and not any(
            axis is None and size > 1
            for axis, size in zip(weight.axes, shapes[operand], strict=True)
        ):
            known = [tuple(axis for axis in n if axis is not None) for n in names]
            self.units.setdefault(weight.leaf, KernelAxes(*known))
        return Counter({weight.leaf: macs})

    def _passed(self, eqn: Any, inputs: list[_Origin]) -> _Origin:
        """Returns the origin of the result of an equation without products."""
        name, shape = eqn.primitive.name, getattr(eqn.outvars[0].aval, "shape", ())
        first = inputs[0] if inputs else None
        if name in _LAYOUT | _SAME_AXES and isinstance(first, _Weight):
            axes = _moved(name, eqn.params, first.axes, eqn.invars[0].aval.shape, shape)
            return self._fitting(_Weight(first.leaf, axes), shape)
        if _ACTIVATION in inputs:
            return _ACTIVATION
        weights = [x for x in inputs if isinstance(x, _Weight)]
        if name == "div":
            # A quotient is zero where its numerator is; 1 / w is not.
            weights = [x for x in inputs[:1] if isinstance(x, _Weight)]
        elif name in _SUMS:
            # w + w' is no kernel; w + w of one leaf is zero where w is.
            same = len(weights) == len(inputs) and len({x.leaf for x in weights}) == 1
            weights = weights if same else []
        elif name not in _SCALED:
            weights = []
        largest = max(weights, key=lambda x: self._size(x.leaf), default=None)
        return self._fitting(largest, shape)

    def _fitting(self, weight: _Weight | None, shape: tuple[int, ...]) -> _Origin:
        """Returns the weight; None if the value is larger: data, scaled by the leaf."""
        if weight is None or math.prod(shape) > self._size(weight.leaf):
            return None
        return weight


def _moved(
    name: str,
    params: Any,
    axes: tuple[int | None, ...],
    old: tuple[int, ...],
    new: tuple[int, ...],
) -> tuple[int | None, ...]:
    """Returns the axes after an operation that moves entries without changing them."""
    if name == "transpose":
        return tuple(axes[d] for d in params["permutation"])
    if name == "unstack":
        return tuple(axis for d, axis in enumerate(axes) if d != params["axis"])
    if name == "broadcast_in_dim":
        source = dict(zip(params["broadcast_dimensions"], axes, strict=True))
        return tuple(source.get(d) for d in range(len(new)))
    if name in ("reshape", "squeeze"):
        # Axes of length 1 may come and go. A reshape that merges axes loses them all.
        wide = [a for a, n in zip(axes, old, strict=True) if n != 1]
        if [n for n in old if n != 1] != [n for n in new if n != 1]:
            return (None,) * len(new)
        left = iter(wide)
        return tuple(None if n == 1 else next(left) for n in new)
    return axes


def _convolution(
    params: Any, lhs: tuple[int, ...], rhs: tuple[int, ...], out: tuple[int, ...]
) -> tuple[int, list[tuple[set[int], set[int], set[int]]]]:
    """Returns the multiply-adds, and the axes of both operands as in `KernelAxes`."""
    numbers = params["dimension_numbers"]
    (out_axis, in_axis, *window), spatial = numbers.rhs_spec, numbers.out_spec[2:]
    # With feature groups, `rhs[in_axis]` is already the channels of one group, and with
    # batch groups the batch of the result is that of one group.
    macs = out[numbers.out_spec[0]] * out[numbers.out_spec[1]] * rhs[in_axis]
    for i, (k, o) in enumerate(zip(window, spatial, strict=True)):
        dilation, length = params["lhs_dilation"][i], lhs[numbers.lhs_spec[2 + i]]
        if dilation == 1:
            macs *= out[o] * rhs[k]
            continue
        # Of a dilated input only every `dilation`-th position holds data: count the
        # pairs of output and kernel positions that meet one.
        start = (
            np.arange(out[o]) * params["window_strides"][i] - params["padding"][i][0]
        )
        # Position in the dilated input that output o meets at kernel entry k; negative
        # in the padding.
        met = start[:, None] + np.arange(rhs[k]) * params["rhs_dilation"][i]
        inside = (met >= 0) & (met <= (length - 1) * dilation)
        macs *= int((inside & (met % dilation == 0)).sum())
    batch, features, *_ = numbers.lhs_spec
    around = {*range(len(lhs))} - {batch, features}
    kernel = ({in_axis}, {out_axis}, {*window})
    return macs, [({features}, {batch}, around), kernel]


def _open(jaxpr: Any) -> Any:
    """Returns the jaxpr without its constants."""
    return getattr(jaxpr, "jaxpr", jaxpr)


def _same_rank(outside: Any, inside: Any) -> bool:
    return len(outside.aval.shape) == len(inside.aval.shape)


def _times(macs: Counter[int], factor: int) -> Counter[int]:
    return Counter({leaf: factor * count for leaf, count in macs.items()})


def _join(origins: Sequence[_Origin]) -> _Origin:
    """Returns the origin of a value that may have any of these origins."""
    if _ACTIVATION in origins:
        return _ACTIVATION
    return origins[0] if all(x == origins[0] for x in origins) else None
