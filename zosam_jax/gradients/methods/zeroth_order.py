"""Zeroth-order gradients in Optax chains, and optimizers without a backward pass."""

import functools
from collections.abc import Callable, Sequence
from typing import TypedDict, Unpack

import jax
import jax.numpy as jnp
import optax

from zosam_jax import _check, tree
from zosam_jax._options import checks_arguments, passes_options_to
from zosam_jax._types import (
    Estimate,
    Grads,
    Key,
    Masks,
    Memory,
    Params,
    PyTree,
    Scalar,
    Schedule,
    Step,
    ValueFn,
)
from zosam_jax.estimators import DISTRIBUTIONS, check_chunks, check_step, redrawn, rge
from zosam_jax.gradients.constructor import support
from zosam_jax.gradients.transformation import GradientEstimator, as_transformation


class Directions(TypedDict, total=False):
    """The options of `zeroth_order`, which the optimizers take too."""

    delta: Step
    num_directions: int
    distribution: str
    two_sided: bool
    chunk_size: int | None
    redraw: bool
    include: str | Sequence[str]
    exclude: str | Sequence[str]
    has_aux: bool
    aux_like: PyTree | None
    seed: Scalar


@checks_arguments
def zeroth_order(
    *,
    delta: Step = "auto",
    num_directions: int = 1,
    distribution: str = "gaussian",
    two_sided: bool = True,
    chunk_size: int | None = None,
    redraw: bool = False,
    include: str | Sequence[str] = (),
    exclude: str | Sequence[str] = (),
    has_aux: bool = False,
    aux_like: PyTree | None = None,
    seed: Scalar = 0,
) -> GradientEstimator:
    r"""Returns the random gradient estimate, as a transformation like `backprop`.

    .. math::
      \hat g = \frac{1}{m} \sum_{i=1}^m
               \frac{L(w + \delta u_i) - L(w - \delta u_i)}{2 \delta} \, u_i

    Nesterov and Spokoiny (2017). Its error is about :math:`\sqrt{d/m}` times the
    gradient over d live weights, so learning rates must be smaller by that factor. It
    keeps no directions: they come from `fold_in(key(seed), t)`. In `sparsify` the
    estimate is zero off the mask, so do not grow weights by the gradient.

    Args:
      delta: Step of the finite difference, > 0, per unit of u. "auto": 0.001 in
        float32, 0.04 in bfloat16; see `zs.estimators.difference_step`.
      num_directions: m; 2m forward passes (one-sided m + 1).
      distribution: "gaussian", "sphere" or "rademacher".
      two_sided: Central or forward differences.
      chunk_size: None, or directions evaluated in one `jax.vmap`.
      redraw: Whether a direction is drawn again for each use of it, which takes three
        draws and little memory; see `zs.estimators.redrawn`.
      include: Glob patterns on `/`-joined key paths, such as `"*/lora_*"`. Only these
        leaves are probed, and the gradient of the others is zero: a frozen leaf would
        add noise to the gradient of the rest. Default: all.
      exclude: Patterns of leaves that are not probed.
      has_aux: Whether `value_fn` returns `(loss, aux)`.
      aux_like: An example of aux; see `sam`.
      seed: Integer.

    Returns:
      A transformation: `tx.update(None, state, params, value_fn=...)`.
    """
    check_step(delta)
    _check.flags(two_sided=two_sided, redraw=redraw, has_aux=has_aux)
    _check.one_of("distribution", distribution, DISTRIBUTIONS)
    check_chunks(num_directions, chunk_size)
    if redraw and chunk_size is not None:
        raise ValueError(
            f"redraw=True evaluates one direction after another, and chunk_size="
            f"{chunk_size} several at once. Leave one of them out."
        )

    def gradient(
        value_fn: ValueFn,
        params: Params,
        *,
        key: Key | None,
        masks: Masks | None,
        **rest: object,
    ) -> Estimate:
        del rest
        if key is None:
            raise TypeError(
                "zs.zeroth_order draws at random: give it key=, a PRNG key."
            )
        estimator = redrawn if redraw else _in_chunks(chunk_size)
        seen = estimator(
            value_fn,
            params,
            key,
            delta=delta,
            num_directions=num_directions,
            distribution=distribution,
            two_sided=two_sided,
            masks=support(params, masks, include, exclude),
            has_aux=has_aux,
        )
        grad = jax.tree.map(
            lambda g, w: g.astype(jnp.result_type(w)), seen.grad, params
        )
        info = seen.info._replace(descent_value=seen.value)
        return seen._replace(grad=grad, info=info)

    return as_transformation(
        "zeroth_order",
        gradient,
        has_aux=has_aux,
        aux_like=aux_like,
        seed=seed,
        dense=False,
        make=functools.partial(
            zeroth_order,
            delta=delta,
            num_directions=num_directions,
            distribution=distribution,
            two_sided=two_sided,
            chunk_size=chunk_size,
            redraw=redraw,
            include=include,
            exclude=exclude,
            has_aux=has_aux,
            aux_like=aux_like,
            seed=seed,
        ),
    )


def _in_chunks(size: int | None) -> Callable[..., Estimate]:
    """Returns `rge`, without the estimate off the masks."""
    return lambda *args, **options: rge(*args, chunk_size=size, **options)[0]


@checks_arguments
def zeroth_order_gradient(
    value_fn: ValueFn,
    params: Params,
    key: Key | None = None,
    *,
    delta: Step = "auto",
    num_directions: int = 1,
    distribution: str = "gaussian",
    two_sided: bool = True,
    chunk_size: int | None = None,
    redraw: bool = False,
    include: str | Sequence[str] = (),
    exclude: str | Sequence[str] = (),
    masks: Masks | None = None,
    memory: Memory | None = None,
    step: Scalar | None = None,
    ascent_value_fn: ValueFn | None = None,
    has_aux: bool = False,
) -> Estimate:
    """Returns the random gradient estimate as a pure function; see `zeroth_order`.

    Args:
      value_fn: `params -> loss`, or `params -> (loss, aux)` with `has_aux`.
      params: Pytree of floating point arrays, w.
      key: One PRNG key, for the directions.
      delta: Step of the finite difference, > 0, per unit of u. "auto": 0.001 in
        float32, 0.04 in bfloat16; see `zs.estimators.difference_step`.
      num_directions: m; 2m forward passes (one-sided m + 1).
      distribution: "gaussian", "sphere" or "rademacher".
      two_sided: Central or forward differences.
      chunk_size: None, or directions evaluated in one `jax.vmap`.
      redraw: Whether a direction is drawn again for each use of it, which takes three
        draws and little memory; see `zs.estimators.redrawn`.
      include: Patterns of the leaves that are probed; default: all.
      exclude: Patterns of leaves that are not probed.
      masks: Mask tree: the estimate is zero off the mask.
      memory: Not used, like `step` and `ascent_value_fn`.
      step: See `memory`.
      ascent_value_fn: See `memory`.
      has_aux: Whether `value_fn` returns `(loss, aux)`.

    Example:
      >>> import jax, jax.numpy as jnp, zosam_jax as zs
      >>> w = jnp.array([3.0])
      >>> found = zs.zeroth_order_gradient(
      ...     lambda w: jnp.sum(w**2), w, jax.random.key(0), distribution="rademacher"
      ... )
      >>> print(found.grad.round(1), found.info.forward_evaluations)
      [6.] 2.0
    """
    del memory, step, ascent_value_fn
    made = zeroth_order(
        delta=delta,
        num_directions=num_directions,
        distribution=distribution,
        two_sided=two_sided,
        chunk_size=chunk_size,
        redraw=redraw,
        include=include,
        exclude=exclude,
        has_aux=has_aux,
    )
    return made.gradient(value_fn, params, key, masks=masks)


@passes_options_to(zeroth_order)
def zo_sgd(
    learning_rate: Scalar | Schedule,
    *,
    momentum: Scalar | None = None,
    weight_decay: Scalar = 0.0,
    **options: Unpack[Directions],
) -> optax.GradientTransformationExtraArgs:
    r"""ZO-SGD: `w <- w - eta (g + lambda w)` with a zeroth-order g.

    With one direction and no momentum, it is MeZO (arXiv:2305.17333, algorithm 1): two
    forward passes, and a state that holds no copy of the parameters.

    Args:
      learning_rate: eta, or a schedule; MeZO's are 1e-7 to 1e-5.
      momentum: None, or a decay, which costs a copy of the parameters.
      weight_decay: lambda.

    Returns:
      An optimizer: `tx.update(None, state, params, value_fn=...)`.

    Example:
      >>> import jax.numpy as jnp, optax, zosam_jax as zs
      >>> tx = zs.zo_sgd(0.1)
      >>> w = jnp.array([1.0, -2.0])
      >>> state = tx.init(w)
      >>> for _ in range(60):
      ...     updates, state = tx.update(None, state, w, value_fn=lambda w: w @ w)
      ...     w = optax.apply_updates(w, updates)
      >>> print(bool(w @ w < 0.1))
      True
    """
    return _along_estimate(
        options,
        optax.add_decayed_weights(weight_decay),
        optax.sgd(learning_rate, momentum=momentum),
    )


@passes_options_to(zeroth_order)
def zo_signsgd(
    learning_rate: Scalar | Schedule, **options: Unpack[Directions]
) -> optax.GradientTransformationExtraArgs:
    r"""ZO-signSGD: `w <- w - eta sign(g)` with a zeroth-order g.

    Liu et al. (ICLR 2019, "signSGD via zeroth-order oracle"): the sign of the estimate,
    entry by entry; entries off the mask stay 0.

    Args:
      learning_rate: eta, or a schedule.

    Returns:
      An optimizer: `tx.update(None, state, params, value_fn=...)`.
    """
    return _along_estimate(
        options,
        optax.scale_by_sign(),
        optax.scale_by_learning_rate(learning_rate),
    )


@passes_options_to(zeroth_order)
def zo_adam(
    learning_rate: Scalar | Schedule,
    *,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    weight_decay: Scalar = 0.0,
    **options: Unpack[Directions],
) -> optax.GradientTransformationExtraArgs:
    r"""ZO-Adam: AdamW on a zeroth-order gradient; keeps two copies of the parameters.

    After ZO-AdaMM (Chen et al., arXiv:1910.06513), with Adam's own second moment.

    Args:
      learning_rate: eta, or a schedule.
      b1: Decay of the first moment.
      b2: Decay of the second moment.
      eps: Added to the root of the second moment.
      weight_decay: Decoupled.

    Returns:
      An optimizer: `tx.update(None, state, params, value_fn=...)`.
    """
    return _along_estimate(
        options,
        optax.adamw(learning_rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay),
    )


def _along_estimate(
    options: Directions, *steps: optax.GradientTransformation
) -> optax.GradientTransformationExtraArgs:
    """The steps behind the estimate; leaves that are not probed stay as they are."""
    include, exclude = options.get("include", ()), options.get("exclude", ())

    def freeze(updates: Grads, params: Params | None) -> Grads:
        # Weight decay would move them. `zeroth_order` has refused params=None.
        return tree.mask(updates, support(params, None, include, exclude))

    frozen = [optax.stateless(freeze)] if include or exclude else []
    return optax.chain(zeroth_order(**options), *steps, *frozen)
