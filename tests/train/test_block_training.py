"""Block sparsity by the trainer's field `block`."""

import dataclasses

import numpy as np
import pytest
import tiny_run

import zosam_jax as zs
from zosam_jax.train import RunError, TrainConfig, choices, effects, load_run
from zosam_jax.train import step as steps


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
    with pytest.raises(ValueError, match="block=2: method='nm' has a structure"):
        choices.check(chosen)
    # Not by the name of the constructor that several criteria share.
    chosen = TrainConfig(method="snip", block=4)
    with pytest.raises(ValueError, match="block=4: method='snip' has a structure"):
        choices.check(chosen)
    with pytest.raises(ValueError, match="block=2 has no effect with method="):
        effects.check(TrainConfig(method="dense", sparsity=0.9, block=2))
    with pytest.raises(ValueError, match="block=0 must be an integer"):
        TrainConfig(block=0)
    chosen = tiny_run.config("x", method="set", gradient="backprop", block=16)
    with pytest.raises(RunError, match=r"do not divide .* nothing is sparse"):
        tiny_run.prepare(chosen)


FIELDS = {"method": "set", "gradient": "backprop", "epochs": 1, "block": 2}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with masks of blocks of 2 x 2."""
    out = tmp_path_factory.mktemp("blocks") / "run"
    tiny_run.train(out, **FIELDS)
    return load_run.load(out, model=tiny_run.Net())


def begun(trained, **fields):
    """The programs of a training that starts from the run."""
    usual = {**FIELDS, "from_": str(trained.folder), "seed": 1}
    return tiny_run.prepare(tiny_run.config("nowhere", **{**usual, **fields}))


def test_a_training_keeps_masks_of_blocks(trained):
    made = begun(trained)
    batch = tiny_run.raw(made.experiment, 0)
    state = steps.init(made.experiment, *batch, made.start.arrays)
    kept = zs.sparsity.masks(state.opt_state)
    np.testing.assert_array_equal(
        kept["head"]["kernel"], trained.masks["head"]["kernel"]
    )
    assert "masks kept, at sparsity 0.5" in made.start.said


def test_masks_of_other_blocks_are_not_kept(trained):
    said = r"head/kernel of shape \(8, 4\) is not made of whole blocks of 4 x 4"
    with pytest.raises(RunError, match=rf"{said}.* --from-masks drawn"):
        begun(trained, block=4)
    begun(trained, block=4, from_masks="drawn")


def my_method(sparsity, total_steps):
    """A constructor of a user's own."""
    return zs.sparsity.rigl(sparsity, total_steps)


def test_a_method_in_a_message_is_the_one_that_was_given():
    """Not the one of the field, which is not read then."""
    chosen = tiny_run.config("x", method="rigl", gradient="zeroth_order", epochs=1)
    chosen = dataclasses.replace(chosen, update_interval=None)
    with pytest.raises(RunError, match="method='my_method' uses the gradient"):
        tiny_run.prepare(chosen, method=my_method)
