"""Estimators of the gradient as Optax transformations.

Optax hands a transformation the gradient at the parameters. A sharpness-aware method
makes its own, from `value_fn`: its transformation ignores the incoming one, emits the
estimate, and keeps in its state what came with it (the loss, aux, info).
"""

import inspect
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from zosam_jax import _check, estimators
from zosam_jax._types import Estimate, EstimatorState, Info, ValueFn

Estimator = Callable[..., Estimate]
"""`(value_fn, params, *, key, step, masks, memory, ascent_value_fn) -> Estimate`.

`step` is the optimizer step, for schedules; `memory` what the last `Estimate` held, at
first what `init(params)` made; `ascent_value_fn` None, or the loss to look uphill by.
"""


class GradientEstimator(optax.GradientTransformationExtraArgs):
    """An Optax transformation that makes its own gradient, and its pure function.

    Attributes:
      init: As in Optax.
      update: As in Optax; see `as_transformation` for its extra arguments.
      gradient: The same estimate without a state: an `Estimator`.
      by_example: Whether it calls `value_fn(params, examples=indices)`, for the losses
        of those examples, [n].
      dense: Whether its gradient has the entries of pruned weights, to grow by.
    """

    gradient: Estimator
    by_example: bool
    dense: bool


def as_transformation(
    name: str,
    estimator: Estimator,
    *,
    memory: Callable[[Any], Any] = lambda _: (),
    has_aux: bool = False,
    aux_like: Any | None = None,
    seed: jax.typing.ArrayLike = 0,
    by_example: bool = False,
    dense: bool = True,
) -> GradientEstimator:
    """An Optax transformation that emits an estimator's gradient.

    Its `update` takes, beside Optax's own arguments and any other keyword:
      value_fn: The loss of the present batch as a function of the parameters.
      ascent_value_fn: The loss that a method looks uphill by, where it is another one:
        part of the batch, another batch, another precision. Default: `value_fn`.
      masks: Mask tree, or None. `sparsify` passes it.
      optimizer_step: The step that schedules count, where it is not the number of
        estimates made. `sparsify` passes it when it accumulates gradients.

    Args:
      name: The method's public name, for errors.
      estimator: Makes the gradient. Its key is `fold_in(key(seed), count)`.
      memory: `params -> memory`, what the first estimate is given.
      has_aux: Whether its `value_fn` returns `(loss, aux)`.
      aux_like: An example of aux, or None.
      seed: Integer.
      by_example: Whether it calls `value_fn(params, examples=indices)`.
      dense: Whether the gradient has the entries of pruned weights.

    Returns:
      The transformation. Its state is an `EstimatorState`.

    Raises:
      ValueError: `aux_like` without `has_aux`, or a seed that is no integer.
    """
    _check.whole("seed", seed, least=0)
    if aux_like is not None and not has_aux:
        raise ValueError(f"zs.{name}(aux_like=...) needs has_aux=True.")

    def init(params: Any) -> EstimatorState:
        aux = jax.tree.map(
            lambda x: jnp.zeros(jnp.shape(x), jnp.result_type(x)), aux_like
        )
        zero = jnp.zeros((), jnp.float32)
        count = jnp.zeros((), jnp.int32)
        return EstimatorState(count, zero, aux, Info.zeros(), memory(params))

    def update(
        updates: Any,
        state: Any,
        params: Any | None = None,
        *,
        value_fn: Any = None,
        ascent_value_fn: Any = None,
        masks: Any | None = None,
        optimizer_step: jax.Array | None = None,
        **extra_args: Any,
    ) -> tuple[Any, Any]:
        del updates, extra_args
        _check_call(name, params, value_fn)
        step = state.step if optimizer_step is None else optimizer_step
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        value, grad, aux, info, carried = estimator(
            value_fn,
            params,
            key=key,
            step=step,
            masks=masks,
            memory=state.memory,
            ascent_value_fn=ascent_value_fn,
        )
        aux = jax.tree.map(jnp.asarray, aux)
        if aux_like is not None:
            _check_aux(state.aux, aux)
            # A weakly typed aux would change the state's type, and trace again.
            aux = jax.tree.map(lambda x: jax.lax.convert_element_type(x, x.dtype), aux)
        return grad, EstimatorState(
            step=jnp.asarray(optax.safe_increment(state.step)),
            value=value.astype(jnp.float32),
            aux=aux,
            info=jax.tree.map(lambda new, old: new.astype(old.dtype), info, state.info),
            memory=carried,
        )

    transformation = GradientEstimator(init, update)
    transformation.gradient = estimator
    transformation.by_example = by_example
    transformation.dense = dense
    return transformation


def backprop(
    *, has_aux: bool = False, aux_like: Any | None = None
) -> GradientEstimator:
    """The plain gradient of `value_fn`, as a transformation like `zosam`.

    So that a training step calls every gradient in one way; `chain(backprop(), tx)` is
    `tx` fed with `jax.grad(value_fn)(params)`.

    Args:
      has_aux: Whether `value_fn` returns `(loss, aux)`.
      aux_like: An example of aux; see `zosam`.

    Example:
      >>> import jax.numpy as jnp, optax, zosam_jax as zs
      >>> tx = optax.chain(zs.backprop(), optax.sgd(0.5))
      >>> w = jnp.array([1.0, -2.0])
      >>> updates, _ = tx.update(None, tx.init(w), w, value_fn=lambda w: jnp.sum(w**2))
      >>> print(updates)
      [-1.  2.]
    """

    def estimate(value_fn: ValueFn, params: Any, **rest: Any) -> Estimate:
        del rest
        return estimators.backprop(value_fn, params, has_aux=has_aux)

    return as_transformation("backprop", estimate, has_aux=has_aux, aux_like=aux_like)


def estimate(state: Any) -> Estimate:
    """What the last update's gradient estimator saw, read from an optimizer state.

    Args:
      state: An Optax state with one gradient estimator anywhere inside it: a chain,
        `sparsify`, `inject_hyperparams` and so on.

    Returns:
      `Estimate` with `value`, `aux` and `info` of the last update (zeros before the
      first), and None as its `grad`: the gradient went on to the optimizer.

    Raises:
      ValueError: There is none, or more than one.
    """

    def is_state(x: Any) -> bool:
        return isinstance(x, EstimatorState)

    found = [x for x in jax.tree.leaves(state, is_leaf=is_state) if is_state(x)]
    if len(found) != 1:
        raise ValueError(
            f"The state holds {len(found)} gradient estimators, not one. Pass the "
            "state of an optimizer with one zs.zosam(...) or zs.backprop(...) in it."
        )
    return Estimate(found[0].value, None, found[0].aux, found[0].info)


def _check_call(name: str, params: Any, value_fn: ValueFn | None) -> None:
    if params is None or value_fn is None:
        missing = "params" if params is None else "value_fn"
        raise ValueError(
            f"zs.{name} needs {missing}: call tx.update(None, state, params, "
            "value_fn=lambda p: loss(p, batch)). (Flax's TrainState drops value_fn: "
            "make the gradient in front of it, with zs.zosam_gradient.)"
        )
    nodes = jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, optax.MaskedNode))
    if any(isinstance(x, optax.MaskedNode) for x in nodes):
        raise ValueError(
            f"zs.{name} sees only part of the parameters, so value_fn cannot be "
            "evaluated: it stands inside optax.masked or optax.multi_transform. Put it "
            f"in front: optax.chain(zs.{name}(...), optax.multi_transform(...))."
        )
    if _inside_multi_steps():
        raise ValueError(
            f"zs.{name} inside optax.MultiSteps would use the last micro-batch alone, "
            "since it makes its own gradient. Accumulate behind it: "
            f"optax.chain(zs.{name}(...), optax.MultiSteps(optimizer, "
            "k).gradient_transformation()), where its schedules count micro-batches; "
            f"or, for sparse training, zs.sparsify(optimizer, method, "
            f"gradient=zs.{name}(...), accumulate_steps=k)."
        )


def _inside_multi_steps() -> bool:
    """Whether optax.MultiSteps is the caller: nothing that it passes on tells."""
    wrapper = inspect.unwrap(optax.MultiSteps.update).__code__
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code is wrapper:
            return True
        frame = frame.f_back
    return False


def _check_aux(expected: Any, aux: Any) -> None:
    def describe(tree: Any) -> Any:
        return jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}", tree)

    if describe(expected) != describe(aux):
        raise ValueError(
            f"value_fn returned aux {describe(aux)}, but aux_like says "
            f"{describe(expected)}. Give aux_like=jax.eval_shape(value_fn, params)[1]."
        )
