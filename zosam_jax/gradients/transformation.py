"""Gradient estimators as Optax transformations.

Optax hands a transformation the gradient at the parameters. A sharpness-aware method
makes its own gradient from `value_fn`. Its transformation ignores the incoming one,
emits the estimate, and keeps the loss, aux and info in its state.
"""

import functools
import inspect
import sys
import warnings
from collections.abc import Callable
from typing import Any, Protocol, Unpack

import jax
import jax.numpy as jnp
import optax

from zosam_jax import _calls, _check, tree
from zosam_jax._types import (
    Aux,
    Estimate,
    EstimatorState,
    Facts,
    Grads,
    Info,
    Key,
    Masks,
    Memory,
    OptState,
    Params,
    Predicate,
    PyTree,
    Radius,
    Scalar,
    SharedOptions,
    ValueFn,
)

Estimator = Callable[..., Estimate]
"""`(value_fn, params, *, key, step, masks, memory, ascent_value_fn) -> Estimate`.

`step` is the optimizer step, for schedules; None if a pure call gave none. `memory`
comes from the last `Estimate`, at the start from `init(params)`. `ascent_value_fn` is
None or the loss of the ascent.
"""


class PureGradient(Protocol):
    """A method's gradient as a pure function, without a state."""

    def __call__(
        self,
        value_fn: ValueFn,
        params: Params,
        key: Key | None = None,
        *,
        masks: Masks | None = None,
        memory: Memory | None = None,
        step: Scalar | None = None,
        ascent_value_fn: ValueFn | None = None,
    ) -> Estimate:
        """Returns the gradient as a pure function: no state, no optimizer.

        Args:
          value_fn: `params -> loss`, or `params -> (loss, aux)` with `has_aux`.
          params: Pytree of floating point arrays, w; zero where the masks are False.
          key: One PRNG key for all random draws. Methods that draw nothing need none.
          masks: Mask tree: the perturbation lies on it.
          memory: `memory` of the last `Estimate`; None at the first step.
          step: Number of optimizer steps made, int32 scalar. A schedule of rho needs
            it, and so do `aesam` and `ssam(mask="dynamic")`.
          ascent_value_fn: The loss of the ascent step. Default: `value_fn`.

        Returns:
          An `Estimate`, with the `memory` to pass to the next call. `grad` is with
          respect to all weights, pruned ones too (where the method is `dense`).

        Raises:
          ValueError: `step` is missing, or the masks do not fit the parameters.
          TypeError: `key` is no PRNG key, or missing where the method draws at random;
            a leaf of `params` is no array of real floats.
        """
        ...


class GradientEstimator(optax.GradientTransformationExtraArgs):
    """An Optax transformation that makes its own gradient, and facts about it.

    Attributes:
      init: As in Optax.
      update: As in Optax; see `as_transformation` for its extra arguments.
      gradient: The same estimate as a pure function, without a state.
      name: The method's public name, such as "sam".
      by_example: Whether it calls `value_fn(params, examples=indices)`, for the losses
        of those examples, `[n]`.
      dense: Whether its gradient has the entries of pruned weights, which growth by
        the gradient needs.
      direction_only: Whether its ascent step evaluates the loss only to find a
        direction. A cheaper loss may then serve as `ascent_value_fn`.
      decoupled: Whether its gradient is a `Decoupled`, for `zs.decoupled`.
      rho: The radius or its schedule, as given; None for a method without one.
      when: Which steps it perturbs, as given; None for every step.
    """

    gradient: PureGradient
    name: str
    by_example: bool
    dense: bool
    direction_only: bool
    decoupled: bool
    rho: Radius | None
    when: Predicate | None
    _make: Callable[..., "GradientEstimator"]
    _call: str = ""

    def called_as(self, call: str) -> "GradientEstimator":
        """Sets the call that `print` shows, and returns the estimator."""
        self._call = call
        return self

    def __repr__(self) -> str:
        """Returns the call that made it, without options that equal their defaults."""
        if self._call:
            return self._call
        rho = "a schedule" if callable(self.rho) else f"{self.rho}"
        radius = "" if self.rho is None else f", rho={rho}"
        return f"<{self.name}: gradient estimator{radius}>"

    def with_options(self, **options: Unpack[SharedOptions]) -> "GradientEstimator":
        """Returns the same method with other shared options, the rest kept.

        Args:
          **options: Options that all gradients share, such as `has_aux`, `aux_like`,
            `seed` and `aux_from`. `backprop`, `zeroth_order` and those made by
            `as_transformation` take `has_aux`, `aux_like` and `seed` alone.

        Raises:
          TypeError: The method does not take an option.

        Example:
          >>> import zosam_jax as zs
          >>> gradient = zs.sam(rho=0.1, steps=2).with_options(has_aux=True, seed=3)
          >>> gradient.name, gradient.rho
          ('sam', 0.1)
        """
        shared = [name for name in SharedOptions.__annotations__ if self.takes(name)]
        _check.options(f"zs.{self.name}(...).with_options", options, shared)
        made = self._make(**options)
        known = inspect.signature(self._make).parameters
        changed = _calls.text(".with_options", options, {k: known[k] for k in options})
        return made.called_as(f"{self!r}{changed.removesuffix('.with_options()')}")

    def option(self, name: str, default: object = None) -> Any:
        """Returns the value of a shared option, such as "ascent_fraction".

        Args:
          name: An option of `with_options`.
          default: The value to return if the method does not take it.
        """
        if not self.takes(name):
            return default
        return inspect.signature(self._make).parameters[name].default

    def takes(self, option: str) -> bool:
        """Whether `with_options` takes an option, such as "microbatches"."""
        known = inspect.signature(self._make).parameters.get(option)
        return known is not None and known.kind is known.KEYWORD_ONLY


def as_transformation(
    name: str,
    estimator: Estimator,
    *,
    memory: Callable[[Params], Memory] = lambda _: (),
    has_aux: bool = False,
    aux_like: PyTree | None = None,
    seed: jax.typing.ArrayLike = 0,
    by_example: bool = False,
    dense: bool = True,
    direction_only: bool = False,
    decoupled: bool = False,
    rho: Radius | None = None,
    when: Predicate | None = None,
    make: Callable[..., GradientEstimator] | None = None,
) -> GradientEstimator:
    """Returns an Optax transformation that emits an estimator's gradient.

    Its `update` takes Optax's arguments, any other keyword, and these:
      value_fn: The loss of the present batch as a function of the parameters.
      ascent_value_fn: The loss of the ascent step, if it differs: part of the batch,
        another batch or another precision. Default: `value_fn`.
      masks: Mask tree, or None. `sparsify` passes it.
      optimizer_step: The step that schedules count, if it is not the number of
        estimates. `sparsify` passes it when it accumulates gradients.

    Args:
      name: The method's public name, for errors.
      estimator: Makes the gradient. Its key is `fold_in(key(seed), count)`.
      memory: `params -> memory` for the first estimate.
      has_aux: Whether its `value_fn` returns `(loss, aux)`.
      aux_like: An example of aux, or None.
      seed: Integer >= 0.
      by_example: Whether it calls `value_fn(params, examples=indices)`.
      dense: Whether the gradient has the entries of pruned weights.
      direction_only: Whether a cheaper loss may serve as `ascent_value_fn`.
      decoupled: Whether the gradient is a `Decoupled`.
      rho: Its radius or schedule, if it has one. With a schedule, the pure form
        refuses a call without `step=`.
      when: Which steps it perturbs; None for every step. If given, the pure form
        refuses a call without `step=`.
      make: Makes the same method with other shared options, for `with_options`.
        Default: this function, with other `has_aux`, `aux_like` and `seed`.

    Returns:
      The transformation. Its state is an `EstimatorState`.

    Raises:
      ValueError: `aux_like` without `has_aux`, or a seed that is no integer.
    """
    _check.whole("seed", seed, least=0)
    if aux_like is not None and not has_aux:
        raise ValueError(f"zs.{name}(aux_like=...) needs has_aux=True.")
    facts = {
        "by_example": by_example,
        "dense": dense,
        "direction_only": direction_only,
        "decoupled": decoupled,
    }
    marks = Facts(**{name: () if holds else None for name, holds in facts.items()})

    def init(params: Params) -> EstimatorState:
        _check_wrappers(name, params)
        _check.trainable(params)
        aux = jax.tree.map(
            lambda x: jnp.zeros(jnp.shape(x), jnp.result_type(x)), aux_like
        )
        zero = jnp.zeros((), jnp.float32)
        count = jnp.zeros((), jnp.int32)
        return EstimatorState(
            step=count,
            value=zero,
            aux=aux,
            info=Info.zeros(),
            memory=memory(params),
            standstill=jnp.zeros((), jnp.int32),
            facts=marks,
        )

    def update(
        updates: Grads,
        state: EstimatorState,
        params: Params | None = None,
        *,
        value_fn: ValueFn | None = None,
        ascent_value_fn: ValueFn | None = None,
        masks: Masks | None = None,
        optimizer_step: jax.Array | None = None,
        **extra_args: Any,
    ) -> tuple[Grads, EstimatorState]:
        del extra_args
        _check_wrappers(name, params, updates)
        _check_call(name, params, value_fn)
        _warn_of_standstill(state)
        seen = estimator(
            value_fn,
            params,
            # The key depends on the count alone, so a restored state draws what the
            # interrupted run would have drawn.
            key=jax.random.fold_in(jax.random.key(seed), state.step),
            step=state.step if optimizer_step is None else optimizer_step,
            masks=masks,
            memory=state.memory,
            ascent_value_fn=ascent_value_fn,
        )
        aux = jax.tree.map(jnp.asarray, seen.aux)
        if aux_like is None and jax.tree.leaves(aux):
            _check_no_loop(name)
        if aux_like is not None:
            _check_aux(name, state.aux, aux)
            # A weakly typed aux would change the state's type, and trace again.
            aux = jax.tree.map(lambda x: jax.lax.convert_element_type(x, x.dtype), aux)
        return seen.grad, EstimatorState(
            # The count stays at its maximum instead of wrapping to negative steps.
            step=jnp.asarray(optax.safe_increment(state.step)),
            value=seen.value.astype(jnp.float32),
            aux=aux,
            info=jax.tree.map(
                lambda new, old: new.astype(old.dtype), seen.info, state.info
            ),
            memory=seen.memory,
            standstill=_standstill(state, seen.info),
            facts=marks,
        )

    made = GradientEstimator(init, update)  # pyright: ignore[reportArgumentType]
    made.name = name
    made.gradient = _pure(name, estimator, memory, rho, when)
    made.rho, made.when = rho, when
    for fact, value in facts.items():
        setattr(made, fact, value)
    options = {"has_aux": has_aux, "aux_like": aux_like, "seed": seed}
    made._make = make or functools.partial(
        as_transformation,
        name,
        estimator,
        memory=memory,
        rho=rho,
        when=when,
        **facts,
        **options,
    )
    return made


def _pure(
    name: str,
    estimator: Estimator,
    init: Callable[[Params], Memory],
    rho: Radius | None,
    when: Predicate | None,
) -> PureGradient:
    """The estimator with its first memory and checks."""

    def gradient(
        value_fn: ValueFn,
        params: Params,
        key: Key | None = None,
        *,
        masks: Masks | None = None,
        memory: Memory | None = None,
        step: Scalar | None = None,
        ascent_value_fn: ValueFn | None = None,
    ) -> Estimate:
        if key is not None:
            _check.key(key)
        if step is None and (callable(rho) or when is not None):
            depends = "when=" if when is not None else "its rho, a schedule,"
            raise ValueError(
                f"zs.{name}: {depends} depends on the optimizer step, so its gradient "
                "needs step=."
            )
        _check.trainable(params)
        return estimator(
            value_fn,
            params,
            key=key,
            step=step,
            masks=masks,
            memory=init(params) if memory is None else memory,
            ascent_value_fn=ascent_value_fn,
        )

    gradient.__doc__ = PureGradient.__call__.__doc__
    return gradient


def estimate(state: OptState) -> Estimate:
    """Returns the estimate of the last update, read from an optimizer state.

    Args:
      state: An Optax state with one gradient estimator anywhere inside it: a chain,
        `sparsify`, `inject_hyperparams` and so on.

    Returns:
      `Estimate` with `value`, `aux` and `info` of the last update (zeros before the
      first), and `grad` None, since the optimizer has consumed it.

    Raises:
      ValueError: There is none, or more than one.

    Warns:
      UserWarning: Ten or more estimates in a row had no direction.

    Example:
      >>> import jax.numpy as jnp, optax, zosam_jax as zs
      >>> tx = optax.chain(zs.sam(rho=0.5), optax.sgd(0.1))
      >>> w = jnp.array([3.0, 4.0])
      >>> _, state = tx.update(None, tx.init(w), w, value_fn=lambda w: w @ w)
      >>> seen = zs.estimate(state)
      >>> print(seen.value, f"{seen.info.perturbation_norm:.2f}")
      25.0 0.50
    """
    found = tree.nodes(state, EstimatorState)
    if len(found) != 1:
        raise ValueError(
            f"The state holds {len(found)} gradient estimators, not one. Pass the "
            "state of an optimizer with one zs.zosam(...) or zs.backprop(...) in it."
        )
    _warn_of_standstill(found[0])
    return Estimate(found[0].value, None, found[0].aux, found[0].info)


def _standstill(state: EstimatorState, info: Info) -> jax.Array:
    """The number of estimates in a row without a direction."""
    longer = optax.safe_increment(state.standstill)
    return jnp.where(info.unperturbed > 0, longer, 0)


_STANDSTILL = 10


def _warn_of_standstill(state: EstimatorState) -> None:
    """Warns if the last estimates had no direction, as far as that is known yet."""
    count = state.standstill
    # A warning is not worth waiting for the device.
    known = not _check.is_traced(count) and getattr(count, "is_ready", lambda: True)()
    if not known or count < _STANDSTILL:
        return
    warnings.warn(
        f"The last {int(count)} estimates had no direction (info.unperturbed): finite "
        "differences or gradients were zero or not finite. A loss in bfloat16 is too "
        "coarse for a small delta=: compute it in float32, or give a larger delta=.",
        stacklevel=_check.outside(),
    )


def _check_wrappers(
    name: str, params: Params | None, updates: Grads | None = ()
) -> None:
    """Raises `ValueError` with an Optax wrapper around that an estimator does not fit.

    Args:
      name: The method's public name.
      params: The parameters.
      updates: The incoming updates, on update.
    """
    paired = tree.nodes(params, optax.LookaheadParams)
    if paired or _check.optax_caller("lookahead"):
        raise ValueError(
            f"zs.{name} does not fit into or in front of optax.lookahead, which passes "
            "no value_fn on and has two sets of parameters. Make the gradient outside: "
            f"grad = zs.{name}(...).gradient(value_fn, params.fast, key).grad, then "
            "updates, state = tx.update(grad, state, params), with tx the lookahead "
            "around the optimizer alone."
        )
    judge = _check.optax_caller(*_check.JUDGES)
    if updates is None and judge:
        when = "" if judge == _check.JUDGES[0] else f", or say zs.{name}(when=...)"
        raise ValueError(
            f"optax.{judge} around zs.{name} would judge or return the incoming "
            "updates, which are None, and not the estimate. Put it behind: "
            f"optax.chain(zs.{name}(...), optax.{judge}(optimizer, ...)){when}."
        )


def _check_call(name: str, params: Params | None, value_fn: ValueFn | None) -> None:
    if params is None or value_fn is None:
        missing = "params" if params is None else "value_fn"
        raise ValueError(
            f"zs.{name} needs {missing}: call tx.update(None, state, params, "
            "value_fn=lambda p: loss(p, batch)). (Flax's TrainState drops value_fn: "
            "override its apply_gradients, or make the gradient in front of it, with "
            "zs.zosam_gradient.)"
        )
    if tree.nodes(params, optax.MaskedNode):
        raise ValueError(
            f"zs.{name} sees only part of the parameters, so value_fn cannot be "
            "evaluated: it stands inside optax.masked or optax.multi_transform. Put it "
            f"in front: optax.chain(zs.{name}(...), optax.multi_transform(...))."
        )
    _check.trainable(params)
    if _called_by(optax.MultiSteps.update):
        raise ValueError(
            f"zs.{name} inside optax.MultiSteps would use the last micro-batch alone, "
            "since it makes its own gradient. Accumulate behind it: "
            f"optax.chain(zs.{name}(...), optax.MultiSteps(optimizer, "
            "k).gradient_transformation()), where its schedules count micro-batches; "
            f"or, for sparse training, zs.sparsify(optimizer, method, "
            f"gradient=zs.{name}(...), accumulate_steps=k)."
        )


def _called_by(*functions: Callable[..., Any]) -> bool:
    """Whether one of the functions is among the callers, which no argument reveals."""
    codes = {inspect.unwrap(function).__code__ for function in functions}
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code in codes:
            return True
        frame = frame.f_back
    return False


def _check_aux(name: str, expected: Aux, aux: Aux) -> None:
    """Raises `ValueError` unless aux has the structure, shapes and dtypes expected."""

    def describe(tree: Aux) -> str:
        return str(jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}", tree))

    def kinds(tree: Aux) -> list[tuple[tuple[int, ...], jnp.dtype]]:
        return [(x.shape, x.dtype) for x in jax.tree.leaves(tree)]

    same_structure = jax.tree.structure(expected) == jax.tree.structure(aux)
    if not same_structure or kinds(expected) != kinds(aux):
        raise ValueError(
            f"zs.{name}: value_fn returned aux {describe(aux)}, but aux_like says "
            f"{describe(expected)}. Give aux_like=jax.eval_shape(value_fn, params)[1]."
        )


def _check_no_loop(name: str) -> None:
    """Raises `ValueError` if the state would change its structure inside a loop."""
    if _called_by(jax.lax.scan, jax.lax.while_loop, jax.lax.fori_loop):
        raise ValueError(
            f"zs.{name}(has_aux=True) inside a loop of JAX needs aux_like=: the state "
            "holds aux, and a loop needs its structure from the start. Give "
            "aux_like=jax.eval_shape(value_fn, params)[1]."
        )
