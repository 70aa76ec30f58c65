"""Block sparsity by the trainer's field `block`."""

import numpy as np
import pytest
import tiny_run

import zosam_jax as zs
from zosam_jax.train import RunError, TrainConfig, choices, effects


def test_a_run_has_masks_of_blocks():
    """Layers that are not whole blocks stay dense: the first has one input."""
    made = tiny_run.prepare(
        tiny_run.config("x", method="set", gradient="backprop", block=2)
    )
    masks = zs.sparsity.masks(tiny_run.begin(made.experiment).opt_state)
    assert np.ndim(masks["conv"]["kernel"]) == 0
    head = np.asarray(masks["head"]["kernel"]).reshape(4, 2, 2, 2)
    live = head.sum((1, 3))
    assert set(live.flat) == {0, 4}
    assert head.mean() == 0.5


def test_a_method_of_a_structure_and_no_layer_of_blocks_are_refused():
    chosen = TrainConfig(method="nm", sparsity=0.5, block=2)
    chosen = TrainConfig(**{**chosen.record(), "method_options": ("n=2", "m=4")})
    with pytest.raises(ValueError, match="block=2: method='nm': blocks: nm has"):
        choices.check(chosen)
    with pytest.raises(ValueError, match="block=2 has no effect: method='dense'"):
        effects.check(TrainConfig(method="dense", sparsity=0.9, block=2))
    with pytest.raises(ValueError, match="block=0 must be an integer"):
        TrainConfig(block=0)
    chosen = tiny_run.config("x", method="set", gradient="backprop", block=16)
    with pytest.raises(RunError, match=r"do not divide .* nothing is sparse"):
        tiny_run.prepare(chosen)
