"""What fits into and around `sparsify`, and advice where something does not."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from zosam_jax import _check, tree
from zosam_jax._types import Decoupled, EstimatorState, Grads, Masks, OptState, Params
from zosam_jax.sparsity.frozen_leaves import frozen
from zosam_jax.sparsity.method import SparseMethod

_NO_LOOKAHEAD = (
    "would move pruned weights: its slow weights know no masks. Leave it out; or "
    "average weights outside the optimizer, and give the average the masks: "
    "zs.sparsity.apply_masks(average, zs.sparsity.masks(state))."
)


def check_gradient(
    grads: Grads | Decoupled | None, params: Params, accumulate_steps: int
) -> None:
    """Raises `ValueError` unless there is a gradient with which a step can be made.

    Args:
      grads: The gradient.
      params: Pytree of arrays.
      accumulate_steps: Number of gradients that are averaged.
    """
    if grads is None:
        raise ValueError(
            "zs.sparsify has no gradient: pass one as updates, or say "
            "gradient=zs.zosam(...) (or zs.backprop()) and give value_fn."
        )
    main = grads.grad if isinstance(grads, Decoupled) else grads
    if jax.tree.structure(main) != jax.tree.structure(params):
        raise ValueError(
            "the gradient must have the structure of params; got "
            f"{jax.tree.structure(main)} for {jax.tree.structure(params)}. "
            "(Equinox: filter both, params = eqx.filter(model, "
            "eqx.is_inexact_array).)"
        )
    if isinstance(grads, Decoupled) and accumulate_steps > 1:
        raise ValueError(
            "accumulate_steps > 1 averages one gradient, but "
            "zs.wsam(decouple=True) has two parts. Say decouple=False."
        )


def check_inner(state: OptState) -> None:
    """Raises `TypeError` if the state is that of an optimizer that cannot be inner."""
    if tree.nodes(state, optax.MultiStepsState):
        raise TypeError(
            "zs.sparsify around optax.MultiSteps would change the topology between "
            "micro-batches. Say zs.sparsify(optimizer, method, ..., "
            "accumulate_steps=k), or, without gradient=, "
            "optax.MultiSteps(zs.sparsify(...), k)."
        )
    if tree.nodes(state, optax.LookaheadState):
        raise TypeError(f"optax.lookahead inside zs.sparsify {_NO_LOOKAHEAD}")
    if tree.nodes(state, EstimatorState):
        raise TypeError(
            "a gradient estimator inside the inner optimizer knows no masks. Say "
            "zs.sparsify(optimizer, method, gradient=zs.zosam(...))."
        )


def check_transformations(inner: Any, method: Any, gradient: Any) -> None:
    """Raises `TypeError` unless the arguments of `sparsify` are what they are to be.

    Args:
      inner: The optimizer.
      method: The sparse method.
      gradient: The gradient estimator, or None.
    """
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


def check_estimator(
    method: SparseMethod, state: OptState, accumulate_steps: int
) -> None:
    """Raises `ValueError` if a gradient does not fit the method or the accumulation.

    Args:
      method: The sparse method.
      state: The state of the gradient estimator, which wrappers such as `optax.chain`
        keep.
      accumulate_steps: Number of gradients that are averaged.
    """
    scheduled = _scheduled(state) if accumulate_steps > 1 else []
    if scheduled:
        others = [name for name in scheduled if name != "rho"]
        advice = (
            "Give the gradient the schedule itself, as zs.zosam(rho=schedule), which "
            "counts optimizer steps."
        )
        if others:
            advice = (
                f"Only rho can follow the optimizer steps: keep {', '.join(others)} "
                "constant, or say accumulate_steps=1."
            )
        raise ValueError(
            f"optax.inject_hyperparams in gradient= counts estimates in its schedule "
            f"of {', '.join(scheduled)}, and accumulate_steps={accumulate_steps} of "
            f"them make one optimizer step. {advice}"
        )
    blind = any(x.facts.dense is None for x in tree.nodes(state, EstimatorState))
    if blind and method.dense_gradient_every is not None:
        raise ValueError(
            "the method uses the gradient of pruned weights, which a zeroth-order "
            "gradient does not estimate: nothing would ever grow. Use "
            "zs.sparsity.set_, which grows at random."
        )


def _scheduled(state: OptState) -> list[str]:
    """Returns the hyperparameters that `optax.inject_hyperparams` schedules."""
    found: list[str] = []
    for injected in tree.nodes(state, optax.InjectStatefulHyperparamsState):
        found += [*injected.hyperparams_states, *_scheduled(injected.inner_state)]
    return found


def check_trained(update: Callable[[Grads], Grads], grads: Grads, masks: Masks) -> None:
    """Raises `ValueError` if a sparse leaf has an update that ignores its gradient.

    Args:
      update: The optimizer's `gradient -> updates`; it is traced.
      grads: The gradient.
      masks: Mask tree.
    """
    sparse = [not tree.is_dense(m) for m in jax.tree.leaves(masks)]
    stuck = [
        path
        for path, masked, still in zip(
            tree.paths(masks), sparse, frozen(update, grads), strict=True
        )
        if masked and still
    ]
    if stuck:
        named = ", ".join(stuck[:6])
        more = f" and {len(stuck) - 6} more" if len(stuck) > 6 else ""
        raise ValueError(
            f"the optimizer never trains {named}{more} (optax.freeze, set_to_zero or a "
            "mask of its own), but the method would change the masks there: dropped "
            "weights would be lost, and grown weights would stay 0. Keep such leaves "
            f"dense: dense=({stuck[0]!r},)."
        )


def check_callers(gradient: Any, params: Params, updates: Grads | None = ()) -> None:
    """Raises `ValueError` with an Optax wrapper around that `sparsify` does not fit.

    Args:
      gradient: The gradient estimator, or None.
      params: The parameters.
      updates: The incoming updates, on update.
    """
    paired = tree.nodes(params, optax.LookaheadParams)
    if paired or _check.optax_caller("lookahead"):
        raise ValueError(f"optax.lookahead around zs.sparsify {_NO_LOOKAHEAD}")
    judge = _check.optax_caller(*_check.JUDGES)
    if gradient is not None and updates is None and judge:
        raise ValueError(
            f"optax.{judge} around zs.sparsify(..., gradient=...) would judge the "
            "incoming updates, which are None, and not the estimate. Put it inside: "
            f"zs.sparsify(optax.{judge}(optimizer, ...), method, gradient=...)."
        )
