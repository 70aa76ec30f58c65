"""All that a recipe asks for at once, with every gradient and every sparse method.

Tracing a run finds what does not go together: shapes, keywords, states that change.
"""

import flax.linen as nn
import jax
import numpy as np
import pytest
import tiny_run

from zosam_jax.gradients.registry import METHODS
from zosam_jax.train import choices

EVERYTHING = {
    "optimizer": "adamw",
    "learning_rate": 1e-3,
    "decay": "kernels",
    "warmup_epochs": 1,
    "clip_norm": 1.0,
    "ema": 0.99,
    "label_smoothing": 0.1,
    "validation": 0.2,
    "augment": ("crop=1", "flip", "erasing=0.5", "mixup=0.8", "cutmix=1"),
}
OPTIONS = {
    "dynamic": {"method_options": ("drop=magnitude", "grow=saliency")},
    "nm": {"method_options": ("n=2", "m=4"), "sparsity": 0.5},
    "units": {"sparsity": 0.5},
}


class Net(nn.Module):
    """Convolution, normalisation, dropout, two dense layers."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(8, (3, 3), name="conv")(x)
        x = nn.BatchNorm(use_running_average=not train, name="norm")(x)
        x = nn.relu(x).reshape(len(x), -1)
        x = nn.Dropout(0.2, deterministic=not train)(x)
        x = nn.relu(nn.Dense(16, name="hidden")(x))
        return nn.Dense(4, name="head")(x)


def experiment_of(**fields):
    config = tiny_run.config("unused", **{**EVERYTHING, **fields})
    return tiny_run.prepare(config, model=Net()).experiment


@pytest.mark.parametrize("gradient", METHODS)
def test_every_gradient_with_all_that_a_recipe_asks_for(gradient):
    method = "set" if gradient == "zeroth_order" else "rigl"
    experiment = experiment_of(gradient=gradient, method=method, accumulate_steps=2)
    assert experiment.optimizer_steps == experiment.total_steps // 2


@pytest.mark.parametrize(
    "method", [m for m in choices.METHODS if m not in ("units", "chex", "chase")]
)
def test_every_method_with_all_that_a_recipe_asks_for(method):
    fields = {"method": method, "accumulate_steps": 2, **OPTIONS.get(method, {})}
    experiment_of(**fields)


def test_a_step_of_all_at_once_is_finite_and_on_its_mask():
    """Two batches, one step of the optimizer, an average that is zero off the mask."""
    experiment = experiment_of(accumulate_steps=2, augment=("flip", "mixup=0.8"))
    state, advance = tiny_run.begin(experiment), tiny_run.advance(experiment)
    before = jax.device_get(state.params)
    for _ in range(4):
        state = advance(state)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), before, state.params)
    assert all(x > 0 for x in jax.tree.leaves(moved))
    for tree in (state.params, state.average[0]):
        pruned = [np.asarray(x == 0) for x in jax.tree.leaves(tree) if x.ndim > 1]
        assert sum(p.sum() for p in pruned) == sum(p.size for p in pruned) // 2
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.average))
