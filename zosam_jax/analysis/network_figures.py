"""The figures of one trained network, by the instruments of this package."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from zosam_jax import tree
from zosam_jax._types import Masks, Params, PyTree
from zosam_jax.analysis import errors, hessian, landscape, masks, noise
from zosam_jax.analysis import sharpness as sharpness_
from zosam_jax.analysis.objective import BatchLoss
from zosam_jax.analysis.run_examples import Shown
from zosam_jax.gradients.transformation import GradientEstimator
from zosam_jax.models import feature_maps
from zosam_jax.runs.files import JSON
from zosam_jax.train.experiment import Loss, Model

T = TypeVar("T")

EIGENVALUES = 5
"""Number of largest eigenvalues that are computed."""

ADAPTIVE = 10.0
"""The adaptive radius, relative to the plain one, as in ASAM's paper."""

Report = Callable[[float], None]
"""Told the share of a part that is done, from 0 to 1."""


class Network(NamedTuple):
    """A trained network, the examples to analyse it on, and the settings.

    Attributes:
      model: Its Linen module.
      value_fn: `(params, batch) -> loss`.
      params: Its parameters.
      model_state: Its BatchNorm statistics, or {}.
      masks: Its mask tree; None if all leaves are dense.
      batches: Batches, `(inputs, targets, model_state)`.
      task: The task of its labels.
      score: What its accuracy is called.
      tests: Yields the test examples as `(batch, labels)`, with label -1 (NaN in place
        of values) where a batch was filled up.
      shown: Test images whose features are shown; None where examples are no images.
      layers: Patterns of the layers that are shown; none: some of the outermost.
      gradient: The gradient of its training; None if it cannot be analysed.
      step: Number of its optimizer steps.
      key: PRNG key of all draws.
      rho: Radius of the sharpness.
      points: Number of landscape points along each direction.
      extent: The landscape goes from -extent to extent.
      directions: "random", filter-normalised; "eigenvectors"; or "runs", the plane
        through three runs, which is no plane of one network.
    """

    model: Model
    value_fn: BatchLoss
    params: Params
    model_state: PyTree
    masks: Masks | None
    batches: list[PyTree]
    task: str
    score: str
    tests: Callable[[], Iterator[tuple[PyTree, np.ndarray]]]
    shown: Shown | None
    layers: tuple[str, ...]
    gradient: GradientEstimator | None
    step: int
    key: jax.Array
    rho: float
    points: int
    extent: float
    directions: str

    @property
    def on(self) -> dict[str, Any]:
        """Where the instruments look."""
        return {"masks": self.masks, "batches": self.batches}


def _kept(make: Callable[..., T]) -> Callable[..., T]:
    """`functools.cache`, where what is made for a model without a hash is not kept."""
    cached = functools.cache(make)

    @functools.wraps(make)
    def wrapped(model: Model, *others: Any) -> T:
        try:
            hash(model)
        except TypeError:  # It has a list or a dict, as the `widths` of a cut network.
            return make(model, *others)
        return cached(model, *others)

    return wrapped


@_kept
def mean_loss(model: Model, loss: Loss) -> BatchLoss:
    """Returns the mean loss of a model, one function for equal models and losses.

    It is `(params, (inputs, targets, model_state)) -> loss`, with BatchNorm at its
    running statistics. Called with `examples=`, it returns the losses of examples.

    Args:
      model: Linen module.
      loss: The loss of every example.
    """

    def value_fn(params: Params, batch: PyTree, **asked: jax.Array | None) -> jax.Array:
        inputs, targets, model_state = batch
        examples = asked.get("examples")
        if examples is not None:
            inputs, targets = inputs[examples], targets[examples]
        logits = model.apply({"params": params, **model_state}, inputs, train=False)
        losses = loss(logits, targets)
        return losses if asked else jnp.mean(losses)

    return value_fn


@_kept
def logits_of(model: Model) -> errors.Logits:
    """Returns the logits of a model, one function for equal models.

    It is `(params, (inputs, targets, model_state)) -> logits`.

    Args:
      model: Linen module.
    """

    def logits_fn(params: Params, batch: PyTree) -> jax.Array:
        inputs, _, model_state = batch
        return model.apply({"params": params, **model_state}, inputs, train=False)

    return logits_fn


def curvature(network: Network, report: Report) -> tuple[JSON, dict[str, np.ndarray]]:
    """Returns eigenvalues, trace and spectral density, and their arrays."""
    n, on = network, network.on
    at = (n.value_fn, n.params, n.key)
    top = hessian.hessian_eigenvalues(*at, k=EIGENVALUES, **on)
    report(0.2)
    low = hessian.hessian_eigenvalues(*at, which="smallest", **on)
    report(0.4)
    by_batch = [
        hessian.hessian_eigenvalues(*at, masks=n.masks, batches=[batch]).values[0]
        for batch in n.batches
    ]
    report(0.5)
    trace = hessian.hessian_trace(*at, products=30, **on)
    report(0.7)
    density = hessian.spectral_density(*at, steps=40, **on)
    figures = {
        "largest": top.values.tolist(),
        "residuals": top.residuals.tolist(),
        "smallest": float(low.values[0]),
        "largest_by_batch": [float(x) for x in by_batch],
        "trace": trace.value,
        "trace_error": trace.error,
        "mean": trace.value / trace.dimension,
        "density_width": density.width,
    }
    arrays = {
        "grid": density.grid,
        "density": density.density,
        "nodes": density.nodes,
        "weights": density.weights,
    }
    return figures, arrays


def sharpness_figures(
    network: Network, report: Report
) -> tuple[JSON, dict[str, np.ndarray]]:
    """Returns worst-case and average sharpness, plain and adaptive."""
    n, figures = network, {}
    for number, (name, factor) in enumerate((("plain", 1.0), ("adaptive", ADAPTIVE))):
        radius = {"rho": n.rho * factor, "adaptive": name == "adaptive"}
        worst = sharpness_.worst_case_sharpness(n.value_fn, n.params, **radius, **n.on)
        report(number / 2 + 0.25)
        average = sharpness_.average_sharpness(
            n.value_fn, n.params, n.key, **radius, **n.on
        )
        report(number / 2 + 0.5)
        figures[name] = {
            "rho": radius["rho"],
            "one_step": worst.one_step,
            "best": worst.best,
            "rises": worst.rises.tolist(),
            "average": average.mean,
            "average_error": average.error,
        }
    return figures, {}


def surface(network: Network, report: Report) -> tuple[JSON, dict[str, np.ndarray]]:
    """Returns Ra of a plane through the network, and the heights."""
    if network.directions == "runs":
        return {}, {}
    n, axis = network, np.linspace(-network.extent, network.extent, network.points)
    if n.directions == "eigenvectors":
        top = hessian.hessian_eigenvalues(n.value_fn, n.params, n.key, k=2, **n.on)
        directions = top.vectors
    else:
        keys = jax.random.split(n.key, 2)
        directions = [
            landscape.random_direction(keys[i], n.params, masks=n.masks)
            for i in range(2)
        ]
    found = landscape.loss_landscape(
        n.value_fn,
        n.params,
        directions,
        axes=(axis, axis),
        on_progress=lambda done, total: report(done / total),
        **n.on,
    )
    middle = n.points // 2
    figures = {
        "directions": n.directions,
        "extent": n.extent,
        "points": n.points,
        "roughness": _finite(found.roughness),
        "line_roughness": _finite(landscape.roughness(found.heights[:, middle])),
    }
    return figures, {"axis": axis, "heights": found.heights}


def gradient_noise(
    network: Network, report: Report
) -> tuple[JSON, dict[str, np.ndarray]]:
    """Returns the noise of the exact and the trained gradient, and of ZO estimates."""
    n, on = network, {"masks": network.masks, "step": network.step}
    plain = noise.gradient_noise(n.value_fn, n.params, n.batches, **on)
    figures: JSON = {"backprop": _noise(plain)}
    report(0.2)
    trained = figures["backprop"]
    if n.gradient is None:
        trained = figures["training"] = {}
    elif n.gradient.name != "backprop":
        own = noise.gradient_noise(
            n.value_fn, n.params, n.batches, estimator=n.gradient, **on
        )
        trained = {"gradient": n.gradient.name, **_noise(own)}
        figures["training"] = trained
    # Of the gradient that the optimizer of the training gets.
    figures["successive_cosine"] = trained.get("successive_cosine")
    report(0.4)
    rows = noise.zeroth_order_error(
        n.value_fn, n.params, n.key, samples=20, masks=n.masks, batches=n.batches[:1]
    )
    figures["zeroth_order"] = [row._asdict() for row in rows]
    return figures, {}


def _noise(found: noise.GradientNoise) -> JSON:
    return {name: _finite(value) for name, value in found._asdict().items()}


def mask_figures(
    network: Network, report: Report
) -> tuple[JSON, dict[str, np.ndarray]]:
    """Returns the density of every sparse leaf."""
    del report
    found = {} if network.masks is None else masks.layer_densities(network.masks)
    return {"densities": {path: d.density for path, d in found.items()}}, {}


def error_figures(
    network: Network, report: Report
) -> tuple[JSON, dict[str, np.ndarray]]:
    """Returns the errors of the task, and the answers to all test examples.

    Of classes, the accuracy on each; of labels, precision, recall, F1 and average
    precision of each, and their means; of values, RMSE, MAE and R² of each; of label
    maps, IoU, precision and recall of each class, and maps of the shown images.
    """
    del report
    n = network
    find, by_name = _ERRORS[n.task]
    found = find(logits_of(n.model), n.params, n.tests())
    arrays = found._asdict()
    figures = {
        "examples": len(next(iter(arrays.values()))),
        "score": n.score,
        **by_name(found),
    }
    if n.task == "segmentation" and n.shown is not None:
        batch = n.shown.inputs, n.shown.labels, n.model_state
        logits = logits_of(n.model)(n.params, batch)
        maps = {"predicted": np.asarray(jnp.argmax(logits, -1), np.int32)}
        arrays |= {"seen": n.shown.images, "true": n.shown.labels, **maps}
    return figures, arrays


def _by_class(found: errors.Errors) -> JSON:
    return {"accuracy": found.accuracy, "by_class": _listed(found.by_class)}


def _by_label(found: errors.LabelErrors) -> JSON:
    names = ("precision", "recall", "f1", "average_precision")
    each = {name: getattr(found, name) for name in names}
    # Labels without a figure do not count for its mean.
    known = {name: values[~np.isnan(values)] for name, values in each.items()}
    return {
        "accuracy": found.accuracy,
        **{n: float(x.mean()) if x.size else None for n, x in known.items()},
        "by_label": {
            "examples": found.labels.sum(0).tolist(),
            **{name: _listed(values) for name, values in each.items()},
        },
    }


def _by_region(found: errors.SegmentationErrors) -> JSON:
    each = {name: getattr(found, name) for name in ("iou", "precision", "recall")}
    return {
        "accuracy": found.mean_iou,
        "pixel_accuracy": found.pixel_accuracy,
        "by_region": {
            "pixels": found.confusion.sum(1).tolist(),
            **{name: _listed(values) for name, values in each.items()},
        },
    }


def _by_value(found: errors.ValueErrors) -> JSON:
    names = ("rmse", "mae", "r2")
    by_value = {name: _listed(getattr(found, name)) for name in names}
    return {"accuracy": _finite(found.total_r2), "by_value": by_value}


def _listed(values: np.ndarray) -> list[float | None]:
    return [_finite(float(x)) for x in values]


_ERRORS: dict[str, tuple[Callable[..., Any], Callable[[Any], JSON]]] = {
    "classification": (errors.classification_errors, _by_class),
    "multilabel": (errors.label_errors, _by_label),
    "regression": (errors.value_errors, _by_value),
    "segmentation": (errors.segmentation_errors, _by_region),
}
"""By task: the instrument, and its figures by class, label or value."""


def feature_figures(
    network: Network, report: Report
) -> tuple[JSON, dict[str, np.ndarray]]:
    """Returns the layers that are shown, and their features of the shown images."""
    n = network
    if n.shown is None:
        return {}, {}
    network_of = n.model, {"params": n.params, **n.model_state}, n.shown.inputs
    paths = feature_maps.feature_layers(*network_of)
    if not paths and not n.layers:
        return {}, {}
    layers = feature_maps.chosen(paths, n.layers)
    report(0.2)
    maps = feature_maps.feature_maps(*network_of, layers)
    arrays = {f"features/{layer}": found for layer, found in maps.items()}
    labels = [] if n.task == "segmentation" else n.shown.labels.tolist()
    figures = {"layers": layers, "labels": labels}
    return figures, {"images": n.shown.images, **arrays}


def is_sparse(found: Masks) -> bool:
    """Whether a mask tree has a sparse leaf."""
    return any(not tree.is_dense(m) for m in jax.tree.leaves(found))


def _finite(value: float) -> float | None:
    """A number as JSON has it; None for infinite ones and NaN."""
    return value if np.isfinite(value) else None


PARTS: dict[str, Callable[[Network, Report], tuple[JSON, dict[str, np.ndarray]]]] = {
    "curvature": curvature,
    "sharpness": sharpness_figures,
    "landscape": surface,
    "noise": gradient_noise,
    "masks": mask_figures,
    "errors": error_figures,
    "features": feature_figures,
}
"""`(network, report) -> (figures, arrays)`, by the part's name."""
