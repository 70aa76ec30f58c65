"""The user's loss functions, called as the shared options say."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zosam_jax import _streams
from zosam_jax._types import Aux, Key, Params, ValueFn
from zosam_jax.estimators.losses import (
    Loss,
    check_function,
    in_float32,
    scalar_loss,
    split_aux,
)
from zosam_jax.gradients.pieces import Examples, Losses

_PASSES = {"ascent": 0, "descent": 1}
_KEYWORDS = {
    "examples": "examples the indices of examples, whose losses [n] it returns (None: "
    "of all)",
    "key": "key a PRNG key",
}


@dataclasses.dataclass(frozen=True)
class Calls:
    """How a method calls the user's functions.

    Attributes:
      name: The method's public name, for errors.
      functions: The user's functions for the "ascent" and for the "descent".
      by_example: Whether they take `examples=` and return the losses of these examples.
      has_aux: Whether they return `(loss, aux)`.
      fresh_keys: Whether they take `key=`, a different one in each of the two passes.
      ascent_fraction: Fraction of the examples in a pass of the ascent, in (0, 1].
      ascent_examples: Which examples these are: "front" or "random".
      reasons: The options that ask for `by_example` and `fresh_keys`, for errors.
    """

    name: str
    functions: dict[str, ValueFn]
    by_example: bool
    has_aux: bool
    fresh_keys: bool
    ascent_fraction: float = 1.0
    ascent_examples: str = "front"
    reasons: str = ""

    def __post_init__(self):
        for function in self.functions.values():
            check_function(function)

    def losses(
        self, params: Params, random: Callable[[], Key], examples: Examples | None
    ) -> Losses:
        """Returns the losses of one part of a batch.

        Args:
          params: The parameters, for the shape of the losses.
          random: A function that returns the key of the part; called only if needed.
          examples: Indices of its examples; None for all.
        """

        def each(
            params: Params, which: str, examples: Examples | None
        ) -> tuple[jax.Array, Aux]:
            return self._each(params, which, examples, random)

        def loss(which: str, examples: Examples | None) -> Loss:
            if not self.by_example:
                return scalar_loss(
                    lambda p: self._call(p, which, None, random), self.has_aux
                )

            def mean(params: Params) -> tuple[jax.Array, Aux]:
                losses, aux = each(params, which, examples)
                return jnp.mean(losses), aux

            def computed(params: Params) -> jax.Array:
                return self._computed(params, which, examples, random)[0]

            return Loss(mean, computed)

        def ascent_parts(count: int) -> list[Loss]:
            whole = self._indices(params, random, examples)
            asked = f"The number of guides, {count},"
            parts = _equal_parts(whole, count, asked)
            return [loss("ascent", part) for part in parts]

        # If both passes call one function with one key, they share one object: `Point`
        # can then tell that the losses are the same.
        descent = loss("descent", examples)
        if self.ascent_fraction < 1:
            chosen, share = self._ascent_part(params, random, examples)
            ascent = loss("ascent", chosen)
            return Losses(ascent, descent, each, ascent_parts, examples, share)
        one = self.functions["ascent"] is self.functions["descent"]
        ascent = descent if one and not self.fresh_keys else loss("ascent", examples)
        return Losses(ascent, descent, each, ascent_parts, examples)

    def parts(
        self, params: Params, count: int, random: Callable[[], Key]
    ) -> list[Examples | None]:
        """Returns the indices of the examples of each part; None for all.

        Args:
          params: The parameters, for the shape of the losses.
          count: Number of parts (`microbatches`), which divides the batch.
          random: A function that returns the key of the step; called only if needed.
        """
        if count == 1:
            return [None]
        whole = self._indices(params, random, None)
        return list(_equal_parts(whole, count, f"microbatches={count}"))

    def _ascent_part(
        self, params: Params, random: Callable[[], Key], examples: Examples | None
    ) -> tuple[Examples, float]:
        """The indices of the examples of the ascent, and the share that they are."""
        examples = self._indices(params, random, examples)
        n = len(examples)
        count = max(1, round(self.ascent_fraction * n))
        if self.ascent_examples == "front":
            return examples[:count], count / n
        key = jax.random.fold_in(random(), _streams.EXAMPLES)
        return jax.random.permutation(key, examples)[:count], count / n

    def _indices(
        self, params: Params, random: Callable[[], Key], examples: Examples | None
    ) -> Examples:
        """The indices of the examples; None stands for the whole batch."""
        if examples is not None:
            return examples
        shape = jax.eval_shape(
            lambda p: self._each(p, "descent", None, random)[0], params
        )
        return np.arange(shape.shape[0], dtype=np.int32)

    def _each(
        self,
        params: Params,
        which: str,
        examples: Examples | None,
        random: Callable[[], Key],
    ) -> tuple[jax.Array, Aux]:
        """The losses of single examples in float32, `[n]`, and aux."""
        losses, aux = self._computed(params, which, examples, random)
        return in_float32(losses), aux

    def _computed(
        self,
        params: Params,
        which: str,
        examples: Examples | None,
        random: Callable[[], Key],
    ) -> tuple[jax.Array, Aux]:
        """The losses of single examples in their own dtype, `[n]`, and aux."""
        if not self.by_example:
            raise TypeError(
                f"A piece of zs.{self.name} calls point.losses.each: it must say "
                "by_example=True."
            )
        result = self._call(params, which, examples, random)
        losses, aux = split_aux(result, self.has_aux)
        losses = jnp.asarray(losses)
        if losses.ndim != 1:
            raise ValueError(
                f"zs.{self.name} needs the losses of the examples, shape [n]: value_fn("
                f"params, examples=indices) returned the shape {losses.shape}."
            )
        if examples is not None and len(losses) != len(examples):
            raise ValueError(
                f"zs.{self.name}: value_fn(params, examples=indices) returned "
                f"{len(losses)} losses for {len(examples)} examples. Take these "
                "examples of the batch, x[examples]."
            )
        return losses, aux

    def _call(
        self,
        params: Params,
        which: str,
        examples: Examples | None,
        random: Callable[[], Key],
    ) -> Any:
        """The user's function, with the keywords that the options add."""
        keywords: dict[str, Examples | None] = {}
        if self.fresh_keys:
            # The key differs from those of the directions, so dropout is independent of
            # them.
            key = jax.random.fold_in(random(), _streams.PASSES)
            keywords["key"] = jax.random.fold_in(key, _PASSES[which])
        if self.by_example:
            keywords["examples"] = examples
        function = self.functions[which]
        self._check_keywords(function, list(keywords))
        return function(params, **keywords)

    def _check_keywords(self, function: ValueFn, keywords: list[str]) -> None:
        """Raises `TypeError` unless the function takes the keywords."""
        try:
            inspect.signature(function).bind(None, **dict.fromkeys(keywords))
        except TypeError:
            wanted = ", ".join(f"{name}=..." for name in keywords)
            meanings = " and ".join(_KEYWORDS[name] for name in keywords)
            raise TypeError(
                f"zs.{self.name} with {self.reasons} calls value_fn(params, {wanted}), "
                f"with {meanings}. value_fn does not take that."
            ) from None
        except ValueError:  # A builtin without a signature.
            return


def _equal_parts(examples: Examples, count: int, asked: str) -> list[Examples]:
    """The examples in `count` parts; `asked` names who wants them, for the error."""
    size, rest = divmod(len(examples), count)
    if rest:
        raise ValueError(f"{asked} must divide the batch of {len(examples)}.")
    return [examples[i * size : (i + 1) * size] for i in range(count)]
