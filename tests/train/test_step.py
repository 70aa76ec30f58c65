"""The step against independent arithmetic."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run
from problems import assert_close

from zosam_jax.train import accuracy, build, choices
from zosam_jax.train import batch as batches
from zosam_jax.train.objects import Objects


@pytest.fixture(scope="module")
def experiment():
    config = tiny_run.config(
        "unused",
        method="dense",
        gradient="backprop",
        schedule="constant",
        learning_rate=0.5,
        weight_decay=0.01,
        momentum=0.9,
    )
    return tiny_run.prepare(config).experiment


def test_an_order_is_a_permutation_of_its_own_for_each_epoch_and_seed(experiment):
    other = experiment.with_seed(experiment.seed + 1)
    orders = [
        np.asarray(batches.epoch_order(experiment, jnp.int32(e))) for e in (0, 1, 0)
    ]
    orders.append(np.asarray(batches.epoch_order(other, jnp.int32(0))))
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(70))
    np.testing.assert_array_equal(orders[0], orders[2])
    assert (orders[0] != orders[1]).any()
    assert (orders[0] != orders[3]).any()


def test_an_epoch_takes_each_image_once_in_its_order(experiment):
    """Without augmentation, the batches' labels are those of the order."""
    config = tiny_run.config("unused", method="dense", gradient="backprop", augment=())
    given = Objects(tiny_run.dataset(), tiny_run.Net())
    plain = build.experiment(config, given, choices.choose(config))
    experiment = dataclasses.replace(experiment, augmentation=plain.augmentation)
    order = batches.epoch_order(experiment, jnp.int32(0))
    seen = []
    for step in range(4):
        images, labels, _ = tiny_run.batch(experiment, step)
        chosen = np.asarray(order)[16 * step : 16 * step + 16]
        expected = (experiment.dataset.train_images[chosen] / 255 - 0.3) / 0.2
        np.testing.assert_allclose(images, expected, atol=2e-6)
        np.testing.assert_array_equal(labels, experiment.dataset.train_labels[chosen])
        seen += list(chosen)
    assert len(set(seen)) == 64


def test_augmentation_depends_on_the_step_alone(experiment):
    order = batches.epoch_order(experiment, jnp.int32(0))
    first, again = (tiny_run.batch(experiment, 1, order).inputs for _ in "ab")
    np.testing.assert_array_equal(first, again)
    # The same images come at the same place of the next epoch, cropped otherwise.
    later = tiny_run.batch(experiment, 5, order).inputs
    assert (first != later).any()


def test_two_steps_of_sgd_with_momentum_and_coupled_decay(experiment):
    """w' = w - lr m, m' = mu m + (gradient + decay w), the gradient by jax.grad."""
    state, advance = tiny_run.begin(experiment), tiny_run.advance(experiment)
    params, momentum = state.params, jax.tree.map(jnp.zeros_like, state.params)
    model_state = state.model_state
    net = tiny_run.Net()
    total = 0.0
    for step in range(2):
        images, labels, _ = tiny_run.batch(experiment, step)

        def loss(p, model_state=model_state, images=images, labels=labels):
            logits, new = net.apply(
                {"params": p, **model_state},
                images,
                train=True,
                mutable=["batch_stats"],
            )
            log_p = jax.nn.log_softmax(logits)
            return -log_p[jnp.arange(16), labels].mean(), dict(new)

        (value, model_state), grad = jax.value_and_grad(loss, has_aux=True)(params)
        momentum = jax.tree.map(
            lambda m, g, p: 0.9 * m + g + 0.01 * p, momentum, grad, params
        )
        params = jax.tree.map(lambda p, m: p - 0.5 * m, params, momentum)
        total += float(value)
        state = advance(state)
    assert int(state.step) == 2
    for a, b in (
        (state.params, params),
        (state.model_state, model_state),
    ):
        assert_close(a, b, rtol=1e-4)
    assert float(state.totals.loss) == pytest.approx(total, rel=1e-5)
    assert int(state.totals.steps) == 2


def test_hosts_share_each_evaluation_batch(experiment, monkeypatch):
    """Also the padded last one, of which the second host has nothing that counts."""
    monkeypatch.setattr(accuracy, "batch_size", lambda experiment: 16)
    whole = list(accuracy.batches(experiment, "test"))
    shares = []
    for host in (0, 1):
        monkeypatch.setattr(type(experiment), "host", (host, 2))
        shares.append(list(accuracy.batches(experiment, "test")))
    assert [count for _, _, count in whole] == [16, 6]
    for batch, first, second in zip(whole, *shares, strict=True):
        assert batch[2] == first[2] == second[2]
        for x, a, b in zip(batch[:2], first[:2], second[:2], strict=True):
            assert len(a) == len(b) == 8
            np.testing.assert_array_equal(x, np.concatenate([a, b]))


def test_the_last_evaluation_batch_counts_each_image_once(experiment, monkeypatch):
    """22 images in batches of 8, against all at once."""
    state = tiny_run.begin(experiment)
    found = []
    for size in (22, 8):
        monkeypatch.setattr(accuracy, "batch_size", lambda experiment, size=size: size)
        totals, counts = accuracy.no_totals(experiment), []
        for images, labels, count in accuracy.batches(experiment, "test"):
            assert images.shape == (size, 6, 6, 1)
            counts.append(count)
            arrays = jnp.asarray(images), jnp.asarray(labels), count
            totals = accuracy.add_batch(
                experiment, state.params, state.model_state, *arrays, totals
            )
        found.append((totals, counts))
    (whole, _), (parts, counts) = found
    assert counts == [8, 8, 6]
    assert int(parts.correct) == int(whole.correct)
    assert float(parts.loss) == pytest.approx(float(whole.loss), rel=1e-5)
