"""The two forms of a row: an Optax transformation, and a pure function."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from zosam_jax import _check, tree
from zosam_jax._options import (
    Signature,
    join_args,
    keys_of,
    public_name,
    split_args,
    with_signature,
)
from zosam_jax._types import (
    Estimate,
    Key,
    Masks,
    Memory,
    Params,
    Predicate,
    PyTree,
    Radius,
    Scalar,
    Seed,
    SharedOptions,
    ValueFn,
)
from zosam_jax.gradients.composition import evaluate, plain
from zosam_jax.gradients.devices import Devices, on_axis
from zosam_jax.gradients.losses import Calls
from zosam_jax.gradients.pieces import Examples, Point, Row
from zosam_jax.gradients.transformation import (
    GradientEstimator,
    PureGradient,
    as_transformation,
)

F = TypeVar("F", bound=Callable[..., object])


class PureOptions(SharedOptions, total=False):
    """The keyword options that the pure forms of all gradients share."""

    masks: Masks | None
    memory: Memory | None
    step: Scalar | None
    ascent_value_fn: ValueFn | None


def sharpness_aware(
    name: str,
    row: Row,
    rho: Radius,
    *,
    norm_over: str = "mask",
    include: str | Sequence[str] = (),
    exclude: str | Sequence[str] = (),
    aux_from: str | None = None,
    when: Predicate | None = None,
    ascent_fraction: float = 1.0,
    ascent_examples: str = "front",
    microbatches: int = 1,
    fresh_keys: bool = False,
    axis_name: str | None = None,
    sync_ascent: bool = False,
    has_aux: bool = False,
    aux_like: PyTree | None = None,
    seed: Seed = 0,
) -> GradientEstimator:
    r"""Returns the transformation of a sharpness-aware gradient, from its row.

    .. math::
      \epsilon = \rho \cdot \text{geometry}(\text{ascent direction}), \qquad
      g = \text{combination}(\nabla L(w), \text{descent}(w + \epsilon))

    This function makes every method of the library. Use it for your own methods too.

    Args:
      name: The method's name, for errors.
      row: Its ascent, geometry, descent and combination.
      rho: Radius of the perturbation, >= 0, or a schedule of it over optimizer steps.
      norm_over: "mask": the norm of the direction is over the perturbed weights, so the
        radius is rho. "all": it is over all weights, so the radius is smaller.
      include: Glob patterns on `/`-joined key paths, such as `"*BatchNorm*/*"`. Only
        these leaves are perturbed. Default: all.
      exclude: Patterns of leaves that are not perturbed, such as `"*/bias"`.
      aux_from: The pass that supplies aux: "ascent", the first, or "descent", the last.
        Default: "ascent" where the first pass is a gradient at w of the whole batch,
        else "descent".
      when: Optimizer step -> whether to perturb in this step. The other steps take the
        plain gradient, for the cost of one backward pass; see `zs.late`, `zs.every` and
        `zs.randomly`. Default: every step.
      ascent_fraction: Fraction of the batch, in (0, 1], that the passes of the ascent
        step see, and that they cost. For methods whose ascent step only finds a
        direction. `value` is then the loss of this part. Below 1, `value_fn` is called
        as with microbatches, here with `examples=None` in the descent.
      ascent_examples: Which examples these are: "front", the first of the batch (of its
        own part of the batch on each device of `axis_name`), or "random", drawn anew in
        every step.
      microbatches: Number of parts of the batch. Each has its own perturbation, and the
        gradients are averaged (m-sharpness in one process). Above 1,
        `value_fn` is called `value_fn(params, examples=indices)` and returns the losses
        of those examples, `[n]` (all of them with `examples=None`).
      fresh_keys: Whether the two passes draw dropout and augmentation independently.
        `value_fn` is then called with `key=`: one key for the ascent, another for the
        descent. Default: all passes share the randomness that `value_fn` contains.
      axis_name: Inside `jax.shard_map`, the mesh axis of the batch. Every device then
        computes its perturbation from its own part of the batch (with the same random
        draws), and gradients and value are averaged.
      sync_ascent: With `axis_name`, also average the ascent direction, and gradients
        before they are decomposed. All devices then share one perturbation.
      has_aux: Whether `value_fn` returns `(loss, aux)`. Over microbatches and devices,
        floats in aux are averaged and integers are added up.
      aux_like: An example of aux (arrays or `jax.ShapeDtypeStruct`). With it the state
        has its final structure from `init` on, as `lax.scan` needs.
      seed: All random draws of step t come from `fold_in(key(seed), t)`. It may be
        traced, so that one program trains with any seed, or by `jax.vmap` with several.

    Returns:
      An Optax transformation, to chain in front of an optimizer or to give `sparsify`
      as `gradient=`: `tx.update(None, state, params, value_fn=...)`. Its attribute
      `gradient` is the same method as a pure function.

    Raises:
      ValueError: An option is out of range, or two options exclude each other.
      TypeError: `when` is no function, or `include` or `exclude` are no patterns.

    Example:
      SAM in the maximum norm, which perturbs along the signs of the gradient:

      >>> import jax, jax.numpy as jnp, zosam_jax as zs
      >>> from zosam_jax.gradients import Ascent, GradientLook, Row, geometries
      >>> def signs(point, memory):
      ...     clean = zs.gradients.exact_gradient(point.losses.ascent, point.params)
      ...     direction = jax.tree.map(jnp.sign, clean.grad)
      ...     return GradientLook(direction, clean, memory=memory)
      >>> row = Row(Ascent(signs, gives=GradientLook), geometries.as_it_is())
      >>> tx = zs.gradients.sharpness_aware("sign_sam", row, rho=0.5)
      >>> print(tx.gradient(lambda w: w @ w, jnp.array([3.0, -4.0])).grad)
      [ 7. -9.]
    """
    options = SharedOptions(
        norm_over=norm_over,
        include=include,
        exclude=exclude,
        aux_from=aux_from,
        when=when,
        ascent_fraction=ascent_fraction,
        ascent_examples=ascent_examples,
        microbatches=microbatches,
        fresh_keys=fresh_keys,
        axis_name=axis_name,
        sync_ascent=sync_ascent,
        has_aux=has_aux,
        aux_like=aux_like,
        seed=seed,
    )
    _check_options(name, row, rho, options)
    method = _Method(
        name=name,
        row=row,
        rho=rho,
        norm_over=norm_over,
        include=include,
        exclude=exclude,
        aux_from=aux_from or (row.aux_from if ascent_fraction == 1 else "descent"),
        when=when,
        ascent_fraction=ascent_fraction,
        ascent_examples=ascent_examples,
        microbatches=microbatches,
        fresh_keys=fresh_keys,
        has_aux=has_aux,
        devices=on_axis(axis_name, sync_ascent),
    )
    return as_transformation(
        name,
        method.gradient,
        memory=row.init,
        has_aux=has_aux,
        aux_like=aux_like,
        seed=seed,
        by_example=method.by_example,
        dense=row.descent.dense,
        direction_only=row.direction_only,
        decoupled=row.combination.decoupled,
        rho=rho,
        when=when,
        make=functools.partial(sharpness_aware, name, row, rho, **options),
    )


@dataclasses.dataclass(frozen=True)
class _Method:
    """A row with its options."""

    name: str
    row: Row
    rho: Radius
    norm_over: str
    include: str | Sequence[str]
    exclude: str | Sequence[str]
    aux_from: str
    when: Predicate | None
    ascent_fraction: float
    ascent_examples: str
    microbatches: int
    fresh_keys: bool
    has_aux: bool
    devices: Devices

    @property
    def by_example(self) -> bool:
        """Whether it needs the losses of single examples."""
        by_part = self.microbatches > 1 or self.ascent_fraction < 1
        return self.row.by_example or by_part

    def gradient(
        self,
        value_fn: ValueFn,
        params: Params,
        *,
        key: Key | None,
        step: Scalar | None,
        masks: Masks | None,
        memory: Memory,
        ascent_value_fn: ValueFn | None,
    ) -> Estimate:
        """Returns the mean of the gradients of the parts of the batch.

        In steps in which `when` is False it is the plain gradient of the batch.
        """
        self._check_call(params, masks, ascent_value_fn)
        calls = Calls(
            self.name,
            {"ascent": ascent_value_fn or value_fn, "descent": value_fn},
            by_example=self.by_example,
            has_aux=self.has_aux,
            fresh_keys=self.fresh_keys,
            ascent_fraction=self.ascent_fraction,
            ascent_examples=self.ascent_examples,
            reasons=self._reasons(),
        )
        chosen = support(params, masks, self.include, self.exclude)
        # Inside `jax.shard_map`, the gradient of a replicated value is summed over the
        # devices. A varying copy gives every device its own gradient.
        local = self.devices.vary(params)
        carried = self.devices.vary_data(memory)

        def point(part: int, examples: Examples | None) -> Point:
            random = self._key(key, part)
            return Point(
                local,
                calls.losses(params, random, examples),
                self._optimizer_step(step),
                masks,
                chosen,
                random,
                self.devices,
            )

        def perturbed() -> Estimate:
            parts = calls.parts(params, self.microbatches, self._key(key, 0))
            seen = [
                evaluate(
                    self.row,
                    point(i, part),
                    self.rho,
                    carried,
                    norm_over=self.norm_over,
                    aux_from=self.aux_from,
                )
                for i, part in enumerate(parts)
            ]
            return self._over_devices(_average(seen), memory)

        def unperturbed() -> Estimate:
            return self._over_devices(plain(self.row, point(0, None), carried), memory)

        if self.when is None:
            return perturbed()
        # `lax.cond` runs one branch, so a plain step costs a plain gradient.
        due = jnp.asarray(self.when(self._optimizer_step(step)()), bool)
        return jax.lax.cond(due, perturbed, unperturbed)

    def _reasons(self) -> str:
        """The options by which `value_fn` is called with keywords."""
        found = {
            f"ascent_fraction={self.ascent_fraction:g}": self.ascent_fraction < 1,
            f"microbatches={self.microbatches}": self.microbatches > 1,
            "losses of single examples (not esam(gamma=1), ssam(mask='dynamic'))": (
                self.row.by_example
            ),
            "fresh_keys=True": self.fresh_keys,
        }
        return " and ".join(text for text, holds in found.items() if holds)

    def _over_devices(self, estimate: Estimate, memory: Memory) -> Estimate:
        """The mean over the devices, with a memory that is finite."""
        return _keep_sound_memory(self.devices.average(estimate), memory)

    def _check_call(
        self, params: Params, masks: Masks | None, ascent_value_fn: ValueFn | None
    ) -> None:
        """Raises `ValueError` for masks or an ascent loss that do not fit."""
        if masks is not None:
            tree.check_masks(masks, params)
        if ascent_value_fn is not None and not self.row.takes_another_loss:
            raise ValueError(
                f"zs.{self.name} uses the gradient or losses of its first pass beside "
                "those of its second: both are of value_fn. Leave out ascent_value_fn."
            )

    def _optimizer_step(self, step: Scalar | None) -> Callable[[], jax.Array]:
        """Returns a function that returns the optimizer step."""

        def optimizer_step() -> jax.Array:
            # A default of 0 would hold a schedule at its start without a word.
            if step is None:
                raise ValueError(
                    f"zs.{self.name} follows a schedule over optimizer steps, so its "
                    "gradient needs step=, the number of steps made."
                )
            return jnp.asarray(step)

        return optimizer_step

    def _key(self, key: Key | None, part: int) -> Callable[[], Key]:
        """Returns a function that returns the key of one part of the batch."""

        def random() -> Key:
            if key is None:
                raise TypeError(
                    f"zs.{self.name} draws at random: give it key=, a PRNG key."
                )
            # Part 0 has the key itself, so one part gives the same draws as no parts.
            return jax.random.fold_in(key, part) if part else key

        return random


def pure_form(constructor: Callable[..., GradientEstimator]) -> Callable[[F], F]:
    """Returns a decorator that makes a method's gradient a pure function.

    The decorated function states a signature: `(value_fn, params, key)`, then the
    constructor's own parameters, then `**options: Unpack[PureOptions]`. It needs no
    body: a call makes the transformation and calls its `gradient`.

    Args:
      constructor: The method's constructor.

    Raises:
      TypeError: The signature differs from the constructor's.
    """

    def decorate(function: F) -> F:
        signature = _pure_signature(function, constructor)

        @functools.wraps(function)
        def gradient(
            value_fn: ValueFn,
            params: Params,
            key: Key | None = None,
            *rho: Radius,
            masks: Masks | None = None,
            memory: Memory | None = None,
            step: Scalar | None = None,
            ascent_value_fn: ValueFn | None = None,
            **options: Any,
        ) -> Estimate:
            return constructor(*rho, **options).gradient(
                value_fn,
                params,
                key,
                masks=masks,
                memory=memory,
                step=step,
                ascent_value_fn=ascent_value_fn,
            )

        doc = _pure_doc(function, constructor, list(signature.parameters))
        return with_signature(gradient, signature, doc)  # pyright: ignore

    return decorate


_CALL = ("masks", "memory", "step", "ascent_value_fn")


def _pure_signature(
    function: Callable[..., object], constructor: Callable[..., object]
) -> Signature:
    """The signature of a pure form, checked against the constructor's."""
    own = inspect.signature(function)
    stated = [p for p in own.parameters.values() if p.kind is not p.VAR_KEYWORD]
    call = [inspect.signature(PureGradient.__call__).parameters[name] for name in _CALL]
    taken = inspect.signature(constructor).parameters
    unpacked = keys_of(function)
    shared = [p for name, p in taken.items() if name in unpacked]
    wanted = [p for name, p in taken.items() if name not in unpacked]
    if stated[3:] != wanted or not set(unpacked) <= {*_CALL, *taken}:
        raise TypeError(
            f"{public_name(function)} must state the parameters of "
            f"{public_name(constructor)}: {', '.join(map(str, wanted))}."
        )
    parameters = [*stated, *call, *shared]
    return Signature(parameters, return_annotation=own.return_annotation)


def _pure_doc(
    function: Callable[..., object],
    constructor: Callable[..., object],
    names: Sequence[str],
) -> str | None:
    """The docstring of a pure form, with the arguments of the constructor."""
    if function.__doc__ is None:
        return None
    before, _, _ = split_args(inspect.cleandoc(function.__doc__))
    _, call, after = split_args(inspect.cleandoc(PureGradient.__call__.__doc__ or ""))
    _, own, _ = split_args(inspect.cleandoc(constructor.__doc__ or ""))
    entries = {**own, **call}
    return join_args(before, {n: entries[n] for n in names if n in entries}, after)


def _check_options(name: str, row: Row, rho: Radius, options: SharedOptions) -> None:
    """Raises `ValueError` for shared options that exclude each other."""
    if callable(rho):
        _check.callable_as("rho", rho, "(step) -> radius")
    else:
        _check.number("rho", rho, least=0)
    _check.flags(
        fresh_keys=options.get("fresh_keys", False),
        sync_ascent=options.get("sync_ascent", False),
        has_aux=options.get("has_aux", False),
    )
    parts, aux_from = options.get("microbatches", 1), options.get("aux_from")
    static_count("microbatches", parts)
    if row.ascent.one_part and parts > 1:
        raise ValueError(row.ascent.one_part.format(microbatches=parts))
    if options.get("sync_ascent") and options.get("axis_name") is None:
        raise ValueError(
            f"zs.{name}(sync_ascent=True) needs axis_name=, the mesh axis to average "
            "over. (Under jit with a sharded batch, the ascent is global already.)"
        )
    when = options.get("when")
    if when is not None and not callable(when):
        raise TypeError(
            f"zs.{name}(when={when!r}): when must be a function of the optimizer step, "
            "such as lambda step: step >= 100; see zs.late."
        )
    if when is not None:
        _check.callable_as("when", when, "(step) -> bool")
    for chosen in ("include", "exclude"):
        _check.patterns(chosen, options.get(chosen, ()))
    _check_ascent_part(name, row, options)
    _check.one_of("norm_over", options.get("norm_over"), ("mask", "all"))
    if options.get("norm_over") == "all" and not row.geometry.normalizes:
        raise ValueError(f"zs.{name} normalises nothing: norm_over= has no meaning.")
    if aux_from is not None:
        _check.one_of("aux_from", aux_from, ("ascent", "descent"))
        if aux_from == "ascent" and not row.looks_at_every_step:
            raise ValueError(
                f'zs.{name}(aux_from="ascent"): not every step evaluates the loss '
                'before it is perturbed. Say aux_from="descent".'
            )


def _check_ascent_part(name: str, row: Row, options: SharedOptions) -> None:
    """Raises `ValueError` unless the ascent step can see a part of the batch alone."""
    fraction = options.get("ascent_fraction", 1.0)
    known_before_tracing("ascent_fraction", fraction)
    _check.number("ascent_fraction", fraction, above=0, most=1)
    known = ("front", "random")
    _check.one_of("ascent_examples", options.get("ascent_examples"), known)
    if fraction == 1:
        return
    asked = f"zs.{name}(ascent_fraction={fraction:g})"
    if not row.direction_only or row.ascent.by_example:
        raise ValueError(
            f"{asked} needs a method whose ascent step evaluates the loss only to find "
            f"a direction, as zs.sam and zs.zosam. zs.{name} does not fit."
        )
    if options.get("aux_from") == "ascent":
        raise ValueError(
            f'{asked}: aux_from="ascent" would be of a part of the batch. Say '
            'aux_from="descent".'
        )


def known_before_tracing(argument: str, value: object) -> None:
    """Raises `ValueError` if the value is traced or an array."""
    # The value decides which program is traced. `optax.inject_hyperparams` makes
    # numeric arguments arrays in the state unless they are static.
    if _check.is_traced(value) or isinstance(value, jax.Array):
        raise ValueError(
            f"{argument} must be known before tracing; inside "
            f'optax.inject_hyperparams, name it in static_args=("{argument}",).'
        )


def static_count(argument: str, value: object) -> None:
    """Raises `ValueError` unless the value is a positive integer, not traced."""
    known_before_tracing(argument, value)
    _check.whole(argument, value)


def support(
    params: Params,
    masks: Masks | None,
    include: str | Sequence[str],
    exclude: str | Sequence[str],
) -> Masks | None:
    """Returns the mask tree of the live weights in the chosen leaves; None for all.

    Args:
      params: Pytree of arrays.
      masks: Mask tree; None for all weights.
      include: Glob patterns of the leaves to choose; () for all.
      exclude: Glob patterns of the leaves to leave out.

    Raises:
      ValueError: A pattern matches no leaf, or no leaf is left.
      TypeError: `include` or `exclude` are no patterns.
    """
    include = _check.patterns("include", include)
    exclude = _check.patterns("exclude", exclude)
    if not include and not exclude:
        return masks
    paths = tree.paths(params)
    chosen = tree.matching("include", include, paths) if include else set(paths)
    chosen -= tree.matching("exclude", exclude, paths)
    if not chosen:
        raise ValueError(f"include={include!r}, exclude={exclude!r} leave no leaf.")
    leaves, treedef = jax.tree.flatten(params)
    live = [True] * len(leaves) if masks is None else jax.tree.leaves(masks)
    # Zeros of the full shape: a scalar would mark a dense leaf.
    return jax.tree.unflatten(
        treedef,
        [
            m if path in chosen else jnp.zeros(x.shape, bool)
            for path, m, x in zip(paths, live, leaves, strict=True)
        ],
    )


def _average(seen: list[Estimate]) -> Estimate:
    """The mean of the estimates of the parts; integers in aux are added up."""
    if len(seen) == 1:
        return seen[0]

    def mean(*parts: jax.Array) -> jax.Array:
        first = jnp.asarray(parts[0])
        if not jnp.issubdtype(first.dtype, jnp.floating):
            return first
        # A sum of many parts in bfloat16 would lose the later ones.
        wide = jnp.promote_types(first.dtype, jnp.float32)
        total = jnp.sum(jnp.stack([jnp.asarray(x, wide) for x in parts]), axis=0)
        return (total / len(parts)).astype(first.dtype)

    def total(*parts: jax.Array) -> jax.Array:
        if jnp.issubdtype(jnp.result_type(parts[0]), jnp.integer):
            return jnp.sum(jnp.stack(parts), axis=0, dtype=jnp.result_type(parts[0]))
        return mean(*parts)

    average = jax.tree.map(mean, *seen)
    unperturbed = jnp.max(jnp.stack([x.info.unperturbed for x in seen]))
    return average._replace(
        aux=jax.tree.map(total, *(x.aux for x in seen)),
        info=average.info._replace(unperturbed=unperturbed),
    )


def _keep_sound_memory(estimate: Estimate, memory: Memory) -> Estimate:
    """The estimate, with the old memory if the gradient or memory is not finite.

    Otherwise NaN would stay in the memory forever.
    """
    if not jax.tree.leaves(memory):
        return estimate
    # The gradient is tested too: a NaN gradient may leave a finite but wrong memory.
    # The test follows the mean over the devices, so all devices decide alike.
    sound = tree.all_finite((estimate.grad, estimate.memory))
    return estimate._replace(memory=tree.where(sound, estimate.memory, memory))
