"""What `help` and `print` say of the package and its objects."""

import ast
import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import optax
import pytest

import zosam_jax as zs
from zosam_jax.lottery.config import LotteryOptions
from zosam_jax.runs.config import TrainConfig

pytestmark = pytest.mark.quick


def test_help_lists_every_public_name_by_group():
    """Those that the facade imports as `X as X`, and the modules of `dir`."""
    body = ast.parse(Path(zs.__file__).read_text()).body
    imports = [node for node in body if isinstance(node, ast.ImportFrom)]
    names = {a.name for node in imports for a in node.names if a.asname == a.name}
    pure = {name for name in names if name.endswith("_gradient")}
    words = set(re.findall(r"\w+", zs.__doc__ or ""))
    assert names - pure - words == {"__version__"}
    assert {name.removesuffix("_gradient") for name in pure} <= words


@pytest.mark.parametrize("kind", [TrainConfig, LotteryOptions])
def test_help_of_a_configuration_has_the_texts_of_its_fields(kind):
    _, _, texts = kind.__doc__.partition("Attributes:")
    lines = texts.splitlines()
    for field in dataclasses.fields(kind):
        (line,) = (x for x in lines if x.startswith(f"  {field.name}: "))
        assert len(line) > len(field.name) + 10
    assert max(map(len, lines)) <= 88


ROW = zs.gradients.Row(zs.gradients.ascents.gradient())
GRADIENT, METHOD = zs.sam(rho=0.1, ascent_fraction=0.25), zs.sparsity
SHOWN = [
    (zs.zosam(), "zs.zosam(rho=0.05)"),
    (zs.backprop(), "zs.backprop()"),
    (zs.zeroth_order(num_directions=4), "zs.zeroth_order(num_directions=4)"),
    (GRADIENT, "zs.sam(rho=0.1, ascent_fraction=0.25)"),
    (zs.sam(optax.constant_schedule(1.0)), "zs.sam(rho=constant_schedule.<lambda>)"),
    (zs.sam(jnp.ones(())), "zs.sam(rho=float32[])"),
    (zs.sam(steps=1, include=("a", "b")), "zs.sam(rho=0.05, include=('a', 'b'))"),
    (GRADIENT.with_options(ascent_fraction=0.25), f"{GRADIENT}"),
    (GRADIENT.with_options(seed=3), f"{GRADIENT}.with_options(seed=3)"),
    (
        zs.late(zs.every(GRADIENT, 2), 100).with_options(has_aux=True),
        f"zs.late(zs.every({GRADIENT}, interval=2), start=100)"
        ".with_options(has_aux=True)",
    ),
    (
        zs.randomly(zs.when(zs.random_sign(), bool), 0.5, seed=1),
        "zs.randomly(zs.when(zs.random_sign(rho=0.05), predicate=bool), "
        "probability=0.5, seed=1)",
    ),
    (
        METHOD.rigl(0.9, 1000, dense=("head/*",)),
        "zs.sparsity.rigl(sparsity=0.9, total_steps=1000, dense=('head/*',))",
    ),
    (
        METHOD.dynamic(0.9, 1000, drop="random", grow=METHOD.scores.gradient),
        "zs.sparsity.dynamic(sparsity=0.9, total_steps=1000, drop='random', "
        "grow=gradient)",
    ),
    (
        METHOD.static(masks={"w": jnp.ones((2, 3), bool)}),
        "zs.sparsity.static(masks={'w': bool[2,3]})",
    ),
    (METHOD.static(0.5)._replace(call=""), "<static: sparse method with fixed masks>"),
    (
        zs.gradients.sharpness_aware("mine", ROW, 0.1),
        "<mine: gradient estimator, rho=0.1>",
    ),
]


@pytest.mark.parametrize(("made", "text"), SHOWN, ids=[text for _, text in SHOWN])
def test_an_object_shows_the_call_that_made_it(made, text):
    assert repr(made) == str(made) == text


def test_heavy_modules_come_when_they_are_asked_for():
    program = (
        "import sys, zosam_jax as zs\n"
        "assert 'flax' not in sys.modules\n"
        "assert {'models', 'data', 'train', 'evaluate', 'analysis'} <= set(dir(zs))\n"
        "assert zs.analysis.roughness([1.0, 3.0]) == 1 and 'flax' not in sys.modules\n"
        "assert zs.models.names()[0] == 'resnet20'\n"
        "assert zs.train.TrainConfig().model == 'resnet20'\n"
        "try: zs.nothing\n"
        "except AttributeError as error: assert 'nothing' in str(error)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
