"""Compares this backend with NumPy, in each precision of its matrix products.

    python -m benchmarks.correctness --out runs/correctness.json

An accelerator multiplies float32 matrices with fewer bits unless told otherwise: an
NVIDIA GPU in TF32, a TPU in bfloat16. The precisions are those of
`jax.default_matmul_precision`; `bfloat16` also stores the parameters in bfloat16. An
error is the largest difference over the largest expected value, and 0 where the result
must be exact. Bounds are a few units of the rounding of the precision.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import zosam_jax as zs
from benchmarks import record
from zosam_jax import tree
from zosam_jax.selection import select

WIDTH, CLASSES = 256, 10
KEY = jax.random.key(3)
RHO = 0.3


class Precision(NamedTuple):
    """How a comparison computes.

    Attributes:
      matmul: Value of `jax.default_matmul_precision`.
      dtype: Dtype of the parameters.
      bound: Largest error that is right.
    """

    matmul: str
    dtype: Any
    bound: float


PRECISIONS = {
    "float32": Precision("highest", jnp.float32, 1e-4),
    "default": Precision("default", jnp.float32, 2e-2),
    "bfloat16": Precision("default", jnp.bfloat16, 6e-2),
}

Comparison = Callable[[Any], float]
"""`dtype -> error`."""


class Quadratic:
    """w'Aw / 2 + b'w, whose gradient Aw + b NumPy knows in float64."""

    def __init__(self, dtype: Any):
        rng = np.random.default_rng(0)
        root = rng.normal(size=(WIDTH, WIDTH)) / WIDTH**0.5 / 4
        # Rounded first, so that both sides have the same numbers.
        rounded = [
            jnp.asarray(x, dtype)
            for x in (root @ root.T + np.eye(WIDTH), *rng.normal(size=(2, WIDTH)))
        ]
        self.held = rounded[:2]
        self.params = {"w": rounded[2]}
        self.a, self.b, self.w = (np.asarray(x, np.float64) for x in rounded)

    def loss(self, params: Any) -> jax.Array:
        """Returns the loss as a float32 scalar."""
        a, b = self.held
        w = params["w"]
        return (w @ (a @ w) / 2 + b @ w).astype(jnp.float32)

    def gradient(self, w: np.ndarray) -> np.ndarray:
        """Returns the gradient in float64."""
        return self.a @ w + self.b


def _error(found: Any, expected: np.ndarray) -> float:
    difference = np.abs(np.asarray(found, np.float64) - expected)
    return float(difference.max() / np.abs(expected).max())


def _direction(params: Any) -> np.ndarray:
    drawn = tree.normal_like(jax.random.fold_in(KEY, 0), params)
    return np.asarray(drawn["w"], np.float64)


def zosam(dtype: Any) -> float:
    """The gradient after a signed step along the one random direction."""
    problem = Quadratic(dtype)
    step = jax.jit(lambda p: zs.zosam_gradient(problem.loss, p, KEY, RHO, delta=0.1))
    u = _direction(problem.params)
    sign = np.sign(u @ problem.gradient(problem.w))
    moved = problem.w + RHO * sign * u / np.linalg.norm(u)
    return _error(step(problem.params).grad["w"], problem.gradient(moved))


def sam(dtype: Any) -> float:
    """The gradient after a step along the gradient."""
    problem = Quadratic(dtype)
    step = jax.jit(lambda p: zs.sam_gradient(problem.loss, p, KEY, RHO))
    uphill = problem.gradient(problem.w)
    moved = problem.w + RHO * uphill / np.linalg.norm(uphill)
    return _error(step(problem.params).grad["w"], problem.gradient(moved))


def finite_difference(dtype: Any) -> float:
    """The measured slope along a direction, and the product with the gradient."""
    problem = Quadratic(dtype)
    step = jax.jit(lambda p: zs.zosam_gradient(problem.loss, p, KEY, RHO, delta=0.1))
    u = _direction(problem.params)
    slope = abs(u @ problem.gradient(problem.w))
    # `direction_norm` is |slope| |u|.
    found = float(step(problem.params).info.direction_norm) / np.linalg.norm(u)
    scale = np.linalg.norm(u) * np.linalg.norm(problem.gradient(problem.w))
    return float(abs(found - slope) / scale)


def _network(dtype: Any) -> tuple[Any, Callable[[Any], jax.Array]]:
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(64, 8, 8, 16)), dtype)
    labels = jnp.asarray(rng.integers(CLASSES, size=64))
    params = {
        "conv": jnp.asarray(rng.normal(size=(3, 3, 16, 32)) / 12, dtype),
        "head": jnp.asarray(rng.normal(size=(32, CLASSES)) / 6, dtype),
    }

    def loss(params: Any) -> jax.Array:
        maps = jax.lax.conv_general_dilated(
            images,
            params["conv"],
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        logits = jnp.tanh(maps).mean((1, 2)) @ params["head"]
        losses = optax.softmax_cross_entropy_with_integer_labels(
            logits.astype(jnp.float32), labels
        )
        return losses.mean()

    return params, loss


def vmapped_probes(dtype: Any) -> float:
    """Probes under `vmap`, and one after another, of a convolutional network."""
    params, loss = _network(dtype)

    def step(chunk: int | None) -> np.ndarray:
        estimate = jax.jit(
            lambda p: zs.zosam_gradient(
                loss, p, KEY, RHO, delta=0.1, num_directions=4, chunk_size=chunk
            )
        )(params)
        leaves = jax.tree.leaves(estimate.grad)
        return np.concatenate([np.asarray(x, np.float64).ravel() for x in leaves])

    return _error(step(4), step(None))


def draws(dtype: Any) -> float:
    """Random directions here, and on the CPU, from the same key."""
    like = {"w": jnp.zeros((WIDTH, WIDTH), dtype)}
    here = jax.jit(lambda: tree.normal_like(KEY, like)["w"])()
    with jax.default_device(jax.devices("cpu")[0]):
        there = jax.jit(lambda: tree.normal_like(KEY, like)["w"])()
    return _error(here, np.asarray(there, np.float64))


def selection(dtype: Any) -> float:
    """The share of wrong choices among scores with many ties."""
    rng = np.random.default_rng(0)
    scores = jnp.asarray(rng.integers(0, 50, 100_000) / 8, dtype)
    candidates = rng.random(scores.size) < 0.7
    count = 20_000
    (found,) = jax.jit(select)([scores], [jnp.asarray(candidates)], [count])
    expected = _highest(np.asarray(scores, float), candidates, count)
    return float(np.mean(np.asarray(found) != expected))


def topology(dtype: Any) -> float:
    """The share of wrong masks after an update of RigL, which NumPy repeats."""
    rng = np.random.default_rng(0)
    params = {"w": jnp.asarray(rng.normal(size=(WIDTH, WIDTH)), dtype)}
    grads = {"w": jnp.asarray(rng.normal(size=(WIDTH, WIDTH)), dtype)}
    half = lambda _: jnp.float32(0.5)  # noqa: E731
    method = zs.sparsity.rigl(0.9, 100, interval=1, drop_fraction=half)
    tx = zs.sparsify(optax.sgd(0.0), method)
    state = tx.init(params)
    masks = zs.sparsity.masks(state)
    params, update = zs.sparsity.apply_masks(params, masks), jax.jit(tx.update)
    for _ in range(2):  # Step 0 does not change the masks.
        _, state = update(grads, state, params)
    live = np.asarray(masks["w"]).ravel()
    weights, slopes = (
        np.abs(np.asarray(x["w"], float)).ravel() for x in (params, grads)
    )
    kept = _highest(weights, live, live.sum() - live.sum() // 2)
    expected = kept | _highest(slopes, ~kept, live.sum() // 2)
    found = np.asarray(zs.sparsity.masks(state)["w"]).ravel()
    return float(np.mean(found != expected))


def _highest(scores: np.ndarray, candidates: np.ndarray, count: int) -> np.ndarray:
    """Returns a mask of the highest candidates; ties go to the lower index."""
    chosen = np.zeros(scores.size, bool)
    ranked = np.argsort(-np.where(candidates, scores, -np.inf), kind="stable")
    chosen[ranked[:count]] = True
    return chosen


# A row is exact if its error must be 0 in every precision.
COMPARISONS: dict[str, tuple[Comparison, bool]] = {
    "ZO-SAM, against NumPy": (zosam, False),
    "SAM, against NumPy": (sam, False),
    "finite difference, against the gradient": (finite_difference, False),
    "vmapped probes, against sequential ones": (vmapped_probes, False),
    "random directions, against the CPU": (draws, False),
    "selection with ties, against NumPy": (selection, True),
    "topology update of RigL, against NumPy": (topology, True),
}


def compare() -> list[dict[str, Any]]:
    """Returns a row for each comparison and precision."""
    rows = []
    for name, (comparison, is_exact) in COMPARISONS.items():
        for label, precision in PRECISIONS.items():
            with jax.default_matmul_precision(precision.matmul):
                error = comparison(precision.dtype)
            bound = 0.0 if is_exact else precision.bound
            is_right = error <= bound  # False for NaN.
            print(f"{name}, {label}: {error:.2g} {'' if is_right else 'WRONG'}")
            rows.append(
                {
                    "comparison": name,
                    "precision": label,
                    "error": error,
                    "bound": bound,
                    "right": is_right,
                }
            )
    return rows


def main() -> None:
    """Compares, writes the result and exits with 1 if an error is above its bound."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/correctness.json"))
    args = parser.parse_args()
    rows = compare()
    precisions = {k: [p.matmul, jnp.dtype(p.dtype).name] for k, p in PRECISIONS.items()}
    record.write(args.out, {"precisions": precisions, "rows": rows})
    sys.exit(not all(row["right"] for row in rows))


if __name__ == "__main__":
    main()
