"""Every gradient of the library in the trainer: options, probes, steps, resumption."""

import dataclasses
import functools
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import problems
import pytest
import tiny_run

import zosam_jax as zs
from zosam_jax import tree
from zosam_jax.gradients.registry import METHODS
from zosam_jax.train import (
    RunError,
    TrainConfig,
    build,
    choices,
    effects,
    learning_rates,
)
from zosam_jax.train import loss as loss_
from zosam_jax.train.objects import Objects


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"gradient_options": ("direction=guided",)}, "Did you mean 'directions'"),
        ({"gradient_options": ("alpha=0.4",)}, "zosam has no option 'alpha'"),
        ({"gradient_options": "every=2"}, "must be a list of texts"),
        (
            {"gradient_options": ("rh=3",)},
            "zosam has no option 'rh'. Did you mean 'rho'? rho is a field of its own: "
            "rho (--rho). Its options: delta, num_directions, directions, two_sided, ",
        ),
        ({"gradient_options": ("every",)}, "must be strings NAME=VALUE"),
        ({"gradient_options": ("every=2", "every=3")}, "every is given twice"),
        ({"gradient_options": ("rho=0.1",)}, "rho (--rho)"),
        ({"gradient_options": ("total_steps=9",)}, "follows from epochs (--epochs)"),
        ({"gradient_options": ("two_sided=no",)}, "'no' must be True or False"),
        ({"gradient_options": ("delta=0",)}, "delta=0 must be a finite number > 0"),
        ({"gradient": "gsam", "gradient_options": ("rho_min=-1",)}, "rho_min=-1 must"),
        (
            {"gradient": "sam", "gradient_options": ("rho_min=0",)},
            "has no option 'rho_min'",
        ),
        ({"gradient": "backprop", "gradient_options": ("every=2",)}, "has none."),
        ({"gradient": "s2sam", "aux_from": "ascent"}, 'aux_from="descent"'),
        ({"gradient": "zeroth_order"}, "Use method='set'"),
        ({"gradient_options": ("descent=zeroth_order",)}, "Use method='set'"),
        ({"gradient": "gsam", "probe_fraction": 0.5}, "not gradient='gsam'"),
        (
            {
                "gradient": "wsam",
                "gradient_options": ("decouple=True",),
                "accumulate_steps": 2,
            },
            "has two parts. Say decouple=False",
        ),
        ({"gradient": "esam", "probe_dtype": "bfloat16"}, "gamma=1"),
        ({"aux_from": "ascent", "probe_fraction": 0.5}, "aux_from='descent'"),
    ],
)
def test_what_cannot_be_made_is_refused_with_what_would_work(fields, part):
    with pytest.raises(ValueError, match=re.escape(part)):
        choices.check(TrainConfig(**fields))


def test_every_option_that_the_trainer_sets_is_refused():
    for name in (
        *("rho", "seed", "has_aux", "aux_like", "aux_from", "axis_name"),
        *("sync_ascent", "total_steps", "ascent_value_fn", "when"),
    ):
        with pytest.raises(ValueError, match=f"gradient_options: {name} "):
            choices.check(TrainConfig(gradient_options=(f"{name}=1",)))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, ()) for name in METHODS),
        ("wsam", ("decouple=True",)),
        ("gsam", ("rho_min=0.01",)),
        ("ssam", ("mask=dynamic",)),
        ("zosam", ("directions=guided", "microbatches=2", "layerwise=True")),
        ("zosam", ("descent=zeroth_order", "directions=sphere")),
    ],
)
def test_every_method_makes_a_step_of_a_sparse_and_of_a_dense_run(name, options):
    """Traced to the end: structures, shapes and types of a state that goes round.

    `test_combinations.py` has the sparse runs of gradients without options.
    """
    for method in ("dense", "set") if options else ("dense",):
        config = tiny_run.config(
            "unused", gradient=name, gradient_options=options, method=method
        )
        tiny_run.prepare(config)


def test_a_value_that_does_not_fit_the_data_is_told_before_anything_is_written(
    tmp_path,
):
    path = tmp_path / "run"
    for option, part in (
        ("microbatches=3", "microbatches=3 must divide the batch of 16"),
        ("include=stem/*", "stem"),
    ):
        with pytest.raises(RunError, match=part):
            tiny_run.train(path, gradient="sam", gradient_options=(option,))
    with pytest.raises(RunError, match="needs a model with a field dtype"):
        tiny_run.train(path, probe_dtype="bfloat16")
    assert not path.exists()


def made(monkeypatch, **fields):
    """The arguments that the trainer gives to the method's constructor."""
    config = TrainConfig(method="dense", **fields)
    row, seen = METHODS[config.gradient], {}

    @functools.wraps(row.make)
    def record(**arguments):
        seen.update(arguments)
        return row.make(**arguments)

    monkeypatch.setitem(METHODS, config.gradient, row._replace(make=record))
    rate = lambda step: 0.2 * max(1 - step / 100, 0)  # noqa: E731
    choices.choose(config).gradient.build(config, 120, rate)
    return seen


def test_the_trainer_adds_what_it_knows(monkeypatch):
    given = made(monkeypatch, gradient="msam", momentum=0.7)
    assert given == {"momentum": 0.7, "has_aux": True}
    experiment = experiment_of(gradient="msam", seed=3)
    assert experiment.gradient.option("seed") == 3
    assert experiment.with_seed(5).gradient.option("seed") == 5
    options = ("momentum=0.5",)
    given = made(monkeypatch, gradient="msam", rho=0.2, gradient_options=options)
    assert (given["momentum"], given["rho"]) == (0.5, 0.2)
    assert made(monkeypatch, gradient="aesam")["total_steps"] == 120
    rate = made(monkeypatch, gradient="sampa")["learning_rate"]
    assert [rate(t) for t in (0, 50, 100)] == [0.2, 0.1, 0]
    options = ("mask=dynamic",)
    given = made(monkeypatch, gradient="ssam", gradient_options=options)
    assert (given["total_steps"], given["mask"]) == (120, "dynamic")
    assert made(monkeypatch, probe_fraction=0.5)["aux_from"] == "descent"
    assert "aux_from" not in made(monkeypatch, gradient="zeroth_order")


def due(config, total_steps=120):
    """The perturbed steps."""
    gradient = choices.choose(config).gradient.build(config, total_steps, None)
    if gradient.when is None:
        return list(range(total_steps))
    return np.flatnonzero(jax.vmap(gradient.when)(jnp.arange(total_steps))).tolist()


def test_the_configuration_says_which_steps_are_perturbed():
    plain = TrainConfig(gradient="sam")
    assert due(plain) == list(range(120))

    def steps(**fields):
        return due(dataclasses.replace(plain, **fields))

    assert steps(perturb_from=0.75) == list(range(90, 120))
    assert steps(perturb_every=3) == list(range(0, 120, 3))
    assert steps(perturb_from=0.5, perturb_every=7) == list(range(63, 120, 7))
    some = steps(perturb_probability=0.25)
    # Five standard errors of a binomial count.
    assert abs(len(some) - 30) < 5 * (120 * 0.25 * 0.75) ** 0.5
    assert steps(perturb_probability=0.25, perturb_every=2) == [
        step for step in some if step % 2 == 0
    ]


@pytest.mark.parametrize("gradient", ["backprop", "zeroth_order"])
def test_a_gradient_without_a_perturbation_has_no_steps_to_perturb(gradient):
    config = TrainConfig(gradient=gradient, rho=None, perturb_every=2)
    assert effects.without_effect(config) == ["perturb_every"]


def test_sampa_needs_the_learning_rate_of_a_named_optimizer():
    config = TrainConfig(gradient="sampa")
    with pytest.raises(ValueError, match=r"unknown with your own.*zs\.sampa\(learning"):
        choices.choose(config).gradient.build(config, 120, None)


def test_rho_min_ties_the_radius_to_the_learning_rate(monkeypatch):
    """From rho at the peak of 0.2 to rho_min at 0, in proportion."""
    options = ("rho_min=0.01", "alpha=0.6")
    fields = {"gradient": "gsam", "learning_rate": 0.2, "gradient_options": options}
    rho = made(monkeypatch, rho=0.11, **fields)["rho"]
    assert [rho(t) for t in (0, 50, 100)] == pytest.approx([0.11, 0.06, 0.01])
    assert made(monkeypatch, **fields)["rho"](0) == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("fields", "end"),
    [
        ({"schedule": "cosine", "final_learning_rate": 0.1}, 0.1),
        ({"schedule": "step", "milestones": (0.5, 0.75)}, 0.002),
    ],
)
def test_the_tied_radius_ends_at_rho_min_and_is_never_below(fields, end):
    """From rho at the peak to rho_min at the least rate; the warm-up starts below."""
    config = TrainConfig(
        gradient="gsam",
        rho=0.6,
        gradient_options=("rho_min=0.1",),
        learning_rate=0.2,
        epochs=10,
        warmup_epochs=2,
        **fields,
    )
    rate = learning_rates.schedule(config, 100)
    gradient = choices.choose(config).gradient
    assert gradient is not None
    rho = gradient.build(config, 100, rate).rho
    assert callable(rho)
    found = [float(rho(t)) for t in range(101)]
    assert (found[20], found[100]) == pytest.approx((0.6, 0.1))
    assert min(found) == pytest.approx(0.1)
    expected = 0.1 + 0.5 * (float(rate(60)) - end) / (0.2 - end)
    assert found[60] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "fields", [{"schedule": "constant"}, {"final_learning_rate": 0.1}]
)
def test_a_radius_is_not_tied_to_a_rate_that_does_not_fall(fields):
    with pytest.raises(ValueError, match=r"does not fall from 0\.1\. Leave rho_min"):
        choices.check(
            TrainConfig(gradient="gsam", gradient_options=("rho_min=0",), **fields)
        )


def test_wsam_decoupled_clips_both_gradients_and_decays_one():
    """w' = w - lr (c(g) + decay w) - lr a (c(g_p) - c(g)), a = gamma / (1 - gamma)."""
    config = TrainConfig(
        gradient="wsam",
        gradient_options=("decouple=True", "gamma=0.75"),
        rho=0.5,
        method="dense",
        schedule="constant",
        learning_rate=0.1,
        momentum=0.0,
        weight_decay=0.01,
        clip_norm=1.0,
    )
    w, curvature = jnp.array([3.0, -4.0]), jnp.array([1.0, 2.0])
    chosen = choices.choose(config)
    parts_of = build.optimization(config, Objects(), chosen, 10, jnp.zeros(()))
    tx = parts_of(0).optimizer
    nothing: Any = None
    updates: Any
    updates, _ = tx.update(
        nothing,
        tx.init(w),
        w,
        value_fn=lambda w: (0.5 * jnp.sum(curvature * w * w), jnp.zeros(())),
    )
    w, a = np.array([3.0, -4.0]), np.array([1.0, 2.0])
    g = a * w
    perturbed = a * (w + 0.5 * g / np.linalg.norm(g))
    g, perturbed = (v / np.linalg.norm(v) for v in (g, perturbed))
    expected = -0.1 * (g + 0.01 * w) - 0.1 * 3 * (perturbed - g)
    np.testing.assert_allclose(updates, expected, rtol=1e-5)
    twice = dataclasses.replace(
        config, gradient_options=("decouple=True", "max_norm=1")
    )
    with pytest.raises(ValueError, match=r"clip_norm=1 is the max_norm of gradient="):
        choices.check(twice)
    given = Objects(gradient=zs.wsam(0.5, decouple=True))
    plain = dataclasses.replace(config, gradient="zosam", gradient_options=(), rho=None)
    chosen = choices.choose(plain, gradient=given.gradient)
    with pytest.raises(ValueError, match=r"say max_norm= in the gradient= that you"):
        build.optimization(plain, given, chosen, 10, jnp.zeros(()))


def experiment_of(model=None, **fields):
    """A dense run with plain SGD at 0.5, and its experiment."""
    usual = {"method": "dense", "schedule": "constant", "learning_rate": 0.5}
    usual |= {"momentum": 0.0, "weight_decay": 0.0, "optimizer": "sgd"}
    config = tiny_run.config("unused", **{**usual, **fields})
    return tiny_run.prepare(config, model=model).experiment


def first_step(experiment):
    """The state before and after the first step, and its batch."""
    state = tiny_run.begin(experiment)
    return state, tiny_run.advance(experiment)(state), tiny_run.batch(experiment, 0)[:2]


def forward(state, images, labels, train=True):
    """`params -> (loss, right answers)`, written out."""

    def loss(params):
        logits, _ = tiny_run.Net().apply(
            {"params": params, **state.model_state},
            images,
            train=train,
            mutable=["batch_stats"],
        )
        log_p = jax.nn.log_softmax(logits)
        right = (logits.argmax(-1) == labels).sum()
        return -log_p[jnp.arange(len(labels)), labels].mean(), right

    return loss


assert_close = functools.partial(problems.assert_close, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("norm", ["batch", "running"])
def test_a_look_at_a_quarter_of_the_batch(norm):
    """SAM's direction from the first 4 of 16 images, all else from all of them."""
    fields = {"probe_fraction": 0.25, "probe_norm": norm}
    experiment = experiment_of(gradient="sam", rho=0.3, **fields)
    state, after, (images, labels) = first_step(experiment)
    part = forward(state, images[:4], labels[:4], train=norm == "batch")
    g = jax.grad(part, has_aux=True)(state.params)[0]
    scale = 0.3 / tree.norm(g)
    eps = jax.tree.map(lambda x: scale * x, g)
    moved = jax.tree.map(jnp.add, state.params, eps)
    whole = forward(state, images, labels)
    (loss, right), g = jax.value_and_grad(whole, has_aux=True)(moved)
    assert_close(after.params, jax.tree.map(lambda w, x: w - 0.5 * x, state.params, g))
    assert float(after.totals.loss) == pytest.approx(float(loss), rel=1e-5)
    assert int(after.totals.correct) == int(right)
    assert float(after.totals.perturbation_norm) == pytest.approx(0.3, rel=1e-5)
    cosine = float(tree.vdot(eps, g)) / (0.3 * float(tree.norm(g)))
    assert float(after.totals.perturbation_cosine) == pytest.approx(cosine, abs=1e-5)


def test_zo_sam_on_the_normalisation_layers_alone_is_one_option():
    options = ("include=*norm*", "directions=rademacher", "num_directions=4")
    fields = {"gradient": "zosam", "rho": 0.25, "gradient_options": options}
    experiment = experiment_of(**fields)
    state = tiny_run.begin(experiment)
    batch = tiny_run.batch(experiment, 0)
    seen = []

    def value_fn(params, **options):
        seen.append(params)
        loss = loss_.value_fn(experiment, state.model_state, state.step, batch)
        return loss(params, **options)

    with jax.disable_jit():
        experiment.gradient.gradient(value_fn, state.params, jax.random.key(0))
    # The ninth pass, at w + eps, is differentiated and so traced.
    probes = [p for p in seen if not isinstance(p["norm"]["bias"], jax.core.Tracer)]
    assert len(probes) == 8
    for at in probes:
        moved = jax.tree.map(jnp.subtract, at, state.params)
        assert np.all(np.abs(moved.pop("norm")["bias"]) > 0)
        assert not any(np.any(x) for x in jax.tree.leaves(moved))
    _, after, _ = first_step(experiment)
    norm = float(after.totals.perturbation_norm)
    assert norm == pytest.approx(0.25, rel=1e-5)


def test_each_part_of_a_batch_has_a_perturbation_and_all_answers_count():
    """microbatches=4: four SAM gradients of four images each, averaged."""
    experiment = experiment_of(
        gradient="sam", rho=0.3, gradient_options=("microbatches=4",)
    )
    state, after, (images, labels) = first_step(experiment)
    losses, rights, found = [], [], []
    for k in range(0, 16, 4):
        part = forward(state, images[k : k + 4], labels[k : k + 4])
        (loss, right), g = jax.value_and_grad(part, has_aux=True)(state.params)
        scale = 0.3 / tree.norm(g)
        moved = jax.tree.map(lambda w, x, s=scale: w + s * x, state.params, g)
        found.append(jax.grad(part, has_aux=True)(moved)[0])
        losses.append(float(loss))
        rights.append(int(right))
    mean = jax.tree.map(lambda *x: sum(x) / 4, *found)
    assert_close(
        after.params, jax.tree.map(lambda w, x: w - 0.5 * x, state.params, mean)
    )
    assert float(after.totals.loss) == pytest.approx(np.mean(losses), rel=1e-5)
    assert float(after.totals.correct) == sum(rights)


def test_losses_of_single_examples():
    experiment = experiment_of(gradient="esam")
    state = tiny_run.begin(experiment)
    whole = tiny_run.batch(experiment, 0)
    value_fn = loss_.value_fn(experiment, state.model_state, state.step, whole)
    batch = whole[:2]
    losses, (_, correct) = value_fn(state.params)
    mean, right = forward(state, *batch)(state.params)
    assert losses.shape == (16,)
    assert float(losses.mean()) == pytest.approx(float(mean), rel=1e-6)
    assert float(correct) == int(right)
    chosen = jnp.array([9, 2, 5])
    losses, (_, correct) = value_fn(state.params, examples=chosen)
    mean, right = forward(state, *(x[chosen] for x in batch))(state.params)
    assert losses.shape == (3,)
    assert float(losses.mean()) == pytest.approx(float(mean), rel=1e-6)
    # Of 3 images, told as if of 16.
    assert float(correct) == pytest.approx(int(right) * 16 / 3)


class Typed(nn.Module):
    """The tiny network, computing in a type."""

    dtype: str = "float32"

    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(8, (3, 3), dtype=self.dtype, name="conv")(x)
        return nn.Dense(4, dtype=self.dtype, name="head")(nn.relu(x).mean((1, 2)))


def test_running_statistics_need_a_batch_norm():
    fields = {"gradient": "sam", "probe_fraction": 0.25, "probe_norm": "running"}
    with pytest.raises(RunError, match="models with BatchNorm; Typed has none"):
        experiment_of(Typed(), **fields)


def test_a_look_in_bfloat16_has_a_loss_in_float32():
    experiment = experiment_of(Typed(), probe_dtype="bfloat16")
    state = tiny_run.begin(experiment)
    batch = tiny_run.batch(experiment, 0)
    images, labels, _ = batch
    arguments = (experiment, state.model_state, state.step, batch)
    plain, _ = loss_.value_fn(*arguments)(state.params)
    look, _ = loss_.value_fn(*arguments, probe=True)(state.params)
    logits = Typed("bfloat16").apply({"params": state.params}, images, train=True)
    assert logits.dtype == jnp.bfloat16
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    expected = -log_p[jnp.arange(16), labels].mean()
    assert look.dtype == jnp.float32
    assert float(look) == pytest.approx(float(expected), rel=1e-6)
    assert float(look) != float(plain)
    assert float(look) == pytest.approx(float(plain), rel=2**-7)
    assert experiment.probes
    assert not experiment_of(Typed(), probe_dtype="float32").probes


@pytest.mark.parametrize(
    ("gradient", "options"),
    [
        ("zosam", ("directions=guided", "every=2")),
        ("looksam", ("every=5",)),
    ],
)
def test_a_method_with_memory_goes_on_with_the_same_bits(tmp_path, gradient, options):
    fields = {"gradient": gradient, "gradient_options": options, "epochs": 2}
    tiny_run.again(tmp_path / "whole", **fields)
    cut = tiny_run.again(tmp_path / "cut", display=tiny_run.Recorder(2), **fields)
    assert cut.status == "interrupted"
    stopped = tiny_run.final(tmp_path / "cut", **fields)
    assert 2 <= int(stopped.step) < 8
    memory = jax.tree.leaves(stopped.opt_state.gradient.memory)
    assert any(np.any(x) for x in memory if np.ndim(x) > 1)
    assert tiny_run.again(tmp_path / "cut", **fields).status == "finished"
    tiny_run.assert_same(
        *(tiny_run.final(tmp_path / name, **fields) for name in ("cut", "whole"))
    )
