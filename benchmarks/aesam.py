"""Measures the fraction of SAM steps in trainings with AE-SAM, on digits.

    python -m benchmarks.aesam

A dense MLP trains on the digits, a new batch in every step. AE-SAM takes a SAM step
where the gradient norm is large for its running statistics, with a threshold that falls
during the training. All seeds are one program.
"""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import zosam_jax as zs
from benchmarks import command_line, record
from zosam_jax import data, models

RHO, RATE, MOMENTUM, BATCH = 0.05, 0.1, 0.9, 64
RESULTS = Path("benchmarks/results/aesam-digits.json")


def sam_steps(seeds: int, steps: int, model: Any, found: data.Dataset) -> np.ndarray:
    """Returns whether each step was a SAM step, bool `[seeds, steps]`.

    Args:
      seeds: Number of trainings.
      steps: Optimizer steps of each, which the threshold follows.
      model: The network.
      found: The examples.
    """
    images = (jnp.asarray(found.train_images) / 255.0 - found.mean[0]) / found.std[0]
    labels = jnp.asarray(found.train_labels)
    tx = optax.chain(zs.aesam(RHO, total_steps=steps), optax.sgd(RATE, MOMENTUM))

    def train(params: Any, seed: jax.Array) -> jax.Array:
        def step(carry: Any, i: jax.Array) -> Any:
            params, state = carry
            key = jax.random.fold_in(jax.random.key(seed), i)
            rows = jax.random.choice(key, len(labels), (BATCH,), replace=False)

            def loss(p: Any) -> jax.Array:
                logits: Any = model.apply({"params": p}, images[rows], train=True)
                return optax.softmax_cross_entropy_with_integer_labels(
                    logits, labels[rows]
                ).mean()

            nothing: Any = None
            updates, state = tx.update(nothing, state, params, value_fn=loss)
            backward = zs.estimate(state).info.backward_evaluations
            return (optax.apply_updates(params, updates), state), backward > 1

        return jax.lax.scan(step, (params, tx.init(params)), jnp.arange(steps))[1]

    starts = [
        models.initialize(model, jax.random.key(seed), found.image_shape)[0]
        for seed in range(seeds)
    ]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *starts)
    numbers = jnp.arange(seeds, dtype=jnp.uint32)
    return np.asarray(jax.jit(jax.vmap(train))(stacked, numbers))


def share() -> float:
    """Returns the fraction of SAM steps that was measured."""
    return json.loads((command_line.ROOT / RESULTS).read_text())["sam_steps"]


def main() -> None:
    """Runs the benchmark and writes its results."""
    parser = command_line.parser(__doc__)
    parser.add_argument(
        "--steps", metavar="N", type=int, default=1_000, help="training steps"
    )
    parser.add_argument(
        "--seeds", metavar="N", type=int, default=5, help="number of seeds, from 0"
    )
    parser.add_argument(
        "--out", metavar="FILE", type=Path, default=RESULTS, help="result file"
    )
    args = parser.parse_args()
    found = data.load("digits", None)
    assert isinstance(found, data.Dataset)
    model = models.create("mlp", num_classes=found.num_classes)
    taken = sam_steps(args.seeds, args.steps, model, found)
    thirds = [float(part.mean()) for part in np.array_split(taken, 3, axis=1)]
    settings = {"steps": args.steps, "model": "mlp", "rho": RHO, "batch": BATCH}
    settings |= {"learning_rate": RATE, "momentum": MOMENTUM}
    row = {
        "sam_steps": float(taken.mean()),
        "by_seed": [round(float(x), 4) for x in taken.mean(1)],
        "by_third": [round(x, 4) for x in thirds],
    }
    print(f"SAM steps: {row['sam_steps']:.3f}; in thirds {row['by_third']}")
    record.write(args.out, {"settings": settings, **row})


if __name__ == "__main__":
    main()
