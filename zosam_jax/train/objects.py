"""Objects that a user gives in place of what the configuration names."""

import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from zosam_jax import _check
from zosam_jax._calls import of_value
from zosam_jax.data import Dataset, DatasetError, Streamed
from zosam_jax.gradients.transformation import GradientEstimator
from zosam_jax.runs.code_names import check_code
from zosam_jax.runs.config import GRADIENT_FIELDS, METHOD_FIELDS, TrainConfig
from zosam_jax.runs.errors import RunError
from zosam_jax.sparsity import SparseMethod
from zosam_jax.train import constructors
from zosam_jax.train.experiment import Loss, Model

KINDS = ("dataset", "model", "method", "gradient", "optimizer", "loss")


GivenData = Dataset | Streamed | Callable[[], Dataset | Streamed]
GivenMethod = SparseMethod | Callable[..., SparseMethod]
GivenGradient = GradientEstimator | Callable[..., GradientEstimator]
GivenOptimizer = (
    optax.GradientTransformation | Callable[..., optax.GradientTransformation]
)


FIELDS = {
    "model": ("width", "model_options"),
    "method": ("sparsity", "dense", *METHOD_FIELDS[1:]),
    "gradient": GRADIENT_FIELDS,
    "optimizer": (
        "learning_rate",
        "momentum",
        "weight_decay",
        "nesterov",
        "decay",
        "schedule",
        "milestones",
        "final_learning_rate",
        "warmup_epochs",
        "clip_norm",
    ),
}
"""The fields that describe a part of a run: an object in its place does not read them,
but its constructor does."""


class Objects(NamedTuple):
    """The given objects, or their constructors; None where the name applies.

    Attributes:
      dataset: Training and test examples, or a function without arguments.
      model: Linen module, called with `(inputs, train=...)`, or its class. That gets
        `num_classes`, `image_size`, `width` and `dtype`, if it has parameters for them,
        and `model_options`.
      method: Sparse method, made for the steps of this run, or a constructor. That gets
        the fields of the configuration, as those of `zs.sparsity`, and
        `method_options`.
      gradient: Gradient estimator, or a constructor. That gets `rho` and
        `gradient_options`. The trainer sets `has_aux`, `aux_like` and `seed`.
      optimizer: Update rule with its learning rate and weight decay, such as
        `optax.adam(1e-3)`, or a constructor, such as `optax.adam`; see
        `optimizers.update_rule`.
      loss: `(outputs, labels) -> losses`, one for each example.
    """

    dataset: GivenData | None = None
    model: Model | None = None
    method: GivenMethod | None = None
    gradient: GivenGradient | None = None
    optimizer: GivenOptimizer | None = None
    loss: Loss | None = None

    def made(self) -> "Objects":
        """Returns them checked, with the data set itself in place of a function.

        Raises:
          RunError: An object has another type than its part needs, or the function
            raises an error.
          zosam_jax.data.DatasetError: The function raises it.
        """
        found, make = self, self.dataset
        try:
            found.check_types()
            if constructors.is_one(make):
                dataset = constructors.call("dataset", make, passes=(DatasetError,))
                if dataset is None:
                    raise ValueError(
                        f"dataset={_name(make, str)} returned None, and must return "
                        "a zosam_jax.data.Dataset."
                    )
                found = self._replace(dataset=dataset)
                found.check_types()
        except ValueError as error:
            raise RunError(str(error)) from error
        return found

    def check_types(self) -> None:
        """Raises `ValueError` for objects of another type than their part needs."""
        for kind, wanted, example in (
            ("gradient", GradientEstimator, "zs.zosam(rho=0.1)"),
            ("method", SparseMethod, "zs.sparsity.rigl(0.9, total_steps)"),
            ("optimizer", optax.GradientTransformation, "optax.adam(1e-3)"),
        ):
            value = getattr(self, kind)
            if value is None or isinstance(value, wanted) or constructors.is_one(value):
                continue
            raise ValueError(
                f"{kind}= must be a {wanted.__name__}, as {example}, or a function "
                f"that returns one; got {type(value).__name__}."
            )
        is_data = isinstance(self.dataset, Dataset | Streamed | None)
        if not (is_data or constructors.is_one(self.dataset)):
            raise ValueError(
                "dataset= must be a zosam_jax.data.Dataset, or a function that returns "
                f"one; got {type(self.dataset).__name__}."
            )
        if self.model is not None and not constructors.is_one(self.model):
            check_model(self.model)
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
            kind: f"{_name(value, describe[kind])} (given)"
            for kind, value in given.items()
            if value is not None
        }

    def labels(self, config: TrainConfig) -> dict[str, str]:
        """Returns the name of each part of a run in messages."""
        named = {kind: getattr(config, kind) for kind in KINDS if kind != "loss"}
        return named | self.record()


def check_model(model: object) -> None:
    """Raises `ValueError` unless an object has the functions of a Linen module."""
    if not (hasattr(model, "apply") and hasattr(model, "init")):
        raise ValueError(
            "model= must be a Linen module, called with (inputs, train=...), or its "
            f"class; got {type(model).__name__}."
        )


def check_named(config: TrainConfig, given: Collection[str] = ()) -> None:
    """Raises `ValueError` if a configuration names code of the user's own.

    Args:
      config: The configuration.
      given: The parts that objects take the place of.
    """
    for kind in KINDS:
        if kind not in (*given, "loss"):
            check_code(kind, getattr(config, kind))


def _name(value: Any, describe: Callable[[Any], str]) -> str:
    if isinstance(value, type):
        return value.__name__
    return of_value(value) if constructors.is_one(value) else describe(value)


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
        now = f"{new} is" if new else "none is"
        raise RunError(
            f"the run in {folder} was made with an object as its {kind}, {old}, and "
            f"{now} given here. Pass the same object again (on a command line, as "
            f"--{kind} MODULE:NAME), or choose another --out."
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
