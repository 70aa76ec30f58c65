"""Sparse training around any Optax optimizer."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from zosam_jax import _check, tree
from zosam_jax._types import Decoupled, EstimatorState
from zosam_jax.sparsity.mask_trees import (
    landing,
    reset_moments,
    restricted,
    sparsity_of,
)
from zosam_jax.sparsity.method import SparseMethod, Topology
from zosam_jax.sparsity.packing import pack, unpack


class SparsifyState(NamedTuple):
    """State of `sparsify`.

    Attributes:
      step: Optimizer steps taken, int32.
      masks: Mask tree; with `packed=True` a packed one, which `masks(state)` unpacks.
      memory: What the method remembers: exact integer targets, thresholds.
      explored: Union of all masks until now, packed likewise; () where not tracked.
      inner: State of the inner optimizer.
      gradient: State of the gradient estimator; () without one.
      accumulated: Mean gradient of the micro-batches since the last step, and their
        number; () without accumulation.
    """

    step: jax.Array
    masks: Any
    memory: Any
    explored: Any
    inner: Any
    gradient: Any
    accumulated: Any


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

    Each update (1) makes the gradient with `gradient`, on the masks; (2) where the
    method says so, changes the topology, in a `lax.cond` branch, by the dense gradient,
    and resets the optimizer's moments of dropped and grown weights; (3) steps `inner`
    with the masked gradient; (4) emits updates after which every pruned weight is
    exactly 0, so keep it outermost: what follows in a chain may move it off. One that
    was NaN or infinite stays NaN: nothing added to it gives 0. `apply_masks` does.

    A straight-through method (`ste`) trains the pruned weights too: `params` are dense,
    nothing is reset, the gradient is that at the masked parameters, and the masks are
    chosen after the step, so that `masks(state)` are those of `params` (the last choice
    where `ste(interval=)` is above 1).

    Start with `state = tx.init(params)` and
    `params = zs.sparsity.apply_masks(params, zs.sparsity.masks(state))`.

    Args:
      inner: The optimizer. Gradient clipping inside it sees live weights alone.
      method: From `zs.sparsity`: `rigl`, `set_`, `static`, ...
      gradient: A gradient estimator, such as `zs.zosam(...)`; it is given `value_fn`
        and the masks. None: `updates` is the gradient, with respect to every weight, as
        `jax.grad` gives it at the masked parameters.
      accumulate_steps: Updates whose gradients are averaged into one optimizer step;
        the others emit zeros. Schedules count optimizer steps.
      packed: Keep the masks in the state in one bit a weight, not one byte; they are
        unpacked in every update.
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

    hold_masks = pack if packed else lambda masks: masks
    fires, change, decay = method.fires, method.change, method.straight_through

    def network(params: Any, masks: Any) -> Any:
        """The parameters that the optimizer moves."""
        return tree.mask(params, masks) if decay is None else params

    def init(params: Any) -> SparsifyState:
        topology = method.init(params)
        moments = inner.init(network(params, topology.masks))
        _check_inner(moments)
        accumulated = ()
        if accumulate_steps > 1:
            zeros = jax.tree.map(
                lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)),
                params,
            )
            accumulated = (jnp.zeros((), jnp.int32), zeros)
        explored = ()
        if track_exploration:
            # Copies: a donated state may not hold an array twice.
            explored = hold_masks(jax.tree.map(jnp.copy, topology.masks))
        return SparsifyState(
            step=jnp.zeros((), jnp.int32),
            masks=hold_masks(topology.masks),
            memory=topology.memory,
            explored=explored,
            inner=moments,
            gradient=() if gradient is None else gradient.init(params),
            accumulated=accumulated,
        )

    def change_topology(grads: Any, state: SparsifyState, params: Any) -> SparsifyState:
        assert change is not None
        old = unpack(state.masks)
        new = change(Topology(old, state.memory), params, grads, state.step)
        if method.dense_gradient_every is not None and decay is None:
            # A gradient with NaN in it ranks nothing. (A straight-through method ranks
            # weights, and its masks are those of `params` whatever the gradient was.)
            new = tree.where(tree.all_finite(grads), new, Topology(old, state.memory))
        if decay is None:
            changed = jax.tree.map(jnp.logical_xor, new.masks, old)
            fresh = inner.init(tree.mask(params, new.masks))
            moments = reset_moments(state.inner, fresh, changed)
            state = state._replace(inner=moments)
        if track_exploration:
            ever = jax.tree.map(jnp.logical_or, unpack(state.explored), new.masks)
            state = state._replace(explored=hold_masks(ever))
        return state._replace(masks=hold_masks(new.masks), memory=new.memory)

    def rewired(grads: Any, state: SparsifyState, params: Any) -> SparsifyState:
        if fires is None:
            return state
        return jax.lax.cond(
            fires(state.step),
            change_topology,
            lambda _, state, __: state,
            *(grads, state, params),
        )

    def step(
        grads: Any, state: SparsifyState, params: Any, extra_args: dict[str, Any]
    ) -> tuple[Any, SparsifyState]:
        if decay is None:
            state = rewired(_main(grads), state, params)
        masks = unpack(state.masks)
        if decay is None:
            given = _by_part(lambda part: restricted(part, masks), grads)
        else:
            given = _with_decay(grads, params, masks, decay)
        updates, moments = inner.update(
            given, state.inner, network(params, masks), **extra_args
        )
        state = state._replace(inner=moments)
        if decay is None:
            updates = landing(updates, params, masks)
        else:
            new = optax.apply_updates(params, updates)
            state = rewired(_main(grads), state, new)
        return updates, state._replace(step=optax.safe_increment(state.step))

    def update(
        updates: Any, state: Any, params: Any | None = None, **extra_args: Any
    ) -> tuple[Any, Any]:
        if params is None:
            raise ValueError(
                "zs.sparsify needs params: tx.update(grads, state, params)."
            )
        if gradient is not None:
            masks = unpack(state.masks)
            grads, gradient_state = gradient.update(
                updates,
                state.gradient,
                params if decay is None else tree.mask(params, masks),
                **{
                    **extra_args,
                    "masks": masks,
                    "optimizer_step": state.step,
                },
            )
            state = state._replace(gradient=gradient_state)
        elif updates is None:
            raise ValueError(
                "zs.sparsify has no gradient: pass one as updates, or say "
                "gradient=zs.zosam(...) (or zs.backprop()) and give value_fn."
            )
        else:
            grads = updates
        if jax.tree.structure(_main(grads)) != jax.tree.structure(params):
            raise ValueError(
                "the gradient must have the structure of params; got "
                f"{jax.tree.structure(grads)} for {jax.tree.structure(params)}. "
                "(Equinox: filter both, params = eqx.filter(model, "
                "eqx.is_inexact_array).)"
            )
        if isinstance(grads, Decoupled) and accumulate_steps > 1:
            raise ValueError(
                "accumulate_steps > 1 averages one gradient, and that of "
                "zs.wsam(decouple=True) has two parts. Say decouple=False."
            )
        if accumulate_steps == 1:
            return step(grads, state, params, extra_args)

        count, mean = state.accumulated
        mean = jax.tree.map(lambda m, g: m + (g - m) / (count + 1), mean, grads)
        emit = count + 1 == accumulate_steps

        def take(mean: Any, state: SparsifyState, params: Any) -> Any:
            grads = jax.tree.map(lambda m, g: m.astype(g.dtype), mean, params)
            updates, state = step(grads, state, params, extra_args)
            zeros = jax.tree.map(jnp.zeros_like, mean)
            return updates, state._replace(accumulated=(jnp.zeros_like(count), zeros))

        def hold(mean: Any, state: SparsifyState, params: Any) -> Any:
            shapes, _ = jax.eval_shape(take, mean, state, params)
            zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
            return zeros, state._replace(accumulated=(count + 1, mean))

        return jax.lax.cond(emit, take, hold, mean, state, params)

    return optax.GradientTransformationExtraArgs(init, update)


def masks(state: Any) -> Any:
    """The mask tree held in an optimizer state.

    Args:
      state: An Optax state with `sparsify` anywhere inside it. Where
        `optax.multi_transform` gives several `sparsify` their own leaves, their masks
        are put together, and leaves of other optimizers stay `optax.MaskedNode()`,
        which `apply_masks` takes for dense.

    Returns:
      A tree like the parameters: boolean arrays, scalar True for dense leaves.

    Raises:
      ValueError: There is no `sparsify` in it, or a leaf has masks of two.
    """
    found = _states(state)
    if not found:
        raise ValueError(
            "The state holds no masks: pass the state of an optimizer made by "
            "zs.sparsify(...)."
        )
    return functools.reduce(_merge, [unpack(x.masks) for x in found])


def exploration(state: Any) -> jax.Array:
    r"""ITOP's exploration rate: the share of the sparse leaves' weights ever live.

    .. math:: R_s = \frac{|\cup_t m_t|}{N}

    (arXiv:2102.02887, section 3.2), float32 scalar.

    Args:
      state: An Optax state that holds one of `sparsify(..., track_exploration=True)`.

    Raises:
      ValueError: There is none in it.
    """
    return 1 - sparsity_of(explored(state))


def explored(state: Any) -> Any:
    """The union of all masks until now: a mask tree.

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


def _states(state: Any) -> list[SparsifyState]:
    def is_state(x: Any) -> bool:
        return isinstance(x, SparsifyState)

    return [x for x in jax.tree.leaves(state, is_leaf=is_state) if is_state(x)]


def _merge(a: Any, b: Any) -> Any:
    """Two trees put together: each is `optax.MaskedNode` where the other is not."""
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


def _main(grads: Any) -> Any:
    """The gradient that the optimizer steps along."""
    return grads.grad if isinstance(grads, Decoupled) else grads


def _by_part(function: Callable[[Any], Any], grads: Any) -> Any:
    """Applied to the gradient, or to both parts of a decoupled one."""
    if isinstance(grads, Decoupled):
        return Decoupled(*map(function, grads))
    return function(grads)


def _with_decay(grads: Any, params: Any, masks: Any, decay: float) -> Any:
    """SR-STE: the gradient, plus `decay` times the weights that are pruned."""
    if not decay:
        return grads
    pruned = tree.subtract(params, tree.mask(params, masks))
    moved = tree.add_scaled(_main(grads), decay, pruned)
    return grads._replace(grad=moved) if isinstance(grads, Decoupled) else moved


def _check_inner(state: Any) -> None:
    """Refuses what an inner optimizer cannot hold, found by the state that it makes."""

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
