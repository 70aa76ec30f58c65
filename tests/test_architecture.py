"""The structure that the design promises, read from the source."""

import ast
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import zosam_jax as zs

PACKAGE = Path(zs.__file__).parent
MODULES = {
    ".".join(("zosam_jax", *path.relative_to(PACKAGE).with_suffix("").parts)): path
    for path in sorted(PACKAGE.rglob("*.py"))
}

# A module imports only from layers above its own, or from its own package.
LAYERS = [
    ["_check", "_types"],
    ["tree", "_threshold", "calibration"],
    ["selection"],
    ["estimators", "models", "data"],
    ["sparsity.scores", "sparsity.budgets", "sparsity._packing"],
    ["sparsity._flops", "sparsity._flow", "sparsity._table"],
    ["sparsity._picture"],
    ["sparsity._findings"],
    ["sparsity._groups"],
    ["transformation", "sparsity._masks", "sparsity._method"],
    ["sparsity._tickets"],
    ["sparsity._schedules"],
    ["sparsity._prune_and_grow"],
    ["sharpness", "zo_optimizers", "sparsity._initialization"],
    ["sparsity._dynamic", "sparsity._dense_to_sparse", "sparsity._dsr"],
    ["sparsity._mest", "sparsity._nm", "sparsity._srigl", "sparsity._units"],
    ["zosam", "sparsity._static", "sparsity._sparsify"],
    ["sparsity._report"],
    ["sparsity"],
    ["__init__"],
    ["train"],
    ["report", "evaluation_report"],
    ["cli"],
    ["__main__"],
]
HEAVY = {
    "flax": ("models", "train"),
    "tensorflow_datasets": ("data",),
    "sklearn": ("data",),
    "grain": ("data",),
    "orbax": ("train",),
    "matplotlib": ("report", "evaluation_report", "sparsity._picture"),
    "rich": ("train", "report", "evaluation_report", "cli"),
    "tyro": ("cli",),
    "tensorboardX": ("train",),
}


def layer(module: str) -> tuple[int, str]:
    """Layer and the name that stands for the module in `LAYERS`."""
    name = module.removeprefix("zosam_jax").removeprefix(".").removesuffix(".__init__")
    name = name or "__init__"
    names = {n: i for i, row in enumerate(LAYERS) for n in row}
    while name not in names:
        assert "." in name, f"{module} has no layer"
        name = name.rpartition(".")[0]
    return names[name], name


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                known = full in MODULES or f"{full}.__init__" in MODULES
                found.add(full if known else node.module)
    return found


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_layers_above(module):
    own_layer, own_name = layer(module)
    for target in imports(MODULES[module]):
        if target.partition(".")[0] != "zosam_jax":
            for package, owners in HEAVY.items():
                if target.partition(".")[0] == package:
                    own = {own_name, own_name.partition(".")[0]}
                    assert own & set(owners), f"{module}: {target}"
            continue
        target_layer, target_name = layer(target)
        assert target_name == own_name or target_layer < own_layer, (
            f"{module} imports {target}"
        )


def test_the_library_pulls_in_jax_and_optax_alone():
    program = (
        "import sys, jax, optax; before = set(sys.modules); import zosam_jax;"
        "print(*{m.partition('.')[0] for m in set(sys.modules) - before})"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ,
    )
    found = set(result.stdout.split()) - set(sys.stdlib_module_names)
    assert found - {"jax", "jaxlib"} == {"zosam_jax"}


@pytest.mark.parametrize("module", MODULES)
def test_files_are_of_a_readable_size_and_finished(module):
    text = MODULES[module].read_text()
    assert len(text.splitlines()) <= 400
    assert not re.search(r"\b(TODO|FIXME|XXX|NotImplementedError)\b", text)
    assert MODULES[module].name not in ("utils.py", "helpers.py", "common.py")
    assert ast.get_docstring(ast.parse(text)) or not text.strip()


def public_names():
    for namespace, prefix in ((zs, "zs"), (zs.sparsity, "zs.sparsity")):
        for name, value in vars(namespace).items():
            if not name.startswith("_") and not inspect.ismodule(value):
                yield pytest.param(value, id=f"{prefix}.{name}")


@pytest.mark.parametrize("value", list(public_names()))
def test_public_names_are_documented(value):
    doc = inspect.getdoc(value)
    assert doc
    if inspect.isfunction(value):
        for name, parameter in inspect.signature(value).parameters.items():
            assert re.search(rf"\b{name}\b", doc) or "as in `dynamic`" in doc, name
            assert parameter.annotation is not parameter.empty


def test_set_does_not_shadow_the_builtin():
    assert not hasattr(zs.sparsity, "set")
    assert zs.sparsity.set_ is not set
