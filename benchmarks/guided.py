"""Measures how guided ZO-SAM and its controls align with the gradient, on digits.

    python -m benchmarks.guided

A sparse MLP trains with each rule, on its own trajectory, at two learning rates and
several seeds. In every step after the first `WARMUP` the perturbation is compared with
the gradient of the same batch at the same weights: their cosine, and whether the
perturbation points downhill. All seeds and rates of a rule are one program. The result
file `alignment-digits.json` is of an earlier version, whose slopes did not age, and has
running means of the slopes too. `guided-slopes-digits.json` has what came after it.
"""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import zosam_jax as zs
from benchmarks import command_line, record
from benchmarks.alignment import running_mean
from zosam_jax import data, models
from zosam_jax._types import PyTree

RHO, SPARSITY, MOMENTUM, BATCH, WARMUP = 0.1, 0.9, 0.9, 64, 20


def _guided(**options: Any) -> Callable[..., zs.GradientEstimator]:
    return functools.partial(zs.zosam, directions="guided", **options)


RULES: Mapping[str, Callable[..., zs.GradientEstimator]] = {
    "SAM": zs.sam,
    "ZO-SAM, m=1": zs.zosam,
    "guided, m=1, aged slopes": _guided(),
    "guided, m=1, aged slopes, exploration": _guided(exploration=0.05),
    "guided, m=2, no exploration": _guided(num_directions=2),
    "guided, slopes of two halves": _guided(disjoint=True),
    "no probe: mean of gradients, 0.9": functools.partial(running_mean, 0.9),
    "no probe: mean of gradients, 0.5": functools.partial(running_mean, 0.5),
    "no probe: last gradient (S2-SAM)": zs.s2sam,
}


def measure(
    make: Callable[..., zs.GradientEstimator], lanes: PyTree, steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the cosine in every step, and the loss, both `[lanes, steps]`.

    Args:
      make: Constructor of the gradient, with the options that all rules share.
      lanes: `(parameters, seed, learning rate)`, stacked.
      steps: Number of optimizer steps.
    """
    found = data.load("digits", None)
    assert isinstance(found, data.Dataset)
    model = models.create("mlp", num_classes=found.num_classes)
    images = (jnp.asarray(found.train_images) / 255.0 - found.mean[0]) / found.std[0]
    labels = jnp.asarray(found.train_labels)

    def train(params: Any, seed: jax.Array, rate: jax.Array) -> Any:
        estimator = make(rho=RHO, has_aux=True, aux_from="descent", aux_like=params)
        tx = zs.sparsify(
            optax.sgd(rate, MOMENTUM),
            zs.sparsity.static(SPARSITY, "random", budget="erk", seed=seed),
            gradient=estimator,
        )
        state = tx.init(params)
        masks = zs.sparsity.masks(state)

        def step(carry: Any, i: jax.Array) -> Any:
            params, state = carry
            key = jax.random.fold_in(jax.random.key(seed), i)
            rows = jax.random.choice(key, len(labels), (BATCH,), replace=False)

            def each(p: Any, part: Any = slice(None)) -> jax.Array:
                own = rows[part]
                logits: Any = model.apply({"params": p}, images[own], train=True)
                return optax.softmax_cross_entropy_with_integer_labels(
                    logits, labels[own]
                )

            def losses(p: Any, examples: Any = None) -> Any:
                return each(p, slice(None) if examples is None else examples), p

            def loss(p: Any) -> Any:
                return each(p).mean(), p

            value_fn = losses if estimator.by_example else loss
            (value, _), grad = jax.value_and_grad(loss, has_aux=True)(params)
            updates, state = tx.update(grad, state, params, value_fn=value_fn)
            eps = zs.tree.subtract(zs.estimate(state).aux, params)
            cosine = zs.tree.cosine(eps, zs.tree.mask(grad, masks))
            return (optax.apply_updates(params, updates), state), (cosine, value)

        start = zs.sparsity.apply_masks(params, masks), state
        return jax.lax.scan(step, start, jnp.arange(steps))[1]

    return jax.tree.map(np.asarray, jax.jit(jax.vmap(train))(*lanes))


def summarize(name: str, rate: float, cosines: np.ndarray) -> dict[str, Any]:
    """Returns a row: means over steps, and their mean and deviation over seeds.

    Args:
      name: Label of the rule.
      rate: Learning rate.
      cosines: `[seeds, steps]`.
    """
    late = cosines[:, WARMUP:]
    cosine, downhill = late.mean(1), (late < 0).mean(1)
    return {
        "rule": name,
        "learning_rate": rate,
        "cosine": float(cosine.mean()),
        "cosine_std": float(cosine.std(ddof=1)),
        "downhill": float(downhill.mean()),
        "downhill_std": float(downhill.std(ddof=1)),
        "cosine_by_seed": [round(float(x), 4) for x in cosine],
        "downhill_by_seed": [round(float(x), 4) for x in downhill],
    }


def main() -> None:
    """Runs the benchmark and writes its results."""
    parser = command_line.parser(__doc__)
    parser.add_argument(
        "--steps", metavar="N", type=int, default=600, help="training steps"
    )
    parser.add_argument(
        "--seeds", metavar="N", type=int, default=6, help="number of seeds, from 0"
    )
    parser.add_argument(
        "--rates",
        metavar="RATE",
        type=float,
        nargs="+",
        default=[0.1, 0.3],
        help="learning rates",
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        type=Path,
        default=Path("benchmarks/results/guided-slopes-digits.json"),
        help="result file",
    )
    parser.add_argument(
        "--rules",
        metavar="LABEL",
        nargs="+",
        default=list(RULES),
        choices=list(RULES),
        help=command_line.listed("rules", list(RULES)),
    )
    args = parser.parse_args()
    found = data.load("digits", None)
    assert isinstance(found, data.Dataset)
    model = models.create("mlp", num_classes=found.num_classes)
    lanes = [
        (
            models.initialize(model, jax.random.key(seed), found.image_shape)[0],
            jnp.uint32(seed),
            jnp.float32(rate),
        )
        for rate in args.rates
        for seed in range(args.seeds)
    ]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *lanes)
    rows = []
    for name in args.rules:
        cosines, losses = measure(RULES[name], stacked, args.steps)
        for i, rate in enumerate(args.rates):
            own = slice(i * args.seeds, (i + 1) * args.seeds)
            row = summarize(name, rate, cosines[own])
            rows.append(row | {"last_loss": float(losses[own, -50:].mean())})
            shown = f"{row['cosine']:.3f}, downhill {row['downhill']:.1%}"
            print(f"{name}, rate {rate}: cosine {shown}", flush=True)
    settings = {k: v for k, v in vars(args).items() if k != "out"}
    settings |= {"model": "mlp", "rho": RHO, "sparsity": SPARSITY, "batch": BATCH}
    settings |= {"momentum": MOMENTUM, "warmup": WARMUP}
    record.write(args.out, {"settings": settings, "rules": rows})


if __name__ == "__main__":
    main()
