"""The options that all methods share, and what makes them part of each constructor."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar, get_type_hints

import jax

from zosam_jax import _check
from zosam_jax._types import SharedOptions
from zosam_jax.gradients.composition import Row
from zosam_jax.gradients.geometries import as_it_is
from zosam_jax.gradients.transformation import GradientEstimator

F = TypeVar("F", bound=Callable[..., Any])


Options = SharedOptions

DEFAULTS = Options(
    norm_over="mask",
    include=(),
    exclude=(),
    aux_from=None,
    microbatches=1,
    fresh_keys=False,
    axis_name=None,
    sync_ascent=False,
    has_aux=False,
    aux_like=None,
    seed=0,
)

_SHARED = """
  norm_over: "mask": the direction's norm over the weights that are perturbed, so that
    the radius is rho. "all": over every weight, and the radius is less.
  include: Glob patterns on `/`-joined key paths: only these leaves are perturbed, as
    `"*BatchNorm*/*"`. Default: all.
  exclude: Patterns of leaves that are not perturbed, as `"*/bias"`.
  aux_from: Whose aux is kept: "ascent", of the first pass, or "descent", of the last.
    Default: "ascent" where the first pass is a gradient at w, else "descent".
  microbatches: Parts of the batch that each find a perturbation of their own, their
    gradients averaged: m-sharpness in one process. Above 1, `value_fn` is called
    `value_fn(params, examples=indices)` and returns the losses of those examples, [n]
    (all of them with `examples=None`).
  fresh_keys: Whether the two passes draw dropout and augmentation apart: `value_fn` is
    called with `key=`, one for all looks uphill and one for the descent. Default: it
    is called without, and all passes share what it closes over.
  axis_name: Inside `jax.shard_map`, the mesh axis the batch lies on. Every device then
    looks uphill on its own part of the batch (random draws are the same on all), and
    gradients and value are averaged.
  sync_ascent: With `axis_name`, average the ascent direction too, and gradients before
    they are decomposed: one perturbation, as on the whole batch.
  has_aux: Whether `value_fn` returns `(loss, aux)`. Over microbatches and devices,
    floats in aux are averaged and integers added up.
  aux_like: An example of aux (arrays or `jax.ShapeDtypeStruct`). With it the state has
    its final structure from `init` on, as `lax.scan` needs.
  seed: What is random in step t comes from `fold_in(key(seed), t)` alone.
""".rstrip()


class Fixed:
    """A default that must be known before tracing.

    `optax.inject_hyperparams` traces the defaults that are numbers; this is none.
    """

    def __init__(self, value: float):
        self.value = value

    def __repr__(self) -> str:
        return repr(self.value)


def fixed(argument: str, value: Any) -> None:
    """Raises `ValueError` unless a positive integer is known before tracing."""
    if _check.is_traced(value) or isinstance(value, jax.Array):
        raise ValueError(
            f"{argument} must be known before tracing; inside "
            f'optax.inject_hyperparams, name it in static_args=("{argument}",).'
        )
    _check.whole(argument, value)


def method(make: F) -> F:
    """Writes the shared options into a constructor's signature and docstring.

    What is annotated as a plain `int` or `float` is known before tracing.
    """
    own = inspect.signature(make)
    hints = get_type_hints(Options)
    shared = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=default,
            annotation=hints[name],
        )
        for name, default in DEFAULTS.items()
    ]
    kept = [p for p in own.parameters.values() if p.kind is not p.VAR_KEYWORD]
    signature = own.replace(
        parameters=[
            p.replace(default=Fixed(p.default)) if p.annotation in (int, float) else p
            for p in [*kept, *shared]
        ]
    )
    text = inspect.cleandoc(make.__doc__ or "")
    args, mark, rest = text.partition("\n\nReturns:")
    doc = f"{args}{_SHARED}{mark}{rest}"

    @functools.wraps(make)
    def constructor(*args: Any, **kwargs: Any) -> GradientEstimator:
        try:
            signature.bind(*args, **kwargs)
        except TypeError as error:
            for name in kwargs:
                if name not in signature.parameters:
                    _check.one_of(
                        f"an option of zs.{make.__name__}", name, signature.parameters
                    )
            raise TypeError(f"zs.{make.__name__}: {error}") from None
        plain = {k: v.value if isinstance(v, Fixed) else v for k, v in kwargs.items()}
        return make(*args, **plain)

    constructor.__doc__ = doc
    vars(constructor)["__signature__"] = signature
    return constructor  # type: ignore[return-value]


def check_options(name: str, row: Row, rho: Any, options: dict[str, Any]) -> None:
    """Raises `ValueError` for shared options that do not go together."""
    if not callable(rho):
        _check.number("rho", rho, least=0)
    fixed("microbatches", options["microbatches"])
    if options["sync_ascent"] and options["axis_name"] is None:
        raise ValueError(
            f"zs.{name}(sync_ascent=True) needs axis_name=, the mesh axis to average "
            "over. (Under jit with a sharded batch, the ascent is global already.)"
        )
    _check.one_of("norm_over", options["norm_over"], ("mask", "all"))
    if options["norm_over"] == "all" and row.geometry is as_it_is:
        raise ValueError(f"zs.{name} normalises nothing: norm_over= has no meaning.")
    if options["aux_from"] is not None:
        _check.one_of("aux_from", options["aux_from"], ("ascent", "descent"))
        if options["aux_from"] == "ascent" and not row.looks:
            raise ValueError(
                f'zs.{name}(aux_from="ascent"): not every step evaluates the loss '
                'before it is perturbed. Say aux_from="descent".'
            )
