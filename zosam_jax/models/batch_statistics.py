"""The statistics of batch normalization, estimated anew for weights that are fixed."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from flax import traverse_util

from zosam_jax._types import Key, PyTree
from zosam_jax.models.variables import draws

_Path = tuple[str, ...]
_STATISTICS = "batch_stats"


def reestimate_batch_stats(
    model: nn.Module,
    variables: Mapping[str, PyTree],
    batches: Iterable[jax.typing.ArrayLike],
    *,
    key: Key | None = None,
) -> dict[str, PyTree]:
    r"""Returns the variables with the statistics of batch normalization of batches.

    In training, running averages follow weights that move. For weights that are changed
    without training (pruned at once, rounded, averaged), they are those of the weights
    before. Here, with batches of :math:`n_b` examples, and :math:`w_b = n_b / \sum n`,

    .. math:: \mu = \sum_b w_b \, \mu_b, \qquad
              \sigma^2 = \sum_b w_b \left(\sigma_b^2 + (\mu_b - \mu)^2\right)

    for the mean and the (biased) variance of each batch, in float64: the moments of all
    examples together. Each layer normalizes by the statistics of the batch meanwhile,
    as in training. This is PreciseBN (arXiv:2105.07576, section 3).

    Batches of the size and the augmentation of the training give the statistics that it
    would have ended with. A network that `compact` cut needs none: the cut is exact.

    Args:
      model: A model of `create`, or any Linen module that is called with `(inputs,
        train=True)` and normalizes by `flax.linen.BatchNorm`. Each layer is called once
        in a pass.
      variables: Its variables, `{"params": ..., "batch_stats": ...}`.
      batches: Inputs of the model, `[N, ...]`. A size that differs is compiled anew.
      key: For a model that draws in training (see `draws`), as for dropout. Each batch
        has its own draws.

    Returns:
      The variables, with other `batch_stats`. Those of layers that do not follow the
      batches (`use_running_average=True`) stay.

    Raises:
      ValueError: The model has no batch normalization that follows the batches, or
        needs a key; or there is no batch, or an empty one.

    Example:
      >>> import jax, jax.numpy as jnp, zosam_jax as zs
      >>> model = zs.models.create("resnet20", num_classes=10, width=1 / 16)
      >>> params, state = zs.models.initialize(model, jax.random.key(0), (8, 8, 3))
      >>> batches = [jnp.ones((4, 8, 8, 3)), jnp.zeros((2, 8, 8, 3))]
      >>> network = zs.models.reestimate_batch_stats(
      ...     model, {"params": params, **state}, batches
      ... )
      >>> network["batch_stats"]["stem_norm"]["mean"].shape
      (1,)
    """
    if key is None and draws(model):
        raise ValueError(
            f"{type(model).__name__} draws in training (dropout or stochastic depth): "
            "give key=jax.random.key(0)."
        )
    moments: _Moments | None = None
    measure = None
    for number, x in enumerate(batches):
        if 0 in np.shape(x):
            raise ValueError(f"batch {number} has no examples.")
        drawn = {} if key is None else {"dropout": jax.random.fold_in(key, number)}
        if measure is None:
            measure = _Measure(model, variables, x, drawn)
        batch = measure(x, drawn)
        moments = batch if moments is None else moments.plus(batch)
    if moments is None or measure is None:
        raise ValueError("batches is empty: there is nothing to estimate from.")
    return measure.with_statistics(moments)


class _Moments(NamedTuple):
    """Mean and variance of the inputs of each layer over some examples, float64."""

    examples: int
    mean: dict[_Path, np.ndarray]
    var: dict[_Path, np.ndarray]

    def plus(self, other: "_Moments") -> "_Moments":
        """Returns the moments of both sets of examples together."""
        total = self.examples + other.examples
        share = other.examples / total
        mean, var = {}, {}
        for path, own in self.mean.items():
            step = other.mean[path] - own
            mean[path] = own + share * step
            within = (1 - share) * self.var[path] + share * other.var[path]
            var[path] = within + share * (1 - share) * step**2
        return _Moments(total, mean, var)


class _Measure:
    """The moments of a batch in every layer that follows the batches."""

    def __init__(
        self,
        model: nn.Module,
        variables: Mapping[str, PyTree],
        x: jax.typing.ArrayLike,
        rngs: Mapping[str, Key],
    ):
        """Finds the layers, with an example of a batch.

        Raises:
          ValueError: There is none.
        """
        stored: dict[_Path, Any] = dict(
            traverse_util.flatten_dict(dict(variables.get(_STATISTICS, {})))
        )
        self.variables, self.stored = dict(variables), stored

        def states(variables: PyTree, x: jax.Array, rngs: Mapping[str, Key]) -> PyTree:
            return model.apply(
                variables, x, train=True, mutable=[_STATISTICS], rngs=dict(rngs)
            )[1]

        self.decays: dict[_Path, float] = {}
        with nn.intercept_methods(self._note):
            jax.eval_shape(states, variables, x, rngs)
        if not self.decays:
            raise ValueError(
                f"{type(model).__name__} has no batch normalization that follows the "
                "batches, so that there are no statistics to estimate."
            )
        # From zero, the first running average is a share of the batch's own statistics.
        zeros = {
            path: np.zeros_like(x) if path[:-1] in self.decays else x
            for path, x in stored.items()
        }
        self.start = self._joined(zeros)
        self.states = jax.jit(states)

    def _note(
        self,
        call: Any,
        arguments: tuple[Any, ...],
        options: dict[str, Any],
        context: nn.module.InterceptorContext,
    ) -> Any:
        """Calls a method of a module; of a normalization, it notes the decay."""
        module = context.module
        if isinstance(module, nn.BatchNorm) and context.method_name == "__call__":
            given = dict(enumerate(arguments)).get(1)
            fixed = options.get("use_running_average", given)
            fixed = module.use_running_average if fixed is None else fixed
            if not fixed and module.momentum < 1:
                self.decays[module.path] = module.momentum
        return call(*arguments, **options)

    def __call__(self, x: jax.typing.ArrayLike, rngs: Mapping[str, Key]) -> _Moments:
        """Returns the moments of a batch."""
        found = jax.device_get(self.states(self.start, x, rngs))[_STATISTICS]
        flat = traverse_util.flatten_dict(found)

        def of(name: str) -> dict[_Path, np.ndarray]:
            return {
                path: np.asarray(flat[*path, name], np.float64) / (1 - decay)
                for path, decay in self.decays.items()
            }

        return _Moments(np.shape(x)[0], of("mean"), of("var"))

    def with_statistics(self, moments: _Moments) -> dict[str, PyTree]:
        """Returns the variables with moments as their statistics."""
        new = dict(self.stored)
        for name, found in (("mean", moments.mean), ("var", moments.var)):
            for path, x in found.items():
                new[*path, name] = x.astype(self.stored[*path, name].dtype)
        return self._joined(new)

    def _joined(self, statistics: Mapping[_Path, Any]) -> dict[str, PyTree]:
        return {**self.variables, _STATISTICS: traverse_util.unflatten_dict(statistics)}
