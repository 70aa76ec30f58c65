"""A convolution whose gradient XLA:CPU runs fast wherever it stands.

XLA:CPU has fast kernels for one layout of convolutions. It moves a convolution into
that layout at the top level of a program only. The gradients of a convolution come in
other layouts, so that inside `lax.cond`, `lax.scan` or `lax.while_loop` they fall to a
kernel that is many times slower. Here the gradients have the fast layout to begin with.
The numbers are the same.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
from jax import lax

_LAYOUT = ("NHWC", "HWIO", "NHWC")

Sizes = tuple[int, ...]
Pads = tuple[tuple[int, int], ...]


def conv_general_dilated(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    **options: Any,
) -> jax.Array:
    """Returns `jax.lax.conv_general_dilated`, with gradients that are fast on CPUs.

    Pass it as `flax.linen.Conv(conv_general_dilated=...)`. It calls JAX's function
    itself on other backends, for other layouts, and for grouped, dilated or not
    two-dimensional convolutions.

    Args:
      lhs: Images, `[N, H, W, C]`, of a floating type.
      rhs: Kernel, `[h, w, C, O]`, of the same type.
      window_strides: Strides along height and width, in pixels.
      padding: "SAME", "VALID", or the pixels to add before and after each axis.
      **options: Other arguments of `jax.lax.conv_general_dilated`.

    Returns:
      `[N, H', W', O]`.
    """
    dilations = (*(options.get("lhs_dilation") or ()),)
    dilations += (*(options.get("rhs_dilation") or ()),)
    given = lax.conv_dimension_numbers(
        lhs.shape, rhs.shape, options.get("dimension_numbers")
    )
    is_left_to_jax = (
        jax.default_backend() != "cpu"
        or lhs.ndim != 4
        or given != lax.conv_dimension_numbers(lhs.shape, rhs.shape, _LAYOUT)
        or any(d != 1 for d in dilations)
        or options.get("feature_group_count", 1) != 1
        or options.get("batch_group_count", 1) != 1
        or options.get("precision") is not None
        or options.get("preferred_element_type") is not None
    )
    if is_left_to_jax:
        return lax.conv_general_dilated(lhs, rhs, window_strides, padding, **options)
    # Tuples, since the arguments that are not differentiated must be hashable.
    strides = tuple(window_strides)
    if isinstance(padding, str):
        sizes = lhs.shape[1:3], rhs.shape[:2]
        padding = lax.padtype_to_pads(*sizes, strides, padding)
    pads = tuple((int(low), int(high)) for low, high in padding)
    return _conv(lhs, rhs, strides, pads)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _conv(x: jax.Array, w: jax.Array, strides: Sizes, pads: Pads) -> jax.Array:
    return lax.conv_general_dilated(x, w, strides, pads, dimension_numbers=_LAYOUT)


# A convolution is bilinear: d conv(x, w) = conv(dx, w) + conv(x, dw). JAX makes the
# gradient by transposing both terms, and the transpose of a convolution is another
# convolution, whose layout follows from the term's layout. So each term is written in
# the layout whose transpose is _LAYOUT, on arrays with their axes moved accordingly:
# - by x: HWIO kernels as HWOI, since the gradient swaps input and output channels;
# - by w: batch and channels swapped in x and in the result, since the gradient sums
#   over the batch as the forward pass sums over channels.
@_conv.defjvp
def _conv_jvp(
    strides: Sizes,
    pads: Pads,
    primals: tuple[jax.Array, jax.Array],
    tangents: tuple[jax.Array, jax.Array],
) -> tuple[jax.Array, jax.Array]:
    x, w = primals
    dx, dw = tangents
    along_x = lax.conv_general_dilated(
        dx,
        w.transpose(0, 1, 3, 2),
        strides,
        pads,
        dimension_numbers=("NHWC", "HWOI", "NHWC"),
    )
    along_w = lax.conv_general_dilated(
        x.transpose(3, 1, 2, 0),
        dw.transpose(2, 0, 1, 3),
        strides,
        pads,
        dimension_numbers=("CHWN", "IHWO", "HWNC"),
    )
    return _conv(x, w, strides, pads), along_x + along_w.transpose(2, 0, 1, 3)
