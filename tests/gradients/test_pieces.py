"""Rows of one's own: which pieces fit, and what comes with them for free."""

import dataclasses
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from family import network
from problems import half_masks

import zosam_jax as zs
from zosam_jax import tree
from zosam_jax.gradients import (
    Ascent,
    Combination,
    Descent,
    ExampleLook,
    Geometry,
    GradientLook,
    Intermittent,
    Look,
    LossLook,
    OccasionalLook,
    Row,
    ascents,
    combinations,
    geometries,
    sharpness_aware,
)

KEY = jax.random.key(0)
EXAMPLE = Path(__file__).parents[2] / "examples" / "own_ascent.py"
sign_sam = runpy.run_path(str(EXAMPLE))["sign_sam"]


def ascent(gives):
    return Ascent(lambda point, memory: gives, gives)


READERS = {
    "descent": {"descent": Descent(needs=ExampleLook)},
    "combination": {"combination": combinations.mixed(0.5)},
    "loss": {"combination": Combination(needs=LossLook)},
    "intermittent": {"combination": Intermittent(due=None, reuse=None)},
}


@pytest.mark.parametrize(
    ("gives", "reader", "message"),
    [
        (GradientLook, "descent", "descent needs the gradient and the losses of the"),
        (LossLook, "combination", r"needs the gradient at w \(GradientLook\), and its"),
        (Look, "combination", r"ascent gives a direction alone \(Look\)"),
        (OccasionalLook, "loss", "gives the loss at w in some steps"),
        (Look, "intermittent", "combination needs the gradient at w"),
    ],
)
def test_pieces_that_do_not_fit_are_refused_when_the_row_is_made(
    gives, reader, message
):
    with pytest.raises(TypeError, match=message):
        Row(ascent(gives), **READERS[reader])


def test_other_wrong_rows_are_refused_too():
    with pytest.raises(TypeError, match=r"Row\(geometry=...\) must be of zs.gradients"):
        Row(ascents.gradient(), geometry=geometries.l2)
    with pytest.raises(TypeError, match="an ascent of 2 steps must give the gradient"):
        Row(dataclasses.replace(ascent(LossLook), steps=2))


def test_what_is_derived_from_the_pieces():
    assert Row(ascents.gradient()).aux_from == "ascent"
    assert Row(ascents.gradient()).direction_only
    assert Row(ascent(LossLook)).aux_from == "descent"
    assert Row(ascent(OccasionalLook)).direction_only
    assert not Row(ascent(Look)).direction_only
    mixed = Row(ascents.gradient(), combination=combinations.mixed(0.5))
    assert not mixed.direction_only
    assert not mixed.takes_another_loss
    other = combinations.mixed(0.5, same_loss=False)
    assert Row(ascents.gradient(), combination=other).takes_another_loss


def test_a_look_of_another_class_than_promised_is_refused():
    tx = sharpness_aware(
        "mine", Row(Ascent(lambda point, memory: Look(point.params), LossLook)), 0.1
    )
    with pytest.raises(
        TypeError, match="returned Look; it says that it gives LossLook"
    ):
        tx.gradient(lambda w: w @ w, jnp.ones(2))


def test_losses_by_example_must_be_asked_for():
    def look(point, memory):
        losses, _ = point.losses.each(point.params, "ascent", None)
        return Look(point.params * losses.mean())

    tx = sharpness_aware("mine", Row(Ascent(look, Look)), 0.1)
    with pytest.raises(TypeError, match="must say by_example=True"):
        tx.gradient(lambda w: w @ w, jnp.ones(2))
    tx = sharpness_aware("mine", Row(Ascent(look, Look, by_example=True)), 0.1)
    assert tx.by_example


def test_an_own_geometry_is_a_function():
    """The maximum norm by a geometry is that by an ascent."""

    def signs(direction, params, support):
        return jax.tree.map(jnp.sign, direction), tree.norm(direction)

    params, losses = network()
    loss = lambda p: jnp.mean(losses(p))  # noqa: E731
    own = sharpness_aware("mine", Row(ascents.gradient(), Geometry(signs)), 0.1)
    expected = sign_sam(0.1).gradient(loss, params)
    found = own.gradient(loss, params)
    jax.tree.map(np.testing.assert_array_equal, found.grad, expected.grad)


def test_an_own_ascent_has_all_shared_options():
    params, losses = network()
    masks = half_masks(params)
    params = tree.mask(params, masks)
    loss = lambda p: jnp.mean(losses(p))  # noqa: E731
    schedule = optax.linear_schedule(0.4, 0.0, 4)
    tx = sign_sam(schedule, include="out/*", has_aux=True, aux_from="descent")
    seen = tx.gradient(lambda p: (loss(p), p), params, step=1, masks=masks)
    grad = jax.grad(loss)(params)
    expected = jax.tree.map(
        lambda w, g, m: w + 0.3 * m * jnp.sign(g), params, grad, masks
    )
    np.testing.assert_array_equal(
        seen.aux["hidden"]["kernel"], params["hidden"]["kernel"]
    )
    for leaf in ("bias", "kernel"):
        np.testing.assert_allclose(
            seen.aux["out"][leaf], expected["out"][leaf], rtol=1e-6
        )
    parts = sign_sam(0.1, microbatches=2).gradient(losses, params, masks=masks)
    assert float(parts.value) == pytest.approx(float(loss(params)), rel=1e-6)
    with pytest.raises(ValueError, match="needs step="):
        tx.gradient(lambda p: (loss(p), p), params)


@pytest.mark.parametrize("make", [zs.sam, zs.zosam, zs.rwp])
def test_with_options_is_the_constructor_with_them(make):
    params, losses = network()
    options = {"has_aux": True, "aux_from": "descent", "exclude": "*/bias", "seed": 2}
    value_fn = lambda p: (jnp.mean(losses(p)), p)  # noqa: E731
    made = [make(0.2, exclude="*/bias").with_options(**options | {"seed": 2})]
    made.append(make(0.2, **options))
    found = []
    for tx in made:
        _, state = tx.update(None, tx.init(params), params, value_fn=value_fn)
        found.append(zs.estimate(state))
    jax.tree.map(np.testing.assert_array_equal, found[0].aux, found[1].aux)


def test_with_options_checks_them():
    with pytest.raises(ValueError, match="Say every=1"):
        zs.zosam(every=2).with_options(microbatches=2)
    with pytest.raises(TypeError, match="unexpected keyword argument 'microbatches'"):
        zs.zeroth_order().with_options(microbatches=2)


def test_with_options_keeps_the_others():
    needs = {"aesam": {"total_steps": 10}, "sampa": {"learning_rate": 0.1}}
    for name, method in zs.gradients.METHODS.items():
        made = method.make(**needs.get(name, {})).with_options(has_aux=True)
        again = made.with_options(seed=2)
        assert (again.option("has_aux"), again.option("seed")) == (True, 2), name
        assert again.option("no such option", "default") == "default"


def test_the_facts_of_an_estimator():
    made = zs.wsam(0.3, decouple=True)
    assert (made.name, made.rho, made.decoupled) == ("wsam", 0.3, True)
    assert zs.backprop().rho is None
    assert not zs.zeroth_order().dense
    assert not zs.zosam(descent="zeroth_order").dense
    only = {"sam", "asam", "fsam", "vasso", "ssam", "zosam"}
    needs = {"aesam": {"total_steps": 10}, "sampa": {"learning_rate": 0.1}}
    for name, method in zs.gradients.METHODS.items():
        made = method.make(**needs.get(name, {}))
        assert made.name == name
        assert made.direction_only == (name in only), name
        assert made.by_example == (name in {"esam", "ssam"})
    assert zs.esam(gamma=1.0).direction_only


def test_own_estimators_can_be_made_anew():
    def gradient(value_fn, params, *, key, **rest):
        del rest
        grad = jax.grad(value_fn)(params)
        return zs.Estimate(jax.random.uniform(key), grad, None, zs.Info.zeros())

    tx = zs.as_transformation("mine", gradient)
    values = []
    for seed in (0, 1):
        made = tx.with_options(seed=seed)
        _, state = made.update(None, made.init(1.0), 1.0, value_fn=lambda w: w**2)
        values.append(float(zs.estimate(state).value))
    assert values[0] != values[1]
