"""The two forms of a method: an Optax transformation, and a pure function."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from zosam_jax import _streams, tree
from zosam_jax._types import Estimate, Scalar, Schedule, ValueFn
from zosam_jax.estimators import check_function, scalar_loss
from zosam_jax.gradients import devices
from zosam_jax.gradients.composition import Row, evaluate, memory_of
from zosam_jax.gradients.pieces import Point
from zosam_jax.gradients.shared_options import DEFAULTS, Options, check_options
from zosam_jax.gradients.transformation import GradientEstimator, as_transformation

_NO_CHEAPER_LOOK = ("s2sam", "msam", "rwp", "mrwp", "arwp", "rst")
_PASSES = {"ascent": 0, "descent": 1}


_PURE = """The gradient of `{name}` as a pure function, without a state.

Args:
  value_fn: The loss as a function of the parameters; see `{name}`.
  params: Pytree of floating point arrays, w; zero where the masks are False.
  key: One PRNG key for all that is random; None for methods without chance.
  masks: Mask tree: the perturbation lies on it.
  memory: `memory` of the last `Estimate`; None at the first step.
  step: What schedules count; with a schedule it must be given.
  ascent_value_fn: The loss to look uphill by, where it is not `value_fn`.
  options: Those of `{name}`, by name.

Returns:
  `Estimate`, with the `memory` to pass to the next step. `grad` is with respect to all
  weights, pruned ones too.
"""


def pure(constructor: Callable[..., GradientEstimator]) -> Callable[..., Estimate]:
    """A method's gradient as a pure function, beside its constructor."""
    name = constructor.__name__

    def gradient(
        value_fn: ValueFn,
        params: Any,
        key: jax.Array | None = None,
        *,
        masks: Any | None = None,
        memory: Any | None = None,
        step: Scalar | None = None,
        ascent_value_fn: ValueFn | None = None,
        **options: Any,
    ) -> Estimate:
        return constructor(**options).gradient(
            value_fn,
            params,
            key=key,
            step=step,
            masks=masks,
            memory=memory,
            ascent_value_fn=ascent_value_fn,
        )

    gradient.__name__ = gradient.__qualname__ = f"{name}_gradient"
    gradient.__module__ = constructor.__module__
    gradient.__doc__ = _PURE.format(name=name)
    return gradient


def transform(
    name: str,
    row: Row,
    rho: Scalar | Schedule,
    options: Options,
    decoupled: bool = False,
) -> GradientEstimator:
    """A method's transformation, from its row and the options all methods share."""
    given: dict[str, Any] = {**DEFAULTS, **options}
    first_row = row

    def make(
        *,
        norm_over: Any = None,
        include: Any = None,
        exclude: Any = None,
        aux_from: Any = None,
        microbatches: Any = None,
        fresh_keys: Any = None,
        axis_name: Any = None,
        sync_ascent: Any = None,
        has_aux: Any = None,
        aux_like: Any = None,
        seed: Any = None,
    ) -> GradientEstimator:
        more = {k: v for k, v in locals().items() if k in DEFAULTS and v is not None}
        merged: Any = {**given, **more}
        return transform(name, first_row, rho, merged, decoupled)

    check_options(name, row, rho, given)
    aux_from = given["aux_from"] or row.aux_from
    row = row._replace(
        norm_over=given["norm_over"],
        aux_from=aux_from,
        by_example=row.by_example or given["microbatches"] > 1,
    )

    def gradient(
        value_fn: ValueFn,
        params: Any,
        key: jax.Array | None = None,
        *,
        step: Any = 0,
        masks: Any | None = None,
        memory: Any = None,
        ascent_value_fn: ValueFn | None = None,
    ) -> Estimate:
        if masks is not None:
            tree.check_masks(masks, params)
        if memory is None:
            memory = memory_of(row)(params)
        if ascent_value_fn is not None and not row.direction_only:
            raise ValueError(
                f"zs.{name} uses the gradient or losses of its first pass beside those "
                "of its second: both are of value_fn. Leave out ascent_value_fn."
            )
        axis = given["axis_name"]
        support = _support(params, masks, given["include"], given["exclude"])
        mean, pool, vary = devices.identity, devices.identity, devices.identity
        if axis is not None:
            vary = functools.partial(devices.vary, axis)
            pool = functools.partial(devices.mean_over, axis)
            mean = pool if given["sync_ascent"] else devices.identity
        local = vary(params)

        def random() -> jax.Array:
            if key is None:
                raise TypeError(f"zs.{name} draws at random: give it key=, a PRNG key.")
            return key

        make_passes = functools.partial(
            _Passes, name, value_fn, ascent_value_fn, row, given
        )

        def point(examples: jax.Array | None, part: int) -> Point:
            def own() -> jax.Array:
                return jax.random.fold_in(random(), part) if part else random()

            passes = make_passes(own)
            return Point(
                params=local,
                step=jnp.asarray(step),
                masks=masks,
                support=support,
                ascent=passes.loss("ascent", examples),
                descent=passes.loss("descent", examples),
                losses=passes.losses if passes.by_example else None,
                examples=examples,
                random=own,
                mean=mean,
                pool=pool,
                vary=vary,
            )

        parts = make_passes(random).parts(params, given["microbatches"])
        # Counts stay as they are: they decide which branch all devices take together.
        carried = jax.tree.map(lambda x: vary(x) if devices.is_data(x) else x, memory)
        seen = [
            evaluate(row, point(part, i), rho, carried) for i, part in enumerate(parts)
        ]
        estimate = _average(seen)
        if axis is not None:
            aux = devices.mean_over(axis, estimate.aux, total=True)
            estimate = devices.mean_over(axis, estimate._replace(aux=None))
            estimate = estimate._replace(aux=aux)
        # What is not finite would spoil the memory for good, and teaches nothing.
        sound = tree.all_finite((estimate.grad, estimate.memory))
        kept = tree.where(sound, estimate.memory, memory)
        return estimate._replace(memory=kept)

    return as_transformation(
        name,
        gradient,
        memory=memory_of(row),
        has_aux=given["has_aux"],
        aux_like=given["aux_like"],
        seed=given["seed"],
        by_example=row.by_example,
        dense=row.dense,
        direction_only=row.direction_only and name not in _NO_CHEAPER_LOOK,
        decoupled=decoupled,
        rho=rho,
        make=make,
    )


class _Passes:
    """The user's functions, called as the options say."""

    def __init__(
        self,
        name: str,
        value_fn: ValueFn,
        ascent_value_fn: ValueFn | None,
        row: Row,
        options: dict[str, Any],
        random: Callable[[], jax.Array],
    ):
        for function in (value_fn, ascent_value_fn or value_fn):
            check_function(function)
        self.name = name
        self.functions = {"ascent": ascent_value_fn or value_fn, "descent": value_fn}
        self.by_example = row.by_example
        self.has_aux, self.fresh = options["has_aux"], options["fresh_keys"]
        self.random = random

    def call(self, params: Any, which: str, examples: jax.Array | None) -> Any:
        """The user's function, as it is."""
        kwargs = {}
        if self.fresh:
            key = jax.random.fold_in(self.random(), _streams.PASSES)
            kwargs["key"] = jax.random.fold_in(key, _PASSES[which])
        if self.by_example:
            kwargs["examples"] = examples
        self.check_keywords(which, kwargs)
        return self.functions[which](params, **kwargs)

    def check_keywords(self, which: str, kwargs: dict[str, Any]) -> None:
        """Raises `TypeError` unless the function takes what it is called with."""
        try:
            inspect.signature(self.functions[which]).bind(None, **kwargs)
        except TypeError:
            wanted = ", ".join(f"{name}=..." for name in kwargs)
            raise TypeError(
                f"zs.{self.name} with these options calls value_fn(params, {wanted}): "
                "examples are the indices (None: all) of the examples whose losses [n] "
                "it returns, key is a PRNG key. (esam(gamma=1), ssam(mask='dynamic'), "
                "microbatches=1 and fresh_keys=False call value_fn(params).)"
            ) from None
        except ValueError:  # A builtin without a signature.
            return

    def losses(self, params: Any, which: str, examples: jax.Array | None) -> Any:
        """`(losses [n], aux)`."""
        result = self.call(params, which, examples)
        losses, aux = result if self.has_aux else (result, None)
        losses = jnp.asarray(losses)
        if losses.ndim != 1:
            raise ValueError(
                f"zs.{self.name} needs the losses of the examples, shape [n]: value_fn("
                f"params, examples=indices) returned the shape {losses.shape}."
            )
        return losses.astype(jnp.promote_types(losses.dtype, jnp.float32)), aux

    def loss(self, which: str, examples: jax.Array | None) -> Any:
        """`params -> (loss, aux)`."""
        if not self.by_example:
            return scalar_loss(lambda p: self.call(p, which, None), self.has_aux)

        def mean(params: Any) -> Any:
            losses, aux = self.losses(params, which, examples)
            return jnp.mean(losses), aux

        return mean

    def parts(self, params: Any, count: int) -> list[jax.Array | None]:
        """Indices of the examples of every part of the batch; None for all."""
        if count == 1:
            return [None]
        shape = jax.eval_shape(lambda p: self.losses(p, "descent", None)[0], params)
        (n,) = shape.shape
        if n % count:
            raise ValueError(f"microbatches={count} must divide the batch of {n}.")
        return list(jnp.arange(n).reshape(count, -1))


def _support(params: Any, masks: Any, include: Any, exclude: Any) -> Any | None:
    """The mask tree of what may be perturbed."""
    if not include and not exclude:
        return masks
    paths = tree.paths(params)
    chosen = tree.matching("include", include, paths) if include else set(paths)
    chosen -= tree.matching("exclude", exclude, paths)
    if not chosen:
        raise ValueError(f"include={include!r}, exclude={exclude!r} leave no leaf.")
    leaves, treedef = jax.tree.flatten(params)
    live = [True] * len(leaves) if masks is None else jax.tree.leaves(masks)
    return jax.tree.unflatten(
        treedef,
        [
            m if path in chosen else jnp.zeros(x.shape, bool)
            for path, m, x in zip(paths, live, leaves, strict=True)
        ],
    )


def _average(seen: list[Estimate]) -> Estimate:
    """The mean of the parts' estimates; of aux, integers are added up."""
    if len(seen) == 1:
        return seen[0]

    def floats(*parts: jax.Array) -> jax.Array:
        first = jnp.asarray(parts[0])
        if not jnp.issubdtype(first.dtype, jnp.floating):
            return first
        wide = jnp.promote_types(first.dtype, jnp.float32)
        total = jnp.sum(jnp.stack([jnp.asarray(x, wide) for x in parts]), axis=0)
        return (total / len(parts)).astype(first.dtype)

    def either(*parts: jax.Array) -> jax.Array:
        if jnp.issubdtype(jnp.result_type(parts[0]), jnp.integer):
            return jnp.sum(jnp.stack(parts), axis=0, dtype=jnp.result_type(parts[0]))
        return floats(*parts)

    mean = jax.tree.map(floats, *seen)
    unperturbed = jnp.max(jnp.stack([x.info.unperturbed for x in seen]))
    return mean._replace(
        aux=jax.tree.map(either, *(x.aux for x in seen)),
        info=mean.info._replace(unperturbed=unperturbed),
    )
