"""A convolution whose gradient XLA:CPU runs fast wherever it stands.

XLA:CPU brings convolutions into the layout that its fast kernels know only in the entry
of a program. Gradients come in other layouts, and inside `lax.cond`, `lax.scan` or
`lax.while_loop` they fall to a kernel that is many times slower. Here they come
in the known layout to begin with; the numbers are the same.
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
    """`jax.lax.conv_general_dilated`, for `conv_general_dilated=` of `flax.linen.Conv`.

    On other backends than the CPU, in another layout, and for grouped, dilated or not
    two-dimensional convolutions, it is that function itself.

    Args:
      lhs: Images, `[N, H, W, C]`.
      rhs: Kernel, `[h, w, C, O]`.
      window_strides: Strides, of height and width.
      padding: "SAME", "VALID" or pairs.
      options: Others of `jax.lax.conv_general_dilated`.

    Returns:
      `[N, H', W', O]`.
    """
    dilations = (*(options.get("lhs_dilation") or ()),)
    dilations += (*(options.get("rhs_dilation") or ()),)
    given = lax.conv_dimension_numbers(
        lhs.shape, rhs.shape, options.get("dimension_numbers")
    )
    plain = (
        jax.default_backend() != "cpu"
        or lhs.ndim != 4
        or given != lax.conv_dimension_numbers(lhs.shape, rhs.shape, _LAYOUT)
        or any(d != 1 for d in dilations)
        or options.get("feature_group_count", 1) != 1
        or options.get("batch_group_count", 1) != 1
        or options.get("precision") is not None
        or options.get("preferred_element_type") is not None
    )
    if plain:
        return lax.conv_general_dilated(lhs, rhs, window_strides, padding, **options)
    strides = tuple(window_strides)
    if isinstance(padding, str):
        sizes = lhs.shape[1:3], rhs.shape[:2]
        padding = lax.padtype_to_pads(*sizes, strides, padding)
    pads = tuple((int(low), int(high)) for low, high in padding)
    return _conv(lhs, rhs, strides, pads)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _conv(x: jax.Array, w: jax.Array, strides: Sizes, pads: Pads) -> jax.Array:
    return lax.conv_general_dilated(x, w, strides, pads, dimension_numbers=_LAYOUT)


@_conv.defjvp
def _conv_jvp(
    strides: Sizes, pads: Pads, primals: Any, tangents: Any
) -> tuple[jax.Array, jax.Array]:
    x, w = primals
    dx, dw = tangents
    # Layouts whose transposes, by lax's own rules, are ("NHWC", "HWIO", "NHWC").
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
