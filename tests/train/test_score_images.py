"""The images by which SNIP and GraSP choose their masks."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_run

import zosam_jax as zs
from zosam_jax.train import TrainConfig, build, choices
from zosam_jax.train import batch as batches
from zosam_jax.train.objects import Objects


def test_masks_are_those_of_the_first_clean_images_of_each_class(tmp_path):
    config = tiny_run.config(tmp_path, method="grasp", score_images=3, budget="erk")
    experiment = tiny_run.prepare(config).experiment
    data, order = experiment.dataset, batches.epoch_order(experiment, jnp.int32(0))
    first = [
        [i for i in np.asarray(order) if data.train_labels[i] == label][:3]
        for label in range(4)
    ]
    chosen = np.concatenate(first)
    raw = batches.class_balanced(
        experiment, order, *map(jnp.asarray, (data.train_images, data.train_labels))
    )
    np.testing.assert_array_equal(raw[0], data.train_images[chosen])
    np.testing.assert_array_equal(raw[1], np.repeat(range(4), 3))

    x = jnp.asarray((data.train_images[chosen] / 255 - 0.3) / 0.2, jnp.float32)
    key = experiment.key(np.uint32(0xFFFFFFF0))
    params, state = experiment.initialize(key)

    def loss(params):
        variables = {"params": params, **state}
        logits, _ = tiny_run.Net().apply(
            variables, x, train=True, mutable=["batch_stats"]
        )
        return optax.softmax_cross_entropy_with_integer_labels(
            logits / 200, data.train_labels[chosen]
        ).mean()

    by_hand = zs.sparsity.static(0.5, "grasp", value_fn=loss, budget="erk")
    expected = jax.jit(by_hand.init)(params).masks
    found = zs.sparsity.masks(tiny_run.begin(experiment).opt_state)
    tiny_run.assert_same(found, expected)


def test_score_images_that_are_not_there_are_refused(tmp_path):
    config = tiny_run.config(tmp_path, method="snip", score_images=500)
    given = Objects(tiny_run.dataset(), tiny_run.Net())
    with pytest.raises(ValueError, match=r"score_images=500 is more than the \d+ tr"):
        build.experiment(config, given, choices.choose(config))
    with pytest.raises(ValueError, match="score_images=-1 must be"):
        TrainConfig(score_images=-1)
    text = TrainConfig(
        dataset="pydoc", model="tinylm", method="snip", score_images=2, out="x"
    )
    with pytest.raises(ValueError, match="needs labelled images in memory"):
        build.experiment(text, Objects(), choices.choose(text))
