"""Options of training other than the gradient and the masks, each checked by hand."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run
from problems import assert_close

import zosam_jax as zs
from zosam_jax import tree
from zosam_jax.data.sets import text
from zosam_jax.runs import folder
from zosam_jax.train import (
    RunError,
    batch,
    build,
    choices,
    learning_rates,
    load_run,
    loop,
    run,
    stored_run,
)
from zosam_jax.train import loss as loss_
from zosam_jax.train.experiment import Teacher
from zosam_jax.train.objects import Objects

PLAIN = {
    "method": "dense",
    "gradient": "backprop",
    "schedule": "constant",
    "learning_rate": 0.5,
    "momentum": 0.0,
    "weight_decay": 0.0,
}


def experiment_of(model=None, **fields):
    config = tiny_run.config("unused", **{**PLAIN, **fields})
    return tiny_run.prepare(config, model=model).experiment


def distance(a, b):
    """The norm of the difference of two trees."""
    return tree.norm(jax.tree.map(lambda x, y: jnp.asarray(x) - y, a, b))


def test_the_average_is_the_papers_recursion_on_the_present_mask():
    """a' = d a + (1 - d) w, d = min(decay, (1 + t) / (10 + t)), and zero off the mask.

    RigL changes the masks in step 3.
    """
    experiment = experiment_of(method="rigl", ema=0.25, update_interval=3)
    state, advance = tiny_run.begin(experiment), tiny_run.advance(experiment)
    average = (state.params, state.model_state)
    assert_close(state.average, average, 0)
    first = masks = zs.sparsity.masks(state.opt_state)
    for step in range(1, 6):
        state = advance(state)
        decay = min(0.25, (1 + step) / (10 + step))
        average = jax.tree.map(
            lambda a, w, d=decay: d * a + (1 - d) * w,
            average,
            (state.params, state.model_state),
        )
        masks = zs.sparsity.masks(state.opt_state)
        average = (zs.sparsity.apply_masks(average[0], masks), average[1])
        assert_close(state.average, average)
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), first, masks)
    assert any(jax.tree.leaves(changed))


def test_the_average_is_what_is_tested(tmp_path):
    path = tmp_path / "run"
    result = tiny_run.train(path, **{**PLAIN, "ema": 0.9})
    found = load_run.load(path, dataset=tiny_run.dataset(), model=tiny_run.Net())
    state = tiny_run.final(path, **{**PLAIN, "ema": 0.9})
    assert_close((found.params, found.model_state), state.average, 0)
    assert float(distance(found.params, state.params)) > 1e-3
    data = found.experiment.dataset
    images = (data.test_images / np.float32(255) - data.mean[0]) / data.std[0]
    logits = found.experiment.model.apply(found.variables, images, train=False)
    accuracy = np.mean(np.argmax(logits, -1) == data.test_labels)
    assert result.summary["test_accuracy"] == pytest.approx(accuracy)


@pytest.mark.parametrize("method", ["dense", "random"])
def test_accumulated_batches_are_one_step_of_their_mean_gradient(method):
    experiment = experiment_of(method=method, accumulate_steps=2, momentum=0.9)
    assert (experiment.total_steps, experiment.optimizer_steps) == (12, 6)
    state, advance = tiny_run.begin(experiment), tiny_run.advance(experiment)
    begin, model_state, grads = state.params, state.model_state, []
    for step in range(2):
        assert_close(state.params, begin, 0)
        images, labels, _ = tiny_run.batch(experiment, step)

        def loss(params, model_state=model_state, images=images, labels=labels):
            logits, new = tiny_run.Net().apply(
                {"params": params, **model_state},
                images,
                train=True,
                mutable=["batch_stats"],
            )
            log_p = jax.nn.log_softmax(logits)
            return -log_p[jnp.arange(16), labels].mean(), dict(new)

        grad, model_state = jax.grad(loss, has_aux=True)(begin)
        grads.append(grad)
        state = advance(state)
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *grads)
    if method != "dense":
        mean = zs.sparsity.apply_masks(mean, zs.sparsity.masks(state.opt_state))
    expected = jax.tree.map(lambda w, g: w - 0.5 * g, begin, mean)
    assert_close(state.params, expected, 1e-4)
    assert_close(state.model_state, model_state, 1e-4)


def test_schedules_count_the_steps_of_the_optimizer(tmp_path):
    """12 batches are 6 steps; the rate of a cosine after the last is about its end."""
    rates = []
    for batches in (1, 2):
        fields = {**PLAIN, "schedule": "cosine", "accumulate_steps": batches}
        path = tmp_path / str(batches)
        tiny_run.train(path, **fields)
        records = tiny_run.records(path)
        rates.append([r["learning_rate"] for r in records if r["split"] == "train"])
    cosine = lambda t, n: 0.5 * 0.5 * (1 + np.cos(np.pi * t / n))  # noqa: E731
    np.testing.assert_allclose(rates[0], [cosine(t, 12) for t in (3, 7, 11)], rtol=1e-5)
    np.testing.assert_allclose(rates[1], [cosine(t, 6) for t in (1, 3, 5)], rtol=1e-5)


def test_a_run_that_would_not_make_a_step_is_refused():
    with pytest.raises(RunError, match=r"accumulate_steps=13 .* 12 batches"):
        experiment_of(accumulate_steps=13)


@pytest.mark.parametrize("method", ["dense", "random"])
def test_the_radius_of_all_batches_of_a_step_is_that_of_its_rate(method):
    """rho_t = rho lr_t / lr_max where rho_min = 0 (gsam), t a step of 2 batches."""
    fields = {"gradient": "gsam", "rho": 0.1, "gradient_options": ("rho_min=0",)}
    fields |= {"schedule": "cosine", "accumulate_steps": 2, "epochs": 1}
    experiment = experiment_of(method=method, **fields)
    state, advance = tiny_run.begin(experiment), tiny_run.advance(experiment)
    for step in (0, 0, 1, 1):
        state = advance(state)
        expected = 0.1 * (1 + np.cos(np.pi * step / 2)) / 2
        found = float(zs.estimate(state.opt_state).info.perturbation_norm)
        assert found == pytest.approx(expected, rel=1e-5)


def test_milestones_and_the_end_of_the_cosine():
    config = tiny_run.config("x", schedule="step", milestones=(0.3, 0.7, 0.9))
    rate = learning_rates.schedule(config, 100)
    found = [float(rate(t)) for t in (0, 29, 30, 69, 70, 89, 90, 99)]
    powers = np.array([0, 0, 1, 1, 2, 2, 3, 3])
    np.testing.assert_allclose(found, 0.1 * 0.1**powers, rtol=1e-6)
    config = tiny_run.config("x", final_learning_rate=0.004, epochs=10, warmup_epochs=1)
    rate = learning_rates.schedule(config, 100)
    assert float(rate(5)) == pytest.approx(0.05)
    assert float(rate(100)) == pytest.approx(0.004)
    middle = 0.004 + (0.1 - 0.004) / 2
    assert float(rate(55)) == pytest.approx(middle, rel=1e-6)
    fields = {"schedule": "step", "epochs": 10, "warmup_epochs": 2}
    config = tiny_run.config("x", **fields, milestones=(0.3, 0.6))
    rate = learning_rates.schedule(config, 100)
    found = [float(rate(t)) for t in (10, 20, 29, 30, 59, 60)]
    np.testing.assert_allclose(found, [0.05, 0.1, 0.1, 0.01, 0.01, 0.001], rtol=1e-6)
    with pytest.raises(ValueError, match="milestones"):
        tiny_run.config("x", **fields, milestones=(0.2, 0.6))
    for wrong in ((0.7, 0.3), (0.5, 1.0), (0.0, 0.5)):
        with pytest.raises(ValueError, match="milestones"):
            tiny_run.config("x", schedule="step", milestones=wrong)


@pytest.mark.parametrize("name", ["sgd", "adamw", "lion", "adafactor"])
def test_weight_decay_is_for_kernels_alone(name):
    """No gradient: what moves is what decays."""
    fields = {**PLAIN, "weight_decay": 0.1, "optimizer": name, "decay": "kernels"}
    config = tiny_run.config("x", **fields, model="vit")
    params = {
        "head": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)},
        "position_embedding": jnp.ones((4, 3)),
    }
    zero = jax.tree.map(jnp.zeros_like, params)
    parts_of = build.optimization(
        config, Objects(), choices.choose(config), 10, jnp.zeros(())
    )
    tx = parts_of(0).optimizer

    def value_fn(params):
        flat = sum(jnp.sum(x * 0) for x in jax.tree.leaves(params))
        return flat, jnp.zeros(())

    updates: Any
    updates, _ = tx.update(zero, tx.init(params), params, value_fn=value_fn)
    assert (np.asarray(updates["head"]["kernel"]) < 0).all()
    assert not np.asarray(updates["head"]["bias"]).any()
    assert not np.asarray(updates["position_embedding"]).any()


def test_labels_are_smoothed():
    """(1 - e) CE(label) + e mean over the classes of CE."""
    experiment = experiment_of(label_smoothing=0.2)
    state, batch = tiny_run.begin(experiment), tiny_run.batch(experiment, 0)
    loss, (_, correct) = loss_.value_fn(
        experiment, state.model_state, state.step, batch
    )(state.params)
    plain = tiny_run.batch(experiment_of(), 0)
    logits, _ = tiny_run.Net().apply(
        {"params": state.params, **state.model_state},
        plain.inputs,
        train=True,
        mutable=["batch_stats"],
    )
    log_p = np.asarray(jax.nn.log_softmax(logits))
    picked = log_p[np.arange(16), plain.targets]
    expected = -(0.8 * picked + 0.2 * log_p.mean(-1)).mean()
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert int(correct) == int((log_p.argmax(-1) == plain.targets).sum())


def test_a_held_out_share_chooses_an_epoch(tmp_path):
    path = tmp_path / "run"
    result = tiny_run.train(path, **{**PLAIN, "validation": 0.25, "batch_size": 8})
    config = tiny_run.config(path, **{**PLAIN, "validation": 0.25, "batch_size": 8})
    experiment = tiny_run.prepare(config).experiment
    whole = tiny_run.dataset()
    assert experiment.validation is not None
    images, labels = experiment.validation
    assert len(labels) + experiment.dataset.num_train == 70
    for label in range(4):
        share = (labels == label).sum() / (whole.train_labels == label).sum()
        assert abs(share - 0.25) < 0.5 / (whole.train_labels == label).sum() + 1e-9
    seen = {x.tobytes() for x in experiment.dataset.train_images}
    assert not seen & {x.tobytes() for x in images}
    records = tiny_run.records(path)
    held = {r["epoch"]: r["accuracy"] for r in records if r["split"] == "validation"}
    tests = {r["epoch"]: r["accuracy"] for r in records if r["split"] == "test"}
    chosen = result.summary["selected_epoch"]
    assert sorted(held) == [1, 2, 3]
    assert held[chosen] == max(held.values())
    assert chosen == min(e for e in held if held[e] == max(held.values()))
    assert result.summary["selected_test_accuracy"] == tests[chosen]
    assert result.summary["test_accuracy"] == tests[3]


def test_errors_in_the_labels_are_in_the_training_set_alone(tmp_path):
    """The network learns the given labels; the summary has both accuracies."""
    fields = {**PLAIN, "label_noise": 0.4, "validation": 0.25, "batch_size": 8}
    result = tiny_run.train(tmp_path / "run", **fields, seed=3)
    compiled = tiny_run.prepare(tiny_run.config(tmp_path / "run", **fields, seed=3))
    experiment, whole = compiled.experiment, tiny_run.dataset()
    plain = {**fields, "label_noise": 0.0}
    clean = tiny_run.prepare(tiny_run.config("x", **plain, seed=3)).experiment
    given, right = experiment.dataset.train_labels, clean.dataset.train_labels
    np.testing.assert_array_equal(experiment.clean_labels, right)
    assert np.sum(given != right) == round(0.4 * len(right))
    np.testing.assert_array_equal(experiment.dataset.test_labels, whole.test_labels)
    np.testing.assert_array_equal(experiment.validation[1], clean.validation[1])
    state = tiny_run.final(tmp_path / "run", **fields, seed=3)
    logits = tiny_run.Net().apply(
        {"params": state.params, **state.model_state},
        (experiment.dataset.train_images / 255 - 0.3) / 0.2,
        train=False,
    )
    found = np.argmax(np.asarray(logits), -1)
    for name, labels in (("given", given), ("clean", right)):
        accuracy = result.summary[f"train_accuracy_{name}_labels"]
        assert accuracy == pytest.approx(np.mean(found == labels))
    assert clean.clean_labels is None


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A finished run, and a function that loads it as `prepare` does."""
    path = tmp_path_factory.mktemp("teacher") / "run"
    tiny_run.train(path, **PLAIN)
    return path


def test_a_teachers_classes_are_half_of_the_loss(teacher, monkeypatch):
    load = functools.partial(loop.load_teacher, model=tiny_run.Net())
    monkeypatch.setattr(loop, "load_teacher", load)
    experiment = experiment_of(teacher=str(teacher))
    state = tiny_run.begin(experiment)
    images, labels, _ = tiny_run.batch(experiment, 0)
    assert experiment.teacher is not None
    net, variables = experiment.teacher
    taught = np.argmax(net.apply(variables, images, train=False), -1)
    assert (taught != labels).any()
    batch = tiny_run.batch(experiment, 0, teacher=variables)
    np.testing.assert_array_equal(batch.taught, taught)
    loss, _ = loss_.value_fn(experiment, state.model_state, state.step, batch)(
        state.params
    )
    logits, _ = tiny_run.Net().apply(
        {"params": state.params, **state.model_state},
        images,
        train=True,
        mutable=["batch_stats"],
    )
    log_p = np.asarray(jax.nn.log_softmax(logits))
    rows = np.arange(16)
    expected = -(log_p[rows, labels] + log_p[rows, taught]).mean() / 2
    assert float(loss) == pytest.approx(expected, rel=1e-5)


class Dropping(nn.Module):
    """A dense layer behind dropout."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.Dropout(0.5, deterministic=not train)(x.reshape(len(x), -1))
        return nn.Dense(4, name="head")(x)


def test_all_passes_of_a_step_draw_one_dropout():
    experiment = experiment_of(Dropping())
    state, batch = tiny_run.begin(experiment), tiny_run.batch(experiment, 0)

    def losses(step, **keys):
        loss = loss_.value_fn(experiment, {}, jnp.int32(step), batch)
        return float(loss(state.params, **keys)[0])

    assert losses(3) == losses(3)
    assert losses(3) != losses(4)
    assert losses(3, key=jax.random.key(1)) != losses(3)


def test_each_part_of_a_batch_draws_its_own_dropout():
    experiment = experiment_of(Dropping(), gradient="esam")
    batch = jax.tree.map(
        lambda x: jnp.repeat(x[:1], 16, 0), tiny_run.batch(experiment, 0)
    )
    loss = loss_.value_fn(experiment, {}, jnp.int32(0), batch)
    params = tiny_run.begin(experiment).params
    whole, front, rest = (
        loss(params, examples=x)[0] for x in (None, jnp.arange(8), jnp.arange(8, 16))
    )
    np.testing.assert_array_equal(whole[:8], front)
    assert (front != rest).all()


def test_sam_with_fresh_keys_draws_another_dropout_for_each_pass():
    found = []
    for options in ((), ("fresh_keys=True",)):
        experiment = experiment_of(Dropping(), gradient="sam", gradient_options=options)
        found.append(tiny_run.advance(experiment)(tiny_run.begin(experiment)).params)
    assert float(distance(*found)) > 1e-4


def test_a_run_that_is_not_finished_is_no_teacher(tmp_path, teacher):
    with pytest.raises(RunError, match="no config"):
        load_run.load(tmp_path)
    whole = load_run.load(teacher, model=tiny_run.Net())
    (teacher / "summary.json").rename(teacher / "hidden")
    part = load_run.load(teacher, model=tiny_run.Net())
    assert (part.summary, part.step) == (None, whole.step)
    tiny_run.assert_same(part.variables, whole.variables)
    with pytest.raises(RunError, match="is not finished"):
        experiment_of(teacher=str(teacher))
    (teacher / "hidden").rename(teacher / "summary.json")


def test_a_teacher_is_known_by_its_weights_and_its_facts(teacher, tmp_path):
    """It may move; other weights or other statistics are another teacher."""
    experiment = experiment_of()
    found = load_run.load(teacher, model=tiny_run.Net())
    taught = Teacher(found.experiment.model, found.variables)
    experiment = dataclasses.replace(experiment, teacher=taught)
    config = tiny_run.config(tmp_path / "run", **PLAIN, teacher=str(teacher))
    kept = loop._kept(config, experiment)
    (tmp_path / "run").mkdir()
    devices = {"backend": "cpu", "device": "cpu", "devices": 1}
    folder.write_config(tmp_path / "run", config, None, 0, devices, kept)
    moved = dataclasses.replace(config, teacher=str(tmp_path / "moved"))
    assert folder.check(moved) == config.epochs
    assert loop._kept(moved, experiment) == kept
    variables = jax.tree.map(lambda x: x + 1, found.variables)
    other = dataclasses.replace(
        experiment, teacher=taught._replace(variables=variables)
    )
    with pytest.raises(RunError, match="moved' has other weights than the teacher"):
        loop._kept(moved, other)

    stored, facts = stored_run.read(teacher), experiment.facts
    loop._check_taught(config, stored, facts)
    for fields, part in (
        ({"mean": (0.4,)}, "channel statistics are others"),
        ({"class_names": ("b", "a", "c", "d")}, "class 0 is 'b'"),
    ):
        with pytest.raises(ValueError, match=part):
            loop._check_taught(config, stored, dataclasses.replace(facts, **fields))


class Bytes(nn.Module):
    """The next token from this one alone."""

    @nn.compact
    def __call__(self, x, train):
        del train
        return nn.Dense(256, name="head")(nn.Embed(256, 8, name="embedding")(x))


def test_a_text_is_trained_on_token_by_token(tmp_path):
    """A text that says its next byte at once: all tokens count, and become right."""
    data = text.sequences("letters", b"abcdefgh" * 400, length=16)
    fields = {**PLAIN, "method": "rigl", "optimizer": "adamw", "learning_rate": 0.05}
    del fields["momentum"]
    config = tiny_run.config(tmp_path / "run", **fields)
    result = run(config, dataset=data, model=Bytes())
    found = load_run.load(tmp_path / "run", dataset=data, model=Bytes())
    logits = found.experiment.model.apply(
        found.variables, data.test_images, train=False
    )
    right = np.argmax(logits, -1) == data.test_labels
    assert result.summary["test_accuracy"] == pytest.approx(right.mean())
    assert result.summary["test_accuracy"] > 0.9
    log_p = np.asarray(jax.nn.log_softmax(logits))
    losses = -np.take_along_axis(log_p, data.test_labels[..., None], -1)
    assert result.summary["test_loss"] == pytest.approx(losses.mean(), rel=1e-5)
    assert 0 < result.summary["train_accuracy"] <= 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dataset": "pydoc"}, "pydoc is text, and model='resnet20' is for images"),
        ({"model": "tinylm"}, "digits are images, and model='tinylm' is for text"),
        ({"image_size": 32}, "image_size=32: the images of digits are used as they"),
        (
            {"dataset": "pydoc", "model": "tinylm", "label_noise": 0.2},
            "label_noise=0.2 needs labelled images in memory, which pydoc are not",
        ),
        ({"validation": 0.99}, r"leaves \d+ training images, fewer than batch_size=64"),
        ({"augment": ("crop=9",)}, "crop=9 is more than the 8 pixels"),
    ],
)
def test_what_does_not_fit_the_data_is_said_before_anything_is_compiled(
    fields, message
):
    config = tiny_run.config("x", dataset="digits", batch_size=64, model="resnet20")
    with pytest.raises(RunError, match=message):
        loop.prepare(dataclasses.replace(config, **fields), Objects())


def test_a_teacher_of_other_data_is_named(teacher):
    config = tiny_run.config("x", dataset="digits", teacher=str(teacher))
    with pytest.raises(RunError, match="was trained on quadrants, not on digits"):
        loop.prepare(config, Objects(model=tiny_run.Net()))


def test_images_are_normalized_with_the_statistics_of_trained_weights(tmp_path):
    gray = tiny_run.dataset()
    color = dataclasses.replace(
        gray,
        train_images=np.repeat(gray.train_images, 3, -1),
        test_images=np.repeat(gray.test_images, 3, -1),
        mean=(0.3, 0.3, 0.3),
        std=(0.2, 0.2, 0.2),
    )
    chosen = tiny_run.config(tmp_path, normalization="imagenet", **PLAIN)
    experiment = loop.prepare(chosen, Objects(color, tiny_run.Net())).experiment
    assert experiment.facts.mean == (0.485, 0.456, 0.406)
    raw = color.test_images[:2]
    seen = batch.normalized(experiment, jnp.asarray(raw))
    centred = raw / 255 - np.array([0.485, 0.456, 0.406])
    assert_close(seen, centred / np.array([0.229, 0.224, 0.225]), 1e-5)
    with pytest.raises(RunError, match=r"for images of 3 channels, and .* has 1 ch"):
        loop.prepare(chosen, Objects(gray, tiny_run.Net()))
    with pytest.raises(ValueError, match="normalization='cifar'"):
        dataclasses.replace(chosen, normalization="cifar")
