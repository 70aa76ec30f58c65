"""Sparse training around any Optax optimizer."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from zosam_jax import _check, tree
from zosam_jax._types import (
    Decoupled,
    EstimatorState,
    Grads,
    Masks,
    Memory,
    OptState,
    Params,
    PyTree,
)
from zosam_jax.sparsity.mask_trees import landing, restricted, sparsity_of
from zosam_jax.sparsity.method import SparseMethod, Topology
from zosam_jax.sparsity.moments import reset_moments
from zosam_jax.sparsity.packing import PackedMasks, pack, unpack


class SparsifyState(NamedTuple):
    """State of `sparsify`.

    Attributes:
      step: Optimizer steps taken, int32.
      masks: Mask tree; with `packed=True` a packed one, which `masks(state)` unpacks.
      memory: What the method carries along: exact integer targets, thresholds.
      explored: Union of all masks until now, packed likewise; () if not tracked.
      inner: State of the inner optimizer.
      gradient: State of the gradient estimator; () without one.
      accumulated: `(number of micro-batches since the last step, their mean gradient)`;
        () without accumulation.
    """

    step: jax.Array
    masks: Masks | PackedMasks
    memory: Memory
    explored: Masks | PackedMasks
    inner: OptState
    gradient: OptState
    accumulated: PyTree


def sparsify(
    inner: optax.GradientTransformation,
    method: SparseMethod,
    gradient: optax.GradientTransformationExtraArgs | None = None,
    *,
    accumulate_steps: int = 1,
    packed: bool = False,
    track_exploration: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Sparse training with any optimizer: masks are state, updates land on them.

    Each update

    1. takes the gradient with `gradient`, on the masks;
    2. changes the topology by the dense gradient, if the method says so in this step
       (a `lax.cond` branch), and resets the optimizer's moments of dropped and grown
       weights;
    3. steps `inner` with the masked gradient;
    4. emits updates after which every pruned weight is exactly 0. So keep it outermost:
       what follows it in a chain may move pruned weights. A pruned weight that was NaN
       or infinite stays NaN, since nothing added to it gives 0; `apply_masks` does.

    A straight-through method (`ste`) trains the pruned weights too: `params` are dense,
    no moments are reset, and the gradient is taken at the masked parameters. The masks
    are chosen after the step, so `masks(state)` belong to `params` (with
    `ste(interval=)` above 1, to the parameters of the last choice).

    Start with `state = tx.init(params)` and
    `params = zs.sparsity.apply_masks(params, zs.sparsity.masks(state))`.

    Args:
      inner: The optimizer. Gradient clipping inside it sees live weights only.
      method: From `zs.sparsity`: `rigl`, `set_`, `static`, ...
      gradient: A gradient estimator, such as `zs.zosam(...)`; it is given `value_fn`
        and the masks. None: `updates` is the gradient with respect to every weight, as
        `jax.grad` gives it at the masked parameters.
      accumulate_steps: Number of updates whose gradients are averaged into one
        optimizer step; the other updates are zero. Schedules count optimizer steps.
      packed: Keep the masks in the state in one bit a weight instead of one byte. They
        are unpacked in every update.
      track_exploration: Remember which weights were ever live, for `exploration`.

    Returns:
      A transformation whose state is a `SparsifyState`.

    Raises:
      ValueError: On update, without params, or without a gradient of either kind.
      ValueError: The method grows by a gradient that `gradient` does not estimate.
      TypeError: `inner` or `gradient` is no Optax transformation, `method` is no
        method, or, at init, `inner` holds `optax.MultiSteps` or an estimator.

    Example:
      >>> import jax.numpy as jnp, optax, zosam_jax as zs
      >>> loss = lambda w: jnp.sum((w - 1.0) ** 2)
      >>> tx = zs.sparsify(optax.sgd(0.1), zs.sparsity.rigl(0.75, 1000), zs.zosam(0.05))
      >>> w = jnp.ones((4, 4))
      >>> state = tx.init(w)
      >>> w = zs.sparsity.apply_masks(w, zs.sparsity.masks(state))
      >>> updates, state = tx.update(None, state, w, value_fn=loss)
      >>> w = optax.apply_updates(w, updates)
      >>> print(int(jnp.sum(w != 0)))
      4
    """
    _check_transformations(inner, method, gradient)
    _check.whole("accumulate_steps", accumulate_steps)
    inner = optax.with_extra_args_support(inner)
    if gradient is not None:
        gradient = optax.with_extra_args_support(gradient)
    step = _Step(inner, method, packed)
    hold = step.hold

    def init(params: Params) -> SparsifyState:
        topology = method.init(params)
        moments = inner.init(step.network(params, topology.masks))
        _check_inner(moments)
        explored = ()
        if track_exploration:
            # Copies: a donated state may not hold an array twice.
            explored = hold(jax.tree.map(jnp.copy, topology.masks))
        return SparsifyState(
            step=jnp.zeros((), jnp.int32),
            masks=hold(topology.masks),
            memory=topology.memory,
            explored=explored,
            inner=moments,
            gradient=() if gradient is None else gradient.init(params),
            accumulated=_nothing_yet(params) if accumulate_steps > 1 else (),
        )

    def update(
        updates: Grads,
        state: OptState,
        params: Params | None = None,
        **extra_args: Any,
    ) -> tuple[Grads, OptState]:
        if params is None:
            raise ValueError(
                "zs.sparsify needs params: tx.update(grads, state, params)."
            )
        masks = unpack(state.masks)
        if gradient is None:
            grads = updates
        else:
            grads, gradient_state = gradient.update(
                updates,
                state.gradient,
                step.seen(params, masks),
                **{**extra_args, "masks": masks, "optimizer_step": state.step},
            )
            state = state._replace(gradient=gradient_state)
        _check_gradient(grads, params, accumulate_steps)
        if accumulate_steps == 1:
            return step(grads, state, masks, params, extra_args)

        count, mean = state.accumulated
        # A running mean: a sum of many bfloat16 gradients could overflow.
        mean = jax.tree.map(lambda m, g: m + (g - m) / (count + 1), mean, grads)
        emit = count + 1 == accumulate_steps

        def take(
            mean: Grads, state: SparsifyState, masks: Masks, params: Params
        ) -> tuple[Grads, SparsifyState]:
            grads = jax.tree.map(lambda m, g: m.astype(g.dtype), mean, params)
            updates, state = step(grads, state, masks, params, extra_args)
            zeros = jax.tree.map(jnp.zeros_like, mean)
            return updates, state._replace(accumulated=(jnp.zeros_like(count), zeros))

        def wait(
            mean: Grads, state: SparsifyState, masks: Masks, params: Params
        ) -> tuple[Grads, SparsifyState]:
            shapes, _ = jax.eval_shape(take, mean, state, masks, params)
            zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
            return zeros, state._replace(accumulated=(count + 1, mean))

        return jax.lax.cond(emit, take, wait, mean, state, masks, params)

    return optax.GradientTransformationExtraArgs(init, update)


class _Step:
    """An optimizer step on the masks, with a change of topology where one is due."""

    def __init__(
        self,
        inner: optax.GradientTransformationExtraArgs,
        method: SparseMethod,
        packed: bool,
    ):
        self.inner, self.method, self.packed = inner, method, packed
        self.straight_through = method.straight_through is not None

    def hold(self, masks: Masks) -> Masks | PackedMasks:
        """Returns the masks as the state holds them."""
        return pack(masks) if self.packed else masks

    def network(self, params: Params, masks: Masks) -> Params:
        """Returns the parameters that the optimizer moves."""
        return params if self.straight_through else tree.mask(params, masks)

    def seen(self, params: Params, masks: Masks) -> Params:
        """Returns the parameters at which the gradient is taken."""
        return tree.mask(params, masks) if self.straight_through else params

    def __call__(
        self,
        grads: Grads | Decoupled,
        state: SparsifyState,
        masks: Masks,
        params: Params,
        extra_args: dict[str, Any],
    ) -> tuple[Grads, SparsifyState]:
        """Returns the updates and the state after the step; `masks` are the state's."""
        decay = self.method.straight_through
        if decay is None:
            state, masks = self._rewired(_main(grads), state, masks, params)
            given = _by_part(lambda part: restricted(part, masks), grads)
        else:
            given = _with_decay(grads, params, masks, decay)
        updates, moments = self.inner.update(
            given, state.inner, self.network(params, masks), **extra_args
        )
        state = state._replace(inner=moments)
        if decay is None:
            updates = landing(updates, params, masks)
        else:
            new = optax.apply_updates(params, updates)
            state, masks = self._rewired(_main(grads), state, masks, new)
        return updates, state._replace(step=optax.safe_increment(state.step))

    def _rewired(
        self, grads: Grads, state: SparsifyState, masks: Masks, params: Params
    ) -> tuple[SparsifyState, Masks]:
        """Returns state and masks after a change of topology, if one is due.

        What passes through the conditional is what the state holds; packed masks pass
        beside the unpacked ones, so that only a change packs and unpacks.
        """
        if self.method.fires is None:
            return state, masks
        held = state.masks if self.packed else ()

        def changed(
            grads: Grads, state: SparsifyState, held: PyTree, params: Params
        ) -> tuple[SparsifyState, PyTree]:
            del held
            state = self._changed(grads, state, params)
            return state, pack(state.masks) if self.packed else ()

        state, held = jax.lax.cond(
            self.method.fires(state.step),
            changed,
            lambda _, state, held, __: (state, held),
            *(grads, state._replace(masks=masks), held, params),
        )
        masks = state.masks
        return state._replace(masks=held if self.packed else masks), masks

    def _changed(
        self, grads: Grads, state: SparsifyState, params: Params
    ) -> SparsifyState:
        """Returns the state after a change; its masks are unpacked before and after."""
        method, old = self.method, state.masks
        assert method.change is not None
        before = Topology(old, state.memory)
        new = method.change(before, params, grads, state.step)
        if method.dense_gradient_every is not None and not self.straight_through:
            # A gradient with NaN ranks nothing, so nothing changes. (A straight-through
            # method ranks weights, and its masks follow `params` in any case.)
            new = tree.where(tree.all_finite(grads), new, before)
        if not self.straight_through:
            changed = jax.tree.map(jnp.logical_xor, new.masks, old)
            # By the optimizer's own `init`: zeros are not always its first state.
            fresh = self.inner.init(tree.mask(params, new.masks))
            moments = reset_moments(state.inner, fresh, changed)
            state = state._replace(inner=moments)
        if jax.tree.leaves(state.explored):
            ever = jax.tree.map(jnp.logical_or, unpack(state.explored), new.masks)
            state = state._replace(explored=self.hold(ever))
        return state._replace(masks=new.masks, memory=new.memory)


def _nothing_yet(params: Params) -> tuple[jax.Array, Grads]:
    """Returns the accumulated gradient before the first micro-batch."""
    zeros = jax.tree.map(
        lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)), params
    )
    return jnp.zeros((), jnp.int32), zeros


def masks(state: OptState) -> Masks:
    """Returns the mask tree held in an optimizer state.

    Args:
      state: An Optax state with `sparsify` anywhere inside it. If
        `optax.multi_transform` gives several `sparsify` their own leaves, their masks
        are put together. Leaves of other optimizers stay `optax.MaskedNode()`, which
        `apply_masks` treats as dense.

    Returns:
      A tree like the parameters: boolean arrays, scalar True for dense leaves.

    Raises:
      ValueError: The state holds no `sparsify`, or two for the same leaf.
    """
    found = _states(state)
    if not found:
        raise ValueError(
            "The state holds no masks: pass the state of an optimizer made by "
            "zs.sparsify(...)."
        )
    return functools.reduce(_merge, [unpack(x.masks) for x in found])


def exploration(state: OptState) -> jax.Array:
    r"""Returns ITOP's exploration rate: the fraction of weights that were ever live.

    .. math:: R_s = \frac{|\cup_t m_t|}{N}

    over the sparse leaves (arXiv:2102.02887, section 3.2), float32 scalar.

    Args:
      state: An Optax state with `sparsify(..., track_exploration=True)` inside it.

    Raises:
      ValueError: The state does not track what was explored.
    """
    return 1 - sparsity_of(explored(state))


def explored(state: OptState) -> Masks:
    """Returns the union of all masks until now, a mask tree.

    Args:
      state: As in `exploration`.

    Raises:
      ValueError: As in `exploration`.
    """
    # A bare mask array compares with no tuple.
    found = [x.explored for x in _states(state) if jax.tree.leaves(x.explored)]
    if not found:
        raise ValueError(
            "The state does not track what was explored. Say "
            "zs.sparsify(..., track_exploration=True)."
        )
    return functools.reduce(_merge, map(unpack, found))


def _states(state: OptState) -> list[SparsifyState]:
    def is_state(x: object) -> bool:
        return isinstance(x, SparsifyState)

    return [x for x in jax.tree.leaves(state, is_leaf=is_state) if is_state(x)]


def _merge(a: PyTree, b: PyTree) -> PyTree:
    """Merges two trees, each of which is `optax.MaskedNode` where the other is not."""
    if isinstance(a, optax.MaskedNode):
        return b
    if isinstance(b, optax.MaskedNode):
        return a
    if jax.tree_util.all_leaves([a]):
        raise ValueError(
            "The state holds several masks of one leaf: pass the state of one "
            "zs.sparsify(...), or of several that each have leaves of their own."
        )
    children, treedef = jax.tree.flatten(a, is_leaf=lambda x: x is not a)
    others = jax.tree.leaves(b, is_leaf=lambda x: x is not b)
    return jax.tree.unflatten(treedef, map(_merge, children, others))


def _main(grads: Grads | Decoupled) -> Grads:
    """Returns the gradient that the optimizer steps along."""
    return grads.grad if isinstance(grads, Decoupled) else grads


def _by_part(
    function: Callable[[Grads], Grads], grads: Grads | Decoupled
) -> Grads | Decoupled:
    """Applies a function to the gradient, or to both parts of a decoupled one."""
    if isinstance(grads, Decoupled):
        return Decoupled(*map(function, grads))
    return function(grads)


def _with_decay(
    grads: Grads | Decoupled, params: Params, masks: Masks, decay: float
) -> Grads | Decoupled:
    """Returns the gradient plus `decay` times the pruned weights (SR-STE)."""
    if not decay:
        return grads
    pruned = tree.subtract(params, tree.mask(params, masks))
    moved = tree.add_scaled(_main(grads), decay, pruned)
    return grads._replace(grad=moved) if isinstance(grads, Decoupled) else moved


def _check_gradient(
    grads: Grads | Decoupled | None, params: Params, accumulate_steps: int
) -> None:
    """Raises `ValueError` unless there is a gradient with which a step can be made."""
    if grads is None:
        raise ValueError(
            "zs.sparsify has no gradient: pass one as updates, or say "
            "gradient=zs.zosam(...) (or zs.backprop()) and give value_fn."
        )
    if jax.tree.structure(_main(grads)) != jax.tree.structure(params):
        raise ValueError(
            "the gradient must have the structure of params; got "
            f"{jax.tree.structure(grads)} for {jax.tree.structure(params)}. "
            "(Equinox: filter both, params = eqx.filter(model, "
            "eqx.is_inexact_array).)"
        )
    if isinstance(grads, Decoupled) and accumulate_steps > 1:
        raise ValueError(
            "accumulate_steps > 1 averages one gradient, but "
            "zs.wsam(decouple=True) has two parts. Say decouple=False."
        )


def _check_inner(state: OptState) -> None:
    """Raises `TypeError` if the state is that of an optimizer that cannot be inner."""

    def holds(kind: type) -> bool:
        nodes = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, kind))
        return any(isinstance(x, kind) for x in nodes)

    if holds(optax.MultiStepsState):
        raise TypeError(
            "zs.sparsify around optax.MultiSteps would change the topology between "
            "micro-batches. Say zs.sparsify(optimizer, method, ..., "
            "accumulate_steps=k), or, without gradient=, "
            "optax.MultiSteps(zs.sparsify(...), k)."
        )
    if holds(EstimatorState):
        raise TypeError(
            "a gradient estimator inside the inner optimizer knows no masks. Say "
            "zs.sparsify(optimizer, method, gradient=zs.zosam(...))."
        )


def _check_transformations(inner: Any, method: Any, gradient: Any) -> None:
    if not isinstance(method, SparseMethod):
        hint = ""
        if callable(method):
            hint = " Call it: zs.sparsity.rigl(sparsity=0.9, ...)."
        elif isinstance(inner, SparseMethod):
            hint = " The optimizer comes first: zs.sparsify(optimizer, method)."
        raise TypeError(
            "method must come from zs.sparsity (rigl, set_, static, dynamic); got "
            f"{type(method).__name__}.{hint}"
        )
    for name, value in (("inner", inner), ("gradient", gradient)):
        if not (hasattr(value, "init") and hasattr(value, "update")) and not (
            name == "gradient" and value is None
        ):
            hint = " Call it: zs.zosam(rho=0.05)." if callable(value) else ""
            raise TypeError(
                f"{name} must be an Optax transformation; got "
                f"{type(value).__name__}.{hint}"
            )
    if method.dense_gradient_every is not None and not getattr(gradient, "dense", True):
        raise ValueError(
            "the method uses the gradient of pruned weights, which a zeroth-order "
            "gradient does not estimate: nothing would ever grow. Use zs.sparsity.set_"
        )
