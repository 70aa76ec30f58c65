"""The structure that the design promises, as `benchmarks.house` reads the source."""

import ast
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import zosam_jax as zs
from benchmarks import house

pytestmark = pytest.mark.quick

# Bottom-up: a package imports only from the rows above its own in this table, so never
# from a sibling in its row. Facades (`__init__.py`) are seen through.
LAYERS = (
    ("_calls", "_check", "_types", "_version", "_streams"),
    ("_threshold", "_programs", "_operations"),
    ("_options", "tree", "selection"),
    ("estimators",),
    ("zosam_algorithm",),
    ("gradients", "sparsity", "models", "data"),
    ("runs",),
    ("train",),
    ("lottery", "evaluate", "analysis"),
    ("cli",),
)
LAYER = {name: floor for floor, row in enumerate(LAYERS) for name in row}

# Distributions beside jax, numpy and optax, and the packages or modules that may import
# them. What `import zosam_jax` loads is in none of these rows.
HEAVY = {
    "flax": ("models",),
    "PIL": ("data",),
    "scipy": ("data", "runs"),
    "tensorflow_datasets": ("data",),
    "sklearn": ("data",),
    "grain": ("data",),
    "absl": ("data",),
    "google": ("data",),
    "ml_dtypes": ("runs", "train"),
    "orbax": ("train",),
    "tensorboardX": ("runs.trackers",),
    "matplotlib": ("analysis", "cli", "evaluate", "sparsity.reports.picture"),
    "plotly": ("analysis.interactive",),
    "rich": ("cli", "runs"),
    "tyro": ("cli",),
    "jinja2": ("cli",),
}
LIGHT = {"jax", "numpy", "optax", "zosam_jax", *sys.stdlib_module_names}

# What is measured may not exceed these bounds.
PACKAGE_FLOORS = 8
MODULE_FLOORS = 12
TRAIN_FLOORS = 7
BARE_ANY = 0.04
FUNCTIONS_OVER_45_LINES = 20
EXAMPLES = 0.2  # Of the public functions, at least.
FILE_LINES = 600
PAGE_LINES = 130


def short(name: str) -> str:
    return name.removeprefix("zosam_jax").removeprefix(".")


@pytest.fixture(scope="module")
def modules():
    return house.read(house.ROOT)


@pytest.fixture(scope="module")
def graph(modules):
    return house.import_graph(modules)


@pytest.fixture(scope="module")
def packages(modules):
    return house.package_graph(modules)


@pytest.fixture(scope="module")
def measured():
    return house.measure(house.ROOT)


def test_every_package_has_a_layer(packages):
    assert set(packages) == set(LAYER)


@pytest.mark.parametrize("package", LAYER)
def test_a_package_imports_only_from_layers_below(package, packages):
    above = {p for p in packages[package] if LAYER[p] >= LAYER[package]}
    assert above == set()


def test_the_layers_are_few(measured):
    assert measured["package_floors"] <= PACKAGE_FLOORS


def test_import_paths_are_short(graph):
    path = house.longest_path(graph)
    assert len(path) <= MODULE_FLOORS, "\n".join(path)


def test_import_paths_within_the_trainer_are_short(graph):
    path = house.longest_path(house.inside(graph, "zosam_jax.train."))
    assert len(path) <= TRAIN_FLOORS, "\n".join(path)


def test_no_modules_import_each_other(modules):
    """Imports for type checkers count too."""
    assert house.cycles(house.import_graph(modules, checking=True)) == []


def test_the_package_does_not_import_its_facade(modules):
    users = [
        name
        for name, module in modules.items()
        if "zosam_jax" in {house.target(i, modules) for i in house.imports(module)}
    ]
    assert users == []


def test_heavy_imports_stand_where_they_belong(modules):
    found = [
        (short(name), top)
        for name, module in modules.items()
        for top in {i.top for i in house.imports(module)} - LIGHT
        if not f"{short(name)}.".startswith(tuple(f"{o}." for o in HEAVY.get(top, ())))
    ]
    assert found == []


def test_the_table_of_heavy_imports_has_no_spare_rows(modules):
    used = {i.top for module in modules.values() for i in house.imports(module)}
    assert set(HEAVY) <= used


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


def test_the_page_is_short_and_stands_on_little(modules):
    page = modules["zosam_jax.zosam_algorithm"]
    assert len(page.text.splitlines()) <= PAGE_LINES
    tops = {i.top for i in house.imports(page)}
    assert tops <= {"collections", "typing", "jax", "zosam_jax"}


def test_files_are_of_a_readable_size(modules):
    long = [n for n, m in modules.items() if len(m.text.splitlines()) > FILE_LINES]
    assert long == []


def test_files_are_finished_and_named_by_what_they_hold(modules):
    for name, module in modules.items():
        assert not house.unfinished(module), name
        assert "NotImplementedError" not in module.text, name
        assert module.path.name not in ("utils.py", "helpers.py", "common.py")
        assert ast.get_docstring(module.tree) or not module.text.strip(), name


def test_few_functions_are_long(measured):
    assert measured["functions_over_45_lines"] <= FUNCTIONS_OVER_45_LINES


def test_arguments_say_what_they_are(measured):
    assert measured["typed_share"] == 1.0
    assert measured["bare_any_share"] <= BARE_ANY


def test_a_fifth_of_the_public_functions_has_an_example(measured):
    assert measured["example_share"] >= EXAMPLES


def test_no_name_of_a_package_shadows_a_module(modules):
    """Otherwise `zosam_jax.x` is a module or a function, by the order of imports."""
    found = [
        f"{name}.{imported.alias}"
        for name, module in modules.items()
        if module.facade
        for imported in house.imports(module)
        if house.target(imported, modules) != f"{name}.{imported.alias}"
    ]
    assert [name for name in found if name in modules] == []


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


def test_the_guide_to_the_tests_names_what_is_there():
    tests = Path(__file__).parent
    text = (tests / "README.md").read_text()
    named = set(re.findall(r"`([\w/]+(?:\.py|/))`", text))
    assert [name for name in named if not (tests / name).exists()] == []
    folders = {f"{path.parent.name}/" for path in tests.glob("*/test_*.py")}
    assert folders | {path.name for path in tests.glob("*.py")} <= named


def test_no_two_test_files_have_the_same_name():
    """Pytest imports them by their names alone."""
    names = [path.name for path in Path(__file__).parent.rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))
