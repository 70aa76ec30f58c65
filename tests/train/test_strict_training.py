"""A step and an evaluation under JAX's strict promotion of dtypes and without ranks.

Traced alone, run by run, as in `tests/models/test_strict_models.py`. SGD and float32,
since Optax's AdamW and Flax's norms in bfloat16 mix dtypes themselves.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run

from zosam_jax.train import accuracy
from zosam_jax.train import batch as batches
from zosam_jax.train import step as steps

AUGMENT = ("crop=1", "flip", "randaugment", "cutout=2", "erasing", "mixup", "cutmix")
EVERYTHING = {
    "augment": AUGMENT,
    "label_smoothing": 0.1,
    "ema": 0.9,
    "accumulate_steps": 2,
    "clip_norm": 1.0,
    "decay": "kernels",
    "warmup_epochs": 0.5,
}
RUNS = {
    "usual": {},
    "everything": EVERYTHING,
    "resized": {"augment": ("resized_crop", "cutmix"), "schedule": "step"},
    "grasp": {"method": "grasp", "augment": ("mixup=0.4",), "schedule": "constant"},
    "ssam": {"gradient": "ssam", "gradient_options": ("num_examples=2",)},
    "ssam, dynamic": {
        "gradient": "ssam",
        "gradient_options": ("mask=dynamic", "grow=gradient"),
    },
    "gsam": {"gradient": "gsam", "gradient_options": ("rho_min=0.01",)},
    "wsam": {"gradient": "wsam", "gradient_options": ("decouple=True",)}
    | {"clip_norm": 1.0},
}


LABELS = {
    "multilabel": lambda labels: np.eye(4, dtype=bool)[labels],
    "regression": lambda labels: np.eye(4)[labels],
}


@pytest.mark.parametrize("name", [*RUNS, *LABELS])
def test_it_mixes_neither_dtypes_nor_ranks(name, tmp_path):
    data, fields = tiny_run.dataset(), RUNS.get(name, {"augment": ("mixup=0.5",)})
    if name in LABELS:
        train, test = map(LABELS[name], (data.train_labels, data.test_labels))
        data = dataclasses.replace(data, train_labels=train, test_labels=test)
    experiment = tiny_run.prepare(tiny_run.config(tmp_path, **fields), data).experiment
    dataset = experiment.dataset
    examples = dataset.train_images, dataset.train_labels

    def passes(images, labels):
        first = jnp.int32(0)
        order = batches.epoch_order(experiment, first)
        raw = batches.gather(experiment, first, order, images, labels)
        state = steps.init(experiment, *raw)
        state = steps.train_step(experiment, state, *raw, None)
        totals = accuracy.no_totals(experiment)
        network = steps.evaluated(state)
        return accuracy.add_batch(experiment, *network, *raw, jnp.int32(5), totals)

    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        found = jax.eval_shape(passes, *examples)
    counts = jnp.float32 if name == "regression" else jnp.int32
    assert (found.loss.dtype, found.correct.dtype) == (jnp.float32, counts)
