"""Measures the structure of a Python package from its source, without importing it.

    python -m benchmarks.house
    python -m benchmarks.house --root ../other/package --json runs/house.json

The floor of a module is the length of the longest import path from it down to a module
that imports nothing of the package. Low floors mean that a reader follows few files to
understand one. Facades (`__init__.py`) and imports under `TYPE_CHECKING` are left out;
imports inside functions count.
"""

import ast
import functools
import io
import json
import re
import statistics
import subprocess
import tokenize
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import command_line

Graph = Mapping[str, set[str]]
Function = ast.FunctionDef | ast.AsyncFunctionDef

ROOT = Path(__file__).parents[1] / "zosam_jax"
MANY_ARGUMENTS = 3  # From here on a public docstring needs an Args section.
UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")


class Module(NamedTuple):
    """A source file of a package.

    Attributes:
      name: Dotted name; the facade of a package has the package's name.
      path: The file.
      text: Its source.
      tree: Its syntax tree.
    """

    name: str
    path: Path
    text: str
    tree: ast.Module

    @property
    def facade(self) -> bool:
        """Whether the file is an `__init__.py`, or the `__main__.py` of the package."""
        return self.path.name in ("__init__.py", "__main__.py")


def read(root: Path) -> dict[str, Module]:
    """Returns the modules of the package in the folder `root`, by dotted name."""
    modules = {}
    for path in sorted(root.rglob("*.py")):
        parts = (root.name, *path.relative_to(root).with_suffix("").parts)
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        text = path.read_text()
        modules[name] = Module(name, path, text, ast.parse(text))
    return modules


# Imports.


class Import(NamedTuple):
    """An imported name.

    Attributes:
      alias: What the module calls it.
      source: The module it comes from, absolute.
      name: Its name there; "" in `import source`.
      checking: Whether it stands under `TYPE_CHECKING`.
    """

    alias: str
    source: str
    name: str
    checking: bool

    @property
    def top(self) -> str:
        """The distribution's top-level name."""
        return self.source.partition(".")[0]


@functools.cache
def imports(module: Module) -> list[Import]:
    """Returns every import of a module, those inside functions too."""
    found = []
    pending: list[tuple[ast.AST, bool]] = [(module.tree, False)]
    while pending:
        node, checking = pending.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            pending += [(child, True) for child in node.body]
            pending += [(child, checking) for child in node.orelse]
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                bound = alias.asname or alias.name.partition(".")[0]
                found.append(Import(bound, alias.name, "", checking))
        elif isinstance(node, ast.ImportFrom):
            source = _absolute(module, node)
            found += [
                Import(alias.asname or alias.name, source, alias.name, checking)
                for alias in node.names
            ]
        pending += [(child, checking) for child in ast.iter_child_nodes(node)]
    return found


def _absolute(module: Module, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    parts = module.name.split(".")
    parts = parts[: len(parts) - node.level + (module.path.name == "__init__.py")]
    return ".".join([*parts, node.module] if node.module else parts)


def target(imported: Import, modules: Mapping[str, Module]) -> str | None:
    """Returns the module or facade that an import names, None outside the package."""
    for name in (f"{imported.source}.{imported.name}", imported.source):
        if name in modules:
            return name
    return None


def import_graph(
    modules: Mapping[str, Module], checking: bool = False
) -> dict[str, set[str]]:
    """Returns the modules of the package that each module imports.

    Facades are seen through: a name imported from one, or used as its attribute, counts
    as an import of the module that defines it.

    Args:
      modules: The package.
      checking: Whether imports under `TYPE_CHECKING` count.
    """
    return {
        name: _resolved(module, modules, checking) - {name}
        for name, module in modules.items()
        if not module.facade
    }


def _resolved(
    module: Module, modules: Mapping[str, Module], checking: bool
) -> set[str]:
    found: set[str] = set()
    for imported in imports(module):
        if imported.checking and not checking:
            continue
        name = target(imported, modules)
        if name is None:
            continue
        if not modules[name].facade:
            found.add(name)
        elif name == imported.source and imported.name:
            found |= _defining(name, (imported.name,), modules)
        else:
            for chain in _uses(module.tree, imported.alias):
                found |= _defining(name, chain, modules)
    return found


def _uses(tree: ast.AST, alias: str) -> set[tuple[str, ...]]:
    """Returns the attribute chains on a name: `("b", "c")` for `alias.b.c`."""
    found = set()
    inner = set()
    for node in ast.walk(tree):
        chain: list[str] = []
        base: ast.AST = node
        while isinstance(base, ast.Attribute):
            inner.add(id(base.value))
            chain.insert(0, base.attr)
            base = base.value
        if isinstance(base, ast.Name) and base.id == alias and id(node) not in inner:
            found.add(tuple(chain))
    return found


def _defining(
    facade: str, chain: tuple[str, ...], modules: Mapping[str, Module]
) -> set[str]:
    """Returns the modules behind an attribute of a facade; all, if it is unknown."""
    known = imports(modules[facade])
    for imported in known:
        if chain and imported.alias == chain[0]:
            name = target(imported, modules)
            if name is None:
                return set()
            if not modules[name].facade:
                return {name}
            attribute = name == imported.source and imported.name
            return _defining(name, chain if attribute else chain[1:], modules)
    if chain and f"{facade}.{chain[0]}" in modules:
        name = f"{facade}.{chain[0]}"
        return _defining(name, chain[1:], modules) if modules[name].facade else {name}
    if chain and _defines(modules[facade].tree, chain[0]):
        return set()
    found = set()
    for imported in known:
        name = target(imported, modules)
        if name is not None:
            found |= (
                {name} if not modules[name].facade else _defining(name, (), modules)
            )
    return found


def _defines(tree: ast.Module, name: str) -> bool:
    return any(
        name in (getattr(node, "name", ""), *_assigned(node)) for node in tree.body
    )


def _assigned(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.AnnAssign):
        return [ast.unparse(node.target)]
    return (
        [ast.unparse(t) for t in node.targets] if isinstance(node, ast.Assign) else []
    )


def package_graph(modules: Mapping[str, Module]) -> dict[str, set[str]]:
    """Returns what each top-level package or module imports of the others."""
    graph: dict[str, set[str]] = {}
    for name, targets in import_graph(modules).items():
        own = package(name)
        graph.setdefault(own, set()).update({package(t) for t in targets} - {own})
    return graph


def package(name: str) -> str:
    """Returns the top-level package or module that a module belongs to.

    >>> package("zosam_jax.data.augment.crops")
    'data'
    """
    return ".".join(name.split(".")[1:2])


def inside(graph: Graph, prefix: str) -> dict[str, set[str]]:
    """Returns the part of a graph whose names begin with `prefix`."""
    return {
        name: {target for target in targets if target.startswith(prefix)}
        for name, targets in graph.items()
        if name.startswith(prefix)
    }


# Paths and cycles.


def cycles(graph: Graph) -> list[list[str]]:
    """Returns the groups of two or more modules that import each other."""
    return sorted(group for group in _components(graph) if len(group) > 1)


def _components(graph: Graph) -> list[list[str]]:
    """Strongly connected components, each after those it points to (Tarjan)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in sorted(graph[node]):
            if target not in index:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            start = stack.index(node)
            found.append(sorted(stack[start:]))
            del stack[start:]

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return found


def longest_path(graph: Graph) -> list[str]:
    """Returns the longest import path, top first; of a cycle, one member."""
    best: dict[str, list[str]] = {}
    longest: list[str] = []
    for group in _components(graph):
        targets = {t for node in group for t in graph[node]} - set(group)
        below = max((best[t] for t in sorted(targets)), key=len, default=[])
        path = [group[0], *below]
        best |= dict.fromkeys(group, path)
        longest = max(longest, path, key=len)
    return longest


def floors(graph: Graph) -> int:
    """Returns the length of the longest import path."""
    return len(longest_path(graph))


# Functions, docstrings, comments.


class Described(NamedTuple):
    """A function or method.

    Attributes:
      name: Dotted name, with its class.
      node: Its syntax tree.
      public: Whether neither it nor what contains it is private or inside a function.
    """

    name: str
    node: Function
    public: bool

    @property
    def lines(self) -> int:
        """Its lines without decorators and docstring."""
        end = self.node.end_lineno or self.node.lineno
        return end - self.node.lineno + 1 - _docstring_lines(self.node)

    @property
    def arguments(self) -> list[ast.arg]:
        """Its arguments, `self` and `cls` aside."""
        args = self.node.args
        every = [*args.posonlyargs, *args.args, *args.kwonlyargs]
        every += [a for a in (args.vararg, args.kwarg) if a is not None]
        return [a for a in every if a.arg not in ("self", "cls")]

    @property
    def docstring(self) -> str:
        """Its docstring, or ""."""
        return ast.get_docstring(self.node) or ""


def functions(module: Module) -> list[Described]:
    """Returns every function and method of a module, those inside functions too."""
    found = []

    def visit(node: ast.AST, prefix: str, public: bool) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, Function):
                name, shown = f"{prefix}.{child.name}", public and _public(child.name)
                found.append(Described(name, child, shown))
                visit(child, name, False)
            elif isinstance(child, ast.ClassDef):
                visit(child, f"{prefix}.{child.name}", public and _public(child.name))
            else:
                visit(child, prefix, public)

    visit(module.tree, module.name, True)
    return found


def _public(name: str) -> bool:
    return not name.startswith("_")


def _docstring_lines(node: ast.AST) -> int:
    if isinstance(node, ast.Module | ast.ClassDef | Function) and node.body:
        first = node.body[0]
        value = first.value if isinstance(first, ast.Expr) else None
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            return (first.end_lineno or first.lineno) - first.lineno + 1
    return 0


def docstring_lines(module: Module) -> int:
    """Returns the number of lines that docstrings take."""
    return sum(_docstring_lines(node) for node in ast.walk(module.tree))


def comment_lines(module: Module) -> int:
    """Returns the number of lines with a comment that explains, a licence aside."""
    tokens = tokenize.generate_tokens(io.StringIO(module.text).readline)
    comments = [t for t in tokens if t.type == tokenize.COMMENT]
    ignored = re.compile(r"#\s*(!|noqa|pyright:|type:|fmt:|copyright|licen[cs]e)", re.I)
    return sum(not ignored.match(t.string) for t in comments)


def bare_any(argument: ast.arg) -> bool:
    """Whether an argument is annotated with `Any` and nothing more.

    >>> bare_any(ast.parse("def f(x: Any, y: list[Any]): ...").body[0].args.args[0])
    True
    """
    note = argument.annotation
    return note is not None and ast.unparse(note) in ("Any", "typing.Any")


def unfinished(module: Module) -> int:
    """Returns the number of marks of unfinished work."""
    return len(UNFINISHED.findall(module.text))


# The measurement.


def measure(root: Path) -> dict[str, Any]:
    """Returns the measurements of the package in the folder `root`, as plain data."""
    modules = read(root)
    graph = import_graph(modules)
    packages = sorted({package(name) for name in graph if name.count(".") > 1})
    return {
        "package_floors": floors(package_graph(modules)),
        "module_floors": floors(graph),
        "floors_within": {
            name: floors(inside(graph, f"{root.name}.{name}.")) for name in packages
        },
        "longest_path": longest_path(graph),
        "cycles": cycles(import_graph(modules, checking=True)),
        "package_cycles": cycles(package_graph(modules)),
        **_sizes(modules),
        **_signatures([f for module in modules.values() for f in functions(module)]),
        "todos": sum(unfinished(module) for module in modules.values()),
    }


def _sizes(modules: Mapping[str, Module]) -> dict[str, Any]:
    lines = {name: len(m.text.splitlines()) for name, m in modules.items()}
    total = sum(lines.values())
    return {
        "files": len(modules),
        "lines": total,
        "lines_median": statistics.median(lines.values()),
        "lines_max": max(lines.values()),
        "longest_file": max(lines, key=lambda name: lines[name]),
        "docstring_share": _share(map(docstring_lines, modules.values()), total),
        "comment_share": _share(map(comment_lines, modules.values()), total),
    }


def _signatures(found: list[Described]) -> dict[str, Any]:
    lines = sorted(f.lines for f in found)
    arguments = [a for f in found for a in f.arguments]
    public = [f for f in found if f.public]
    many = [f for f in public if f.docstring and len(f.arguments) >= MANY_ARGUMENTS]
    return {
        "functions": len(found),
        "function_lines_median": statistics.median(lines),
        "function_lines_p90": lines[int(0.9 * (len(lines) - 1))],
        "function_lines_max": lines[-1],
        "longest_function": max(found, key=lambda f: f.lines).name,
        "functions_over_45_lines": sum(n > 45 for n in lines),
        "typed_share": _share(
            (a.annotation is not None for a in arguments), len(arguments)
        ),
        "bare_any_share": _share(map(bare_any, arguments), len(arguments)),
        "public_functions": len(public),
        "documented_share": _share((bool(f.docstring) for f in public), len(public)),
        "args_share": _share(("Args:" in f.docstring for f in many), len(many)),
        "example_share": _share((">>>" in f.docstring for f in public), len(public)),
    }


def _share(values: Iterable[float], total: int) -> float:
    return round(sum(values) / total, 4) if total else 0.0


def show(measured: Mapping[str, Any]) -> str:
    """Returns the measurements as lines of text."""
    lines = []
    for name, value in measured.items():
        shown = value
        if isinstance(value, float) and name.endswith("share"):
            shown = f"{100 * value:.1f} %"
        elif isinstance(value, dict):
            shown = ", ".join(f"{k} {v}" for k, v in value.items())
        elif isinstance(value, list):
            shown = "\n  ".join(["", *map(str, value)]) if value else "none"
        lines.append(f"{name.replace('_', ' ')}: {shown}")
    return "\n".join(lines)


def _commit(folder: Path) -> str | None:
    command = [
        "git",
        "-C",
        str(folder),
        "describe",
        "--always",
        "--dirty",
        "--abbrev=40",
    ]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip() or None


def main() -> None:
    """Measures, prints, and writes a file if asked."""
    parser = command_line.parser(__doc__)
    parser.add_argument(
        "--root", metavar="DIR", type=Path, default=ROOT, help="folder of the package"
    )
    parser.add_argument(
        "--json", metavar="FILE", type=Path, help="file that takes the measurements"
    )
    parser.add_argument(
        "--key",
        metavar="NAME",
        help="entry of that file, which keeps its others: before, after",
    )
    args = parser.parse_args()
    root = args.root.resolve()
    measured = {"commit": _commit(root), **measure(root)}
    print(show(measured))
    if args.json:
        content = measured
        if args.key:
            kept = json.loads(args.json.read_text()) if args.json.exists() else {}
            content = {**kept, args.key: measured}
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
