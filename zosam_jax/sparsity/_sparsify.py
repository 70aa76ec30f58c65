"""Sparse training around any Optax optimizer."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from zosam_jax import _check, tree
from zosam_jax._types import Decoupled
from zosam_jax.sparsity._masks import landing, reset_moments
from zosam_jax.sparsity._method import SparseMethod
from zosam_jax.transformation import EstimatorState


class SparsifyState(NamedTuple):
    """State of `sparsify`.

    Attributes:
      step: Optimizer steps taken, int32.
      masks: Mask tree.
      inner: State of the inner optimizer.
      gradient: State of the gradient estimator; () without one.
      accumulated: Mean gradient of the micro-batches since the last step, and their
        number; () without accumulation.
    """

    step: jax.Array
    masks: Any
    inner: Any
    gradient: Any
    accumulated: Any


def sparsify(
    inner: optax.GradientTransformation,
    method: SparseMethod,
    gradient: optax.GradientTransformationExtraArgs | None = None,
    *,
    accumulate_steps: int = 1,
) -> optax.GradientTransformationExtraArgs:
    """Sparse training with any optimizer: masks are state, updates land on them.

    Each update (1) makes the gradient with `gradient`, on the masks; (2) where the
    method says so, changes the topology, in a `lax.cond` branch, by the dense gradient,
    and resets the optimizer's moments of dropped and grown weights; (3) steps `inner`
    with the masked gradient; (4) emits updates after which every pruned weight is
    exactly 0, so keep it outermost: what follows in a chain may move it off.

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

    Returns:
      A transformation whose state is a `SparsifyState`.

    Raises:
      ValueError: On update, without params, or without a gradient of either kind.
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

    def init(params: Any) -> SparsifyState:
        masks = method.init(params)
        moments = inner.init(tree.mask(params, masks))
        _check_inner(moments)
        accumulated = ()
        if accumulate_steps > 1:
            zeros = jax.tree.map(
                lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)),
                params,
            )
            accumulated = (jnp.zeros((), jnp.int32), zeros)
        return SparsifyState(
            step=jnp.zeros((), jnp.int32),
            masks=masks,
            inner=moments,
            gradient=() if gradient is None else gradient.init(params),
            accumulated=accumulated,
        )

    fires, change = method.fires, method.change

    def change_topology(grads: Any, state: SparsifyState, params: Any) -> SparsifyState:
        assert change is not None
        masks = change(state.masks, params, grads, state.step)
        # A gradient with NaN in it ranks nothing.
        sound = tree.all_finite(grads)
        masks = jax.tree.map(
            lambda new, old: jnp.where(sound, new, old), masks, state.masks
        )
        changed = jax.tree.map(jnp.logical_xor, masks, state.masks)
        fresh = inner.init(tree.mask(params, masks))
        moments = reset_moments(state.inner, fresh, changed)
        return state._replace(masks=masks, inner=moments)

    def step(
        grads: Any, state: SparsifyState, params: Any, extra_args: dict[str, Any]
    ) -> tuple[Any, SparsifyState]:
        if fires is not None:
            state = jax.lax.cond(
                fires(state.step),
                change_topology,
                lambda _, state, __: state,
                *(_main(grads), state, params),
            )
        live = tree.mask(_main(grads), state.masks)
        if isinstance(grads, Decoupled):
            live = Decoupled(live, tree.mask(grads.sharpness, state.masks))
        updates, moments = inner.update(
            live,
            state.inner,
            tree.mask(params, state.masks),
            **extra_args,
        )
        return landing(updates, params, state.masks), state._replace(
            step=optax.safe_increment(state.step), inner=moments
        )

    def update(
        updates: Any, state: Any, params: Any | None = None, **extra_args: Any
    ) -> tuple[Any, Any]:
        if params is None:
            raise ValueError(
                "zs.sparsify needs params: tx.update(grads, state, params)."
            )
        if gradient is not None:
            grads, gradient_state = gradient.update(
                updates,
                state.gradient,
                params,
                **{
                    **extra_args,
                    "masks": state.masks,
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
                f"{jax.tree.structure(grads)} for {jax.tree.structure(params)}."
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
      ValueError: There is no `sparsify` in it.
    """

    def is_state(x: Any) -> bool:
        return isinstance(x, SparsifyState)

    found = [x for x in jax.tree.leaves(state, is_leaf=is_state) if is_state(x)]
    if not found:
        raise ValueError(
            "The state holds no masks: pass the state of an optimizer made by "
            "zs.sparsify(...)."
        )
    return functools.reduce(_merge, [x.masks for x in found])


def _merge(a: Any, b: Any) -> Any:
    """Two trees put together: each is `optax.MaskedNode` where the other is not."""
    if isinstance(a, optax.MaskedNode):
        return b
    if isinstance(b, optax.MaskedNode) or jax.tree_util.all_leaves([a]):
        return a
    children, treedef = jax.tree.flatten(a, is_leaf=lambda x: x is not a)
    others = jax.tree.leaves(b, is_leaf=lambda x: x is not b)
    return jax.tree.unflatten(treedef, map(_merge, children, others))


def _main(grads: Any) -> Any:
    """The gradient that the optimizer steps along."""
    return grads.grad if isinstance(grads, Decoupled) else grads


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
