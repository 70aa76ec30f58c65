"""What `help` and `print` say of the package and its objects."""

import ast
import dataclasses
import re
import subprocess
import sys
from pathlib import Path

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


def test_objects_say_what_they_are():
    assert str(zs.zosam()) == "<zosam: gradient estimator, rho=0.05>"
    assert repr(zs.backprop()) == "<backprop: gradient estimator>"
    rising = zs.sam(rho=optax.linear_schedule(0.0, 0.1, 10))
    assert str(rising) == "<sam: gradient estimator, rho=a schedule>"
    assert (
        str(zs.sparsity.rigl(0.9, 1000)) == "<rigl: sparse method with changing masks>"
    )
    assert str(zs.sparsity.static(0.9)) == "<static: sparse method with fixed masks>"


def test_heavy_modules_come_when_they_are_asked_for():
    program = (
        "import sys, zosam_jax as zs\n"
        "assert 'flax' not in sys.modules\n"
        "assert {'models', 'data', 'train', 'lottery', 'evaluate'} <= set(dir(zs))\n"
        "assert zs.models.names()[0] == 'resnet20'\n"
        "assert zs.train.TrainConfig().model == 'resnet20'\n"
        "try: zs.nothing\n"
        "except AttributeError as error: assert 'nothing' in str(error)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
