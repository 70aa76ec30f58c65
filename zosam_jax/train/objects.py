"""Objects that a user gives in place of what the configuration names."""

import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from zosam_jax import _check
from zosam_jax._calls import of_value
from zosam_jax.data import Dataset, Streamed
from zosam_jax.gradients.transformation import GradientEstimator
from zosam_jax.runs.config import TrainConfig
from zosam_jax.runs.errors import RunError
from zosam_jax.sparsity import SparseMethod
from zosam_jax.train.experiment import Loss, Model

KINDS = ("dataset", "model", "method", "gradient", "optimizer", "loss")


class Objects(NamedTuple):
    """The given objects; None where the configuration's name applies.

    Attributes:
      dataset: Training and test examples.
      model: Linen module, called with `(inputs, train=...)`.
      method: Sparse method, made for the steps of this run.
      gradient: Gradient estimator. The trainer sets `has_aux`, `aux_like` and `seed`.
      optimizer: Update rule with its learning rate and weight decay, such as
        `optax.adam(1e-3)`.
      loss: `(outputs, labels) -> losses`, one for each example.
    """

    dataset: Dataset | Streamed | None = None
    model: Model | None = None
    method: SparseMethod | None = None
    gradient: GradientEstimator | None = None
    optimizer: optax.GradientTransformation | None = None
    loss: Loss | None = None

    def check_types(self) -> None:
        """Raises `ValueError` for objects of another type than their part needs."""
        for kind, wanted, example in (
            ("gradient", GradientEstimator, "zs.zosam(rho=0.1)"),
            ("method", SparseMethod, "zs.sparsity.rigl(0.9, total_steps)"),
            ("optimizer", optax.GradientTransformation, "optax.adam(1e-3)"),
        ):
            value = getattr(self, kind)
            if value is not None and not isinstance(value, wanted):
                raise ValueError(
                    f"{kind}= must be a {wanted.__name__}, as {example}; got "
                    f"{type(value).__name__}."
                )
        if self.loss is not None:
            try:
                _check.callable_as("loss", self.loss, "(outputs, labels) -> losses")
            except TypeError as error:
                raise ValueError(str(error)) from error

    def record(self) -> dict[str, str]:
        """Returns what `config.json` says of the objects, as `{"model": "Net"}`."""
        describe = {
            "dataset": lambda x: x.name,
            "model": lambda x: type(x).__name__,
            "method": lambda x: x.name or type(x).__name__,
            "gradient": lambda x: x.name,
            "optimizer": _optimizer_name,
            "loss": loss_name,
        }
        given = {kind: getattr(self, kind) for kind in KINDS}
        return {
            kind: f"{describe[kind](value)} (given)"
            for kind, value in given.items()
            if value is not None
        }

    def labels(self, config: TrainConfig) -> dict[str, str]:
        """Returns the name of each part of a run in messages."""
        named = {kind: getattr(config, kind) for kind in KINDS if kind != "loss"}
        return named | self.record()


def loss_name(loss: Loss) -> str:
    """Returns the name of a loss: of the function, or of the type of its object.

    >>> loss_name(functools.partial(optax.huber_loss, delta=0.5))
    'huber_loss'
    """
    while isinstance(loss, functools.partial):
        loss = loss.func
    is_named = hasattr(loss, "__qualname__")
    return of_value(loss) if is_named else type(loss).__name__


def _optimizer_name(optimizer: optax.GradientTransformation) -> str:
    """Returns the states of an optimizer, as "ScaleByAdam, ScaleBySchedule"."""
    try:
        state = jax.eval_shape(optimizer.init, jnp.zeros(()))
    except (TypeError, ValueError, KeyError, AttributeError):
        # A mask or label tree that fits the parameters of one model alone.
        return type(optimizer).__name__
    names: list[str] = []

    def collect(node: object) -> bool:
        name = type(node).__name__
        if hasattr(node, "_fields") and name != "EmptyState":
            names.append(name.removesuffix("State"))
        return False

    jax.tree.leaves(state, is_leaf=collect)
    return ", ".join(names) or "stateless"


def check_recorded(
    stored: Mapping[str, str] | None, given: Mapping[str, str], folder: object
) -> None:
    """Raises `RunError` unless the objects of a stored run are given again.

    Args:
      stored: The "objects" of its `config.json`; None in older runs, which have none.
      given: What `Objects.record` returns now.
      folder: The run's folder, for the message.
    """
    if stored is None:
        return
    for kind in KINDS:
        old, new = stored.get(kind), given.get(kind)
        if old == new:
            continue
        if old is None:
            raise RunError(
                f"the run in {folder} uses the {kind} that its configuration names, "
                f"and {kind}= is {new}. Leave it out, or choose another --out."
            )
        now = f"is {new}" if new else "is missing"
        raise RunError(
            f"the run in {folder} was made with an object for its {kind}: {old}; here "
            f"{kind}= {now}. Pass the same object again, or choose another --out."
        )


def check_loaded(
    stored: Mapping[str, str] | None, given: Mapping[str, str], folder: object
) -> None:
    """Raises `RunError` if an object that a finished run was given is missing.

    Other examples may be given, and another class may define the same model.

    Args:
      stored: The "objects" of its `config.json`; None in older runs.
      given: What `Objects.record` returns now.
      folder: The run's folder, for the message.
    """
    stored = stored or {}
    now = {kind: name for kind, name in given.items() if kind in stored}
    now |= {kind: stored[kind] for kind in ("dataset", "model") if kind in now}
    check_recorded(stored, now, folder)
