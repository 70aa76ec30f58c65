"""Every method of the family as a row, with intervals that a few steps show."""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import zosam_jax as zs

EXAMPLES = 8


class Method(NamedTuple):
    """A method, and what its documentation says of a step.

    Attributes:
      make: The constructor; keyword options on top.
      value: Whose loss `value` is: "clean", at w; "probes", the mean of the forward
        passes; "moved", at w + eps; "first", of the first pass. One word a step,
        in turn.
      forward: Forward passes without a backward pass, in batches, step by step in turn.
      backward: Backward passes, likewise; None where the gradients decide.
      traced: Backward passes in the traced program: of a `lax.cond`, both branches.
      by_example: Whether value_fn returns the losses of single examples.
    """

    make: functools.partial[zs.GradientEstimator]
    value: tuple[str, ...] = ("clean",)
    forward: tuple[float, ...] = (0,)
    backward: tuple[float, ...] | None = (2,)
    traced: int = 2
    by_example: bool = False

    @property
    def tells_kinds(self) -> bool:
        """Whether `Witness` can tell its passes apart."""
        return self.make.keywords.get("delta", 0) is not None

    def at(self, field: str, step: int) -> Any:
        """An entry of a field that goes round."""
        entries = getattr(self, field)
        return entries and entries[step % len(entries)]


def row(constructor: Callable[..., Any], *fields: Any, **options: Any) -> Method:
    made = {name: options.pop(name) for name in Method._fields if name in options}
    return Method(functools.partial(constructor, **options), *fields, **made)


ONE_PASS: Any = {"value": ("moved",), "backward": (1,), "traced": 1}
# A difference of float32 losses is off by 1e-7 / delta.
PROBES: Any = {"delta": 0.01, "value": ("probes",), "forward": (2,)}
PROBES |= {"backward": (1,), "traced": 1}
EVERY: Any = {"every": 2, "value": ("probes", "moved"), "forward": (2, 0)}
NO_PASS: Any = {"backward": (0,), "traced": 0}

# The prices are those that the papers state.
METHODS = {
    "sam": row(zs.sam),
    "sam-2-steps": row(zs.sam, steps=2, backward=(3,), traced=3),
    "sampa": row(zs.sampa, learning_rate=0.5, value=("first",)),
    "sam-layerwise": row(zs.sam, layerwise=True),
    "asam": row(zs.asam),
    "gsam": row(zs.gsam),
    "gsam-gap": row(zs.gsam, minimize_perturbed=False),
    # At sigma = 1, two equal gradients leave no direction.
    "fsam": row(zs.fsam, sigma=0.5),
    "vasso": row(zs.vasso),
    "wsam": row(zs.wsam),
    "esam": row(zs.esam, forward=(1,), backward=(1.5,), by_example=True),
    "esam-weights": row(zs.esam, gamma=1.0),
    "looksam": row(zs.looksam, every=2, backward=(2, 1)),
    "looksam-layerwise": row(zs.looksam, every=2, layerwise=True, backward=(2, 1)),
    # lambda_2 so high that the first step is SAM's and some later ones are not.
    "aesam": row(zs.aesam, total_steps=8, lambda_2=3.0, backward=None),
    # Four of eight examples, one after another, in every second step.
    "ssam-fisher": row(
        zs.ssam,
        interval=2,
        num_examples=4,
        backward=(2.5, 2),
        traced=3,
        by_example=True,
    ),
    "ssam-dynamic": row(zs.ssam, mask="dynamic", interval=2, total_steps=8),
    "cram": row(zs.cram),
    "cram-alone": row(zs.cram, plus=False, sparse_gradient=False, sparsities=(0.5,)),
    "s2sam": row(zs.s2sam, **ONE_PASS),
    "msam": row(zs.msam, **ONE_PASS),
    "rwp": row(zs.rwp, **ONE_PASS),
    "mrwp": row(zs.mrwp),
    "arwp": row(zs.arwp, **ONE_PASS),
    "random_sign": row(zs.random_sign, **ONE_PASS),
    "zosam": row(zs.zosam, **PROBES),
    "zosam-3-sphere": row(
        zs.zosam, num_directions=3, directions="sphere", **PROBES | {"forward": (6,)}
    ),
    "zosam-one-sided": row(
        zs.zosam,
        num_directions=2,
        directions="rademacher",
        two_sided=False,
        **PROBES | {"value": ("clean",), "forward": (3,)},
    ),
    "zosam-exact": row(
        zs.zosam, **PROBES | {"delta": None, "value": ("clean",), "forward": (3,)}
    ),
    "zosam-every": row(zs.zosam, **PROBES | EVERY),
    "zosam-coordinates": row(
        zs.zosam,
        directions="coordinates",
        **PROBES | {"value": ("clean",), "forward": (2 * 40 + 1,)},
    ),
    "zosam-guided": row(zs.zosam, directions="guided", **PROBES),
    "zosam-guided-every": row(zs.zosam, directions="guided", **PROBES | EVERY),
    "zosam-guided-disjoint": row(
        zs.zosam, directions="guided", disjoint=True, by_example=True, **PROBES
    ),
    "zosam-zeroth-order": row(
        zs.zosam, descent="zeroth_order", **PROBES | NO_PASS | {"forward": (4,)}
    ),
    "zeroth_order": row(zs.zeroth_order, **PROBES | NO_PASS),
}
ALL = sorted(METHODS)


def batch(examples: int = EXAMPLES, dtype: Any = jnp.float32) -> tuple[Any, Any]:
    """Inputs and targets."""
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(2, examples, 4))
    return jnp.asarray(x, dtype), jnp.asarray(y, dtype)


def weights(dtype: Any = jnp.float32) -> Any:
    """The parameters of a small network."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape), dtype)

    # Few shapes: outside jit, JAX compiles every operation for every shape.
    return {
        "BatchNorm_0": {"scale": 1 + normal(4) / 4},
        "hidden": {"kernel": normal(4, 4) / 2},
        "out": {"bias": normal(4) / 4, "kernel": normal(4, 4) / 2},
    }


def losses_on(x: jax.Array, y: jax.Array) -> Callable[..., jax.Array]:
    """The network's losses of the examples, [n]."""

    def losses(p: Any, examples: jax.Array | None = None) -> jax.Array:
        inputs, targets = (x, y) if examples is None else (x[examples], y[examples])
        h = jnp.tanh(inputs @ p["hidden"]["kernel"] * p["BatchNorm_0"]["scale"])
        return jnp.mean((h @ p["out"]["kernel"] + p["out"]["bias"] - targets) ** 2, 1)

    return losses


def network(dtype: Any = jnp.float32) -> tuple[Any, Callable[..., jax.Array]]:
    """`(params, losses)`."""
    return weights(dtype), losses_on(*batch(EXAMPLES, dtype))


def value_fn_of(method: Method, losses: Callable[..., jax.Array]) -> Callable[..., Any]:
    """The losses in the form that a method wants."""
    if method.by_example:
        return losses
    return lambda p: jnp.mean(losses(p))


def estimates(
    method: Method,
    params: Any,
    value_fns: Sequence[Any],
    masks: Any = None,
    steps: Sequence[int] | None = None,
    **options: Any,
) -> Iterator[zs.Estimate]:
    """The pure form at fixed parameters, time after time, keys as in a chain."""
    made = method.make(**options)
    memory = made.init(params).memory
    for i, value_fn in enumerate(value_fns):
        found = made.gradient(
            value_fn,
            params,
            key=jax.random.fold_in(jax.random.key(0), i),
            step=i if steps is None else steps[i],
            masks=masks,
            memory=memory,
        )
        memory = found.memory
        yield found


@functools.cache
def topology(rule: str = "rigl") -> zs.sparsity.SparseMethod:
    """Half of the weights; other halves from the second optimizer step on.

    Compiled once, even inside `jax.disable_jit()`.
    """
    made = getattr(zs.sparsity, rule)(
        0.5, 2, interval=1, drop_fraction=0.5, stop_fraction=1.0
    )

    def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
        jitted = jax.jit(function)

        def call(*args: Any) -> Any:
            with jax.disable_jit(False):
                return jitted(*args)

        return call

    return made._replace(init=compiled(made.init), change=compiled(made.change))


class Pass(NamedTuple):
    """One evaluation of the loss.

    Attributes:
      kind: "forward", or "backward" where a gradient is taken of it.
      params: Where.
      examples: Which examples; None for all.
    """

    kind: str
    params: Any
    examples: np.ndarray | None

    @property
    def share(self) -> float:
        """Of the batch."""
        return 1.0 if self.examples is None else self.examples.size / EXAMPLES


class Witness:
    """A loss that remembers its passes in order: for `jax.disable_jit()` alone."""

    def __init__(self, method: Method, losses: Callable[..., jax.Array]):
        self.passes: list[Pass] = []
        self._f = value_fn_of(method, losses)
        # `jax.jvp` knows no custom_vjp: there, passes are seen but not told apart.
        self._kinds = method.tells_kinds

    def __call__(self, params: Any, examples: jax.Array | None = None) -> jax.Array:
        result = self._f(params) if examples is None else self._f(params, examples)
        if self._kinds:
            return _noted(self._note, result, (params, examples))
        jax.debug.callback(lambda p: self._note("unknown", (p, examples)), params)
        return result

    def _note(self, kind: str, where: Any) -> None:
        params, examples = where
        if isinstance(jax.tree.leaves(params)[0], jax.core.Tracer):
            return  # Only the shape of the result is asked for.
        params = jax.tree.map(np.asarray, params)
        self.passes.append(
            Pass(kind, params, None if examples is None else np.asarray(examples))
        )

    def take(self) -> list[Pass]:
        """The passes since the last call."""
        jax.effects_barrier()
        taken, self.passes = self.passes, []
        return taken


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _noted(note: Any, result: Any, where: Any) -> Any:
    note("forward", where)
    return result


def _forward_rule(note: Any, result: Any, where: Any) -> Any:
    note("backward", where)
    return result, None


_noted.defvjp(_forward_rule, lambda note, _, cotangent: (cotangent, None))


def in_batches(kind: str, passes: Iterable[Pass]) -> float:
    """How many passes of a kind, in batches."""
    return sum(seen.share for seen in passes if seen.kind == kind)
