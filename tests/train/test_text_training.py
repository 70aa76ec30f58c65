"""What recipes ask for, on tokens `[N, T]` in place of images."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run

from zosam_jax.data.sets import text
from zosam_jax.runs.errors import RunError
from zosam_jax.train import batch as batches
from zosam_jax.train import load_run, loop, run
from zosam_jax.train import loss as loss_

LENGTH = 16
FIELDS = {"method": "dense", "gradient": "backprop", "dataset": "letters", "epochs": 1}


class Bytes(nn.Module):
    """The next token from this one alone."""

    @nn.compact
    def __call__(self, x, train):
        del train
        return nn.Dense(256, name="head")(nn.Embed(256, 8, name="embedding")(x))


def letters():
    return text.sequences("letters", b"abcdefgh" * 400, length=LENGTH)


def prepared(**fields):
    config = tiny_run.config("unused", **{**FIELDS, **fields})
    return tiny_run.prepare(config, letters(), Bytes())


def loss_of(experiment, teacher=None):
    """The loss of the first batch, and log-probabilities and labels by hand."""
    data = experiment.dataset
    raw = jnp.asarray(data.train_images[:16]), jnp.asarray(data.train_labels[:16])
    batch = batches.prepare(experiment, jnp.int32(0), *raw, teacher)
    params = Bytes().init(jax.random.key(0), raw[0], train=False)["params"]
    loss, (_, correct) = loss_.value_fn(experiment, {}, jnp.int32(0), batch)(params)
    logits = Bytes().apply({"params": params}, raw[0], train=True)
    log_p = np.asarray(jax.nn.log_softmax(logits), np.float64)
    return float(loss), float(correct), log_p, np.asarray(raw[1])


def picked(log_p, labels):
    return np.take_along_axis(log_p, labels[..., None], -1)[..., 0]


def test_labels_of_tokens_are_smoothed():
    """(1 - e) CE(next token) + e mean over the tokens of CE, mean over N and T."""
    loss, correct, log_p, labels = loss_of(prepared(label_smoothing=0.2).experiment)
    expected = -(0.8 * picked(log_p, labels) + 0.2 * log_p.mean(-1)).mean()
    assert loss == pytest.approx(expected, rel=1e-5)
    hits = (log_p.argmax(-1) == labels).sum()
    assert correct == pytest.approx(hits / LENGTH, rel=1e-6)


def test_a_teachers_tokens_are_half_of_the_loss(tmp_path, monkeypatch):
    path = str(tmp_path / "teacher")
    run(tiny_run.config(path, **FIELDS), dataset=letters(), model=Bytes())
    load = functools.partial(loop.load_teacher, model=Bytes())
    monkeypatch.setattr(loop, "load_teacher", load)
    experiment = prepared(teacher=path).experiment
    assert experiment.teacher is not None
    net, variables = experiment.teacher
    loss, _, log_p, labels = loss_of(experiment, variables)
    logits = net.apply(variables, experiment.dataset.train_images[:16], train=False)
    taught = np.argmax(logits, -1)
    assert (taught != labels).any()
    expected = -(picked(log_p, labels) + picked(log_p, taught)).mean() / 2
    assert loss == pytest.approx(expected, rel=1e-5)


def test_a_held_out_share_of_the_text_is_scored_token_by_token(tmp_path):
    """Of 4 pieces in a row the first is held out, and its accuracy is that by hand."""
    fields = {**FIELDS, "validation": 0.25, "batch_size": 8}
    config = tiny_run.config(tmp_path / "run", **fields)
    summary = run(config, dataset=letters(), model=Bytes()).summary
    whole, experiment = letters(), prepared(validation=0.25).experiment
    assert experiment.validation is not None
    pieces, labels = experiment.validation
    count = round(0.25 * len(whole.train_images))
    held = np.arange(count) * len(whole.train_images) // count
    np.testing.assert_array_equal(pieces, whole.train_images[held])
    np.testing.assert_array_equal(labels, whole.train_labels[held])
    assert experiment.dataset.num_train == len(whole.train_images) - count
    found = load_run.load(tmp_path / "run", dataset=whole, model=Bytes())
    logits = np.asarray(Bytes().apply(found.variables, pieces, train=False))
    right = np.argmax(logits, -1) == labels
    assert summary["selected_epoch"] == 1
    assert summary["validation_accuracy"] == pytest.approx(right.mean())


def test_images_operations_on_text_are_refused():
    with pytest.raises(RunError, match="letters is text"):
        prepared(augment=("mixup=0.8",))
    prepared(augment=())
