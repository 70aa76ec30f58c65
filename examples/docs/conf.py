"""Configuration of the documentation site.

python -m sphinx -W examples/docs build/docs
"""

import ast
import importlib.metadata
import inspect
import os
import re
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

import zosam_jax as zs
from zosam_jax import (
    analysis,
    data,
    evaluate,
    gradients,
    lottery,
    models,
    sparsity,
    train,
)

REPOSITORY = "https://github.com/zosam-jax/zosam_jax/blob/main"
HERE = Path(__file__).parent
ROOT = HERE.parents[1]

project = "zosam_jax"
author = "The zosam_jax contributors"
copyright = "2026, the zosam_jax contributors"
release = importlib.metadata.version("zosam-jax")
version = release

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
exclude_patterns = ["build"]
default_role = "code"
maximum_signature_line_length = 72

myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence"]
myst_heading_anchors = 3
nb_execution_mode = "off"
# MyST configures MathJax 3, and Sphinx's default is MathJax 4.
mathjax_path = "https://cdn.jsdelivr.net/npm/mathjax@3/es5/tex-mml-chtml.js"

autodoc_member_order = "bysource"
autodoc_typehints = "none"
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_preprocess_types = False

html_theme = "furo"
html_title = f"zosam_jax {release}"
html_show_sphinx = False
html_theme_options = {
    "source_repository": "https://github.com/zosam-jax/zosam_jax/",
    "source_branch": "main",
    "source_directory": "examples/docs/",
}
html_static_path = ["static"]
html_css_files = ["zosam.css"]

# What keeps its signs in a docstring: blocks of mathematics, doctests, roles, code.
KEPT = re.compile(
    r"^( *)\.\. math::.*?(?=^\1\S|\Z)|^ *>>> [^\n]*|:\w+:`[^`]*`|``[^`]*``|`[^`]*`",
    re.DOTALL | re.MULTILINE,
)

# Pages that stand elsewhere in the repository, by the page of the site.
ELSEWHERE = {
    "digits": ROOT / "examples" / "digits.ipynb",
    "benchmarks": ROOT / "benchmarks" / "README.md",
    "examples": ROOT / "examples" / "README.md",
    "contributing": ROOT / ".github" / "CONTRIBUTING.md",
    "changelog": ROOT / "zosam_jax" / "CHANGELOG.md",
}


def _public(module: ModuleType) -> list[str]:
    """Returns the public functions and classes of a module, by their full names.

    Those are what it defines itself and what it imports as `X as X`.
    """
    body = ast.parse(Path(module.__file__ or "").read_text()).body
    names = []
    for node in body + [n for x in body if isinstance(x, ast.If) for n in x.body]:
        if isinstance(node, ast.ImportFrom):
            names += [alias.name for alias in node.names if alias.asname == alias.name]
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.append(node.name)
    found = ((name, getattr(module, name)) for name in names if name[0] != "_")
    return [f"{module.__name__}.{name}" for name, value in found if callable(value)]


def _groups() -> dict[str, list[str]]:
    """Returns the members of each group of the API."""
    facade = _public(zs)
    # The page of gradients begins with the plain one and ZO-SAM.
    first = ("backprop", "zosam")
    names = [name for name in gradients.METHODS if name not in first]
    methods, rest = [], []
    for name in _public(sparsity):
        value = getattr(sparsity, name.rpartition(".")[2])
        hints = {} if inspect.isclass(value) else get_type_hints(value)
        makes = hints.get("return") is sparsity.SparseMethod
        (methods if makes else rest).append(name)
    return {
        "gradients": [f"zosam_jax.{name}" for name in names],
        "pure": [f"zosam_jax.{name}_gradient" for name in ("backprop", *names)],
        "rows": [n for n in _public(gradients) if "Method" not in n],
        **{
            name: _public(getattr(gradients, name))
            for name in ("ascents", "geometries", "combinations")
        },
        "timing": [
            n.replace(".gradients.timing", "") for n in _public(gradients.timing)
        ],
        "zeroth": [n for n in facade if ".zo_" in n],
        "facade": facade,
        "methods": methods,
        "sparsity": rest,
        "budgets": _public(sparsity.budgets),
        "scores": _public(sparsity.scores),
        "tree": _public(zs.tree),
        "models": _public(models),
        "data": _public(data),
        "train": _public(train),
        "lottery": _public(lottery),
        "evaluate": _public(evaluate),
        "analysis": _public(analysis),
    }


def _directives(match: re.Match[str]) -> str:
    """Returns autodoc's directives for the members of a group."""
    lines = []
    for name in _groups()[match[1]]:
        is_class = name.rpartition(".")[2][0].isupper()
        lines.append(f".. auto{'class' if is_class else 'function'}:: {name}\n")
    return "\n".join(lines)


def _link(match: re.Match[str], source: Path) -> str:
    """Returns a link of a page for the site: to its page, or to the repository."""
    image, text, target = match.groups()
    file, _, anchor = target.partition("#")
    if not file or ":" in file:
        return match[0]
    path = Path(os.path.normpath(source.parent / file))
    anchor = f"#{anchor}" if anchor else ""
    if image:
        return f"![{text}]({os.path.relpath(path, HERE)})"
    for page, page_source in ELSEWHERE.items():
        if path == page_source:
            return f"[{text}](/{page}{page_source.suffix}{anchor})"
    if path.is_relative_to(HERE) and path.suffix == ".md":
        return f"[{text}](/{path.relative_to(HERE)}{anchor})"
    return f"[{text}]({REPOSITORY}/{path.relative_to(ROOT)})"


def _read(app: Any, page: str, content: list[str]) -> None:
    """Fills the pages that stand elsewhere, the API's groups and the links."""
    path = ELSEWHERE.get(page, Path(app.env.doc2path(page)))
    text = path.read_text()
    if path.suffix == ".ipynb":
        pass
    elif page.startswith("api/"):
        text = re.sub(r"^\.\. group:: (\w+)$", _directives, text, flags=re.MULTILINE)
    else:
        pattern = r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)"
        text = re.sub(pattern, lambda m: _link(m, path), text)
    content[0] = text


def _escape(app: Any, what: str, name: str, *rest: Any) -> None:
    """Escapes what reStructuredText would take for markup in a docstring's prose."""
    del app, what, name
    lines = rest[-1]
    parts, text, last = [], "\n".join(_bullets(lines)), 0
    for match in KEPT.finditer(text):
        parts += [_plain(text[last : match.start()]), match[0]]
        last = match.end()
    parts.append(_plain(text[last:]))
    lines[:] = "".join(parts).split("\n")


def _bullets(lines: list[str]) -> list[str]:
    """Turns `name: text` under a sentence that ends with a colon into a list."""
    found, inside = [], False
    for before, line in zip(["", *lines], lines, strict=False):
        indented = line.startswith("  ")
        named = re.match(r"  \w+: ", line)
        if named and not inside and before.endswith(":") and " " in before.strip():
            inside = not before.startswith(" ")
            found += [""] if inside else []
        elif inside and not indented:
            inside = False
            found += [""] if line else []
        if inside:
            line = re.sub(r"^(\w+): ", r"* `\1`: ", line[2:])
        found.append(line)
    return found


def _plain(text: str) -> str:
    text = re.sub(r"(?<!\\)\|", r"\\|", text)
    text = re.sub(r"(?<!\\)(?<!^)(?<!\n)(?<!  )\*(?! )", r"\\*", text)
    return re.sub(r"(\w)_(?!\w)", r"\1\\_", text)


def setup(app: Any) -> None:
    """Connects the functions above."""
    app.connect("source-read", _read)
    app.connect("autodoc-process-docstring", _escape, priority=100)
