"""Types that the modules share: types of arguments and of estimates."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypedDict

import jax
import jax.numpy as jnp

PyTree = Any
"""A pytree of arrays: a dict, a Flax state, an Equinox module, a list, one array."""

Params = PyTree
"""The parameters of a network: a pytree of floating point arrays."""

Grads = PyTree
"""A pytree in the structure and shapes of the parameters."""

Masks = PyTree
"""A mask tree: a boolean array for a sparse leaf, a scalar `True` for a dense one."""

Aux = PyTree
"""What `value_fn` returns beside the loss, a pytree; None without `has_aux`."""

Shape = tuple[int, ...]

StackRule = (
    str
    | Callable[[str, Shape], int]
    | Sequence[str | Callable[[str, Shape], int]]
    | Mapping[str, int]
)
"""Names stacks of layers: `{pattern: number of leading axes}`, patterns with one axis,
functions `(path, shape) -> number`, or a sequence of patterns and functions."""

Memory = PyTree
"""What a method carries from one step to the next; () for nothing."""

OptState = PyTree
"""The state of an Optax transformation."""

Key = jax.Array
"""One PRNG key, as `jax.random.key(0)`."""

ValueFn = Callable[..., Any]
"""`params -> loss`, or `params -> (loss, aux)` with `has_aux=True`."""

Scalar = float | jax.Array
"""A number or a scalar array, which may be traced."""

Seed = int | jax.Array
"""The seed of random draws, an integer >= 0, which may be traced."""

Schedule = Callable[[jax.typing.ArrayLike], jax.typing.ArrayLike]
"""`step count (int32 scalar) -> value`, as Optax has them."""

Radius = Scalar | Schedule
"""A radius of perturbation, or a schedule of it over optimizer steps."""

Step = Scalar | Literal["auto"]
"""Step of a finite difference; "auto": see `zs.estimators.difference_step`."""

Predicate = Callable[[jax.Array], jax.typing.ArrayLike]
"""`optimizer step (int32 scalar) -> whether to do it in this step`, a bool scalar."""


class SharedOptions(TypedDict, total=False):
    """The keyword options that all sharpness-aware gradients share.

    They are described at `zs.gradients.sharpness_aware`.
    """

    norm_over: str
    include: str | Sequence[str]
    exclude: str | Sequence[str]
    aux_from: str | None
    when: Predicate | None
    ascent_fraction: float
    ascent_examples: str
    microbatches: int
    fresh_keys: bool
    axis_name: str | None
    sync_ascent: bool
    has_aux: bool
    aux_like: PyTree | None
    seed: Seed


class Info(NamedTuple):
    """Diagnostics of an estimate. Under `jit`, unused ones cost nothing.

    Attributes:
      perturbation_norm: |eps|, the distance from w at which the gradient was taken,
        after rounding to the parameters' dtype. float32 scalar, like the others.
      direction_norm: Norm of the ascent direction before it was normalised, over the
        perturbed weights and in the method's geometry; of a zeroth-order gradient
        without an ascent, its own norm.
      cosine: Cosine of the angle between eps and the gradient that was taken there,
        over live weights.
      descent_value: The loss at the perturbed parameters.
      unperturbed: 1 where the direction was zero or not finite, so that the plain
        gradient was returned, or where all finite differences of a zeroth-order
        gradient were zero, so that it is 0; else 0. int32.
      forward_evaluations: Loss evaluations without a backward pass, of `value_fn` or
        `ascent_value_fn`. An evaluation on a part of the batch that the method
        chose counts as that fraction.
      backward_evaluations: Backward passes (each with its forward pass), likewise.
    """

    perturbation_norm: jax.Array
    direction_norm: jax.Array
    cosine: jax.Array
    descent_value: jax.Array
    unperturbed: jax.Array
    forward_evaluations: jax.Array
    backward_evaluations: jax.Array

    @staticmethod
    def zeros() -> "Info":
        """Returns the `Info` of no evaluation at all."""
        # An array each: a donated state may not hold one twice.
        zeros = {name: jnp.zeros((), jnp.float32) for name in Info._fields}
        return Info(**{**zeros, "unperturbed": jnp.zeros((), jnp.int32)})


class Estimate(NamedTuple):
    """An estimate of a gradient, with its loss, aux and diagnostics.

    Attributes:
      value: The loss at the unperturbed parameters, scalar; the method's documentation
        says whether it is exact.
      grad: The gradient, in the structure and dtypes of the parameters.
      aux: What `value_fn` returned beside the loss, in the pass that `aux_from` names;
        None without `has_aux`.
      info: See `Info`.
      memory: What the method carries to the next step; () for nothing.
    """

    value: jax.Array
    grad: Grads
    aux: Aux
    info: Info
    memory: Memory = ()


Fact = tuple[()] | None
"""A statement in a pytree's structure: () where it holds, None where it does not."""


class Facts(NamedTuple):
    """What a gradient estimator is, as a part of its state.

    `optax.chain` and `optax.inject_hyperparams` hide the attributes of the estimator
    inside them, and keep its state. Each fact is `()` where it holds and None where it
    does not. Neither has leaves, so a fact is known while a program is traced, and
    every checkpoint format can store it.

    Attributes:
      dense: Its gradient has the entries of pruned weights.
      by_example: It calls `value_fn(params, examples=indices)`.
      direction_only: Its ascent step evaluates the loss only to find a direction.
      decoupled: Its gradient is a `Decoupled`.

    Example:
      >>> import jax.numpy as jnp, optax, zosam_jax as zs
      >>> tx = optax.chain(zs.zeroth_order(), optax.clip_by_global_norm(1.0))
      >>> (state,) = zs.tree.nodes(tx.init(jnp.zeros(2)), zs.EstimatorState)
      >>> state.facts.dense is None
      True
    """

    dense: Fact = ()
    by_example: Fact = None
    direction_only: Fact = None
    decoupled: Fact = None


class EstimatorState(NamedTuple):
    """The state of a gradient estimator in an Optax chain.

    Attributes:
      step: Number of estimates made, int32; with the seed it determines the key.
      value: The loss of the last estimate, float32.
      aux: What `value_fn` returned beside the loss.
      info: See `Info`.
      memory: What the method carries from one step to the next; () for nothing.
      standstill: Number of estimates in a row, up to the last, with
        `info.unperturbed`. int32.
      facts: See `Facts`.
    """

    step: jax.Array
    value: jax.Array
    aux: Aux
    info: Info
    memory: Memory
    standstill: jax.Array
    facts: Facts = Facts()


class Decoupled(NamedTuple):
    """WSAM's gradient in two parts, for `decoupled`.

    Attributes:
      grad: The gradient at w, for the optimizer.
      sharpness: The direction of the second step, with the plain learning rate.
    """

    grad: Grads
    sharpness: Grads


class Units(NamedTuple):
    """A kind of unit that `zs.sparsity.units` prunes, and where its weights are.

    Paths are key paths of the parameters, joined by `/`; `*` matches any text. The text
    that `*` matches in `outgoing` replaces `*` in `incoming`, in order: with incoming
    `"*/mlp1/kernel"`, the units of `"*/mlp2/kernel"` at `block3/mlp2/kernel` come from
    `block3/mlp1/kernel`.

    Attributes:
      outgoing: Path of the kernels that read the units. Each kernel that matches is a
        separate layer of units.
      units: Number of units of a layer. The input axis is split into that many equal
        blocks, as for the heads of an attention. None: every input is a unit.
      incoming: Paths of the leaves whose output axis is the units: kernels, biases, the
        scales of a normalization in between.
      drop: Drop score: "magnitude", the norms of the unit's weights, or "taylor", the
        change of the loss without the unit to first order.
      outgoing_axis: Input axis of `outgoing`: -2 for the kernels of Flax and Haiku, 1
        for Equinox's.
      incoming_axis: Output axis of `incoming`: -1, or 0 for Equinox's.
      others: Paths of further kernels that read the same units, as the channels of a
        residual stream. `zs.sparsity.compact` cuts out what none of them reads; the
        method `units` takes no such units.
      activation: What a unit computes of its product and bias, if each reader sees
        nothing else and has a bias: "relu", "gelu" or "gelu_tanh". A unit without
        incoming weights is then a constant, which `compact` adds to the readers'
        biases. "": unknown.
      scale: Which of `incoming` is the scale of the units' batch normalization. `chex`
        shares its budget among the layers by it. "": there is none.
    """

    outgoing: str
    units: int | None = None
    incoming: tuple[str, ...] = ()
    drop: str = "magnitude"
    outgoing_axis: int = -2
    incoming_axis: int = -1
    others: tuple[str, ...] = ()
    activation: str = ""
    scale: str = ""
