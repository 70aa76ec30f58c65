"""A configuration is resolved once, above everything that computes."""

import ast
import collections
import functools
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_run

from zosam_jax.gradients import registry as gradients
from zosam_jax.sparsity import registry as methods
from zosam_jax.train import option_strings, step

TRAIN = Path(step.__file__).parent
# What computes with the resolved objects.
COMPUTING = ("experiment", "batch", "loss", "criteria", "accuracy", "step")
COMPUTING += ("compiled_run", "lanes", "recording", "session", "resume")
NAMES = ("build", "choices", "named_gradient", "named_method", "optimizers", "registry")
NAMES += ("learning_rates",)


@pytest.fixture
def counted(monkeypatch):
    """Counts the constructions of gradients and methods, and parsed option strings."""
    counts = collections.Counter()

    def counting(what, function):
        @functools.wraps(function)
        def wrapper(*args, **kwargs):
            counts[what] += 1
            return function(*args, **kwargs)

        return wrapper

    for what, table in (("gradient", gradients.METHODS), ("method", methods.METHODS)):
        for name, row in table.items():
            row = row._replace(make=counting(what, row.make))
            monkeypatch.setitem(table, name, row)
    monkeypatch.setattr(
        option_strings, "parse", counting("options", option_strings.parse)
    )
    return counts


@pytest.mark.parametrize(("method", "made"), [("set", 3), ("snip", 4), ("dense", 0)])
def test_a_run_makes_its_gradient_once(tmp_path, counted, method, made):
    """And its method for the run and in both programs that are given the seed as data.

    A criterion makes its method once more, for the first batch.
    """
    fields = {"method": method, "gradient": "sam", "epochs": 1}
    if method == "dense":
        fields["update_interval"] = None
    tiny_run.train(tmp_path / "run", **fields)
    # The options of the model, of the method and of the gradient.
    expected = {"gradient": 1, "method": made, "options": 3}
    assert counted == {k: v for k, v in expected.items() if v}


@pytest.mark.parametrize("module", COMPUTING)
def test_what_computes_knows_no_names(module):
    tree = ast.parse((TRAIN / f"{module}.py").read_text())
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.module is not None
            imported |= {f"{node.module}.{alias.name}" for alias in node.names}
            imported |= {node.module} - {"zosam_jax"}
        elif isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
    assert "zosam_jax" not in imported
    assert not {name.rpartition(".")[2] for name in imported} & set(NAMES)


def test_the_configuration_knows_nothing_of_the_library():
    program = (
        "import sys, zosam_jax; before = set(sys.modules)\n"
        "import zosam_jax.train, zosam_jax.lottery\n"
        "from zosam_jax.runs import config\n"
        "new = {m.partition('.')[0] for m in set(sys.modules) - before}\n"
        "sys.exit(', '.join(new & {'flax', 'orbax', 'tensorflow_datasets'}) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
