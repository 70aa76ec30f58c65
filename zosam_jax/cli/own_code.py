"""Code of the user's own that a command line names, as package.module:name.

It is imported here and nowhere else, and only from the words of the command line: never
from a file, a preset or the record of a run.
"""

import dataclasses
import difflib
import importlib
import os
import sys
from collections.abc import Collection, Mapping
from typing import Any

from zosam_jax.runs.code_names import check_code, is_code
from zosam_jax.runs.errors import RunError
from zosam_jax.train import constructors
from zosam_jax.train.objects import KINDS, Objects


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class OwnCode:
    """The flags of commands that read a run, if it was made with code of your own."""

    model: str | None = None
    """Model that the run was given, as MODULE:NAME; None: the one that it names."""
    method: str | None = None
    """Sparse method that the run was given, likewise."""
    gradient: str | None = None
    """Gradient estimator that the run was given, likewise."""
    optimizer: str | None = None
    """Optimizer that the run was given, likewise."""
    loss: str | None = None
    """Loss that the run was given, likewise."""

    def given(self) -> dict[str, Any]:
        """Returns the objects that the flags name, imported, by part of the run.

        Raises:
          RunError: A flag names no code, or it cannot be imported.
        """
        # Without defaults from elsewhere, what is set is typed.
        names = {name: getattr(self, name) for name in _FLAGS}
        names["dataset"] = getattr(self, "dataset", None)
        return _objects(names, only_code=_FLAGS)


_FLAGS = tuple(f.name for f in dataclasses.fields(OwnCode))


def typed(command: object, fields: Collection[str]) -> dict[str, Any]:
    """Returns the objects that a command line names, imported, by part of the run.

    Args:
      command: The command. Values that its line does not give may come from a file.
      fields: The fields whose flags are on the command line.

    Raises:
      RunError: The code cannot be imported, or a loss is no code.
    """
    loss = getattr(command, "loss", None)
    if loss is not None and "loss" not in fields:
        try:
            check_code("loss", loss)
        except ValueError as error:
            raise RunError(str(error)) from error
    names = {kind: getattr(command, kind) for kind in KINDS if kind in fields}
    return _objects(names, only_code=("loss",))


def _objects(
    names: Mapping[str, str | None], only_code: Collection[str]
) -> dict[str, Any]:
    """Returns the code among the words of a command line, imported.

    Args:
      names: The words, by part of the run.
      only_code: The parts of which other names are refused.
    """
    found: dict[str, Any] = {}
    for kind, name in names.items():
        if name is None:
            continue
        if is_code(kind, name):
            found[kind] = _imported(kind, name)
        elif kind in only_code:
            raise RunError(
                f"{kind}={name!r} must be code of your own, as MODULE:NAME or "
                "package.module:NAME."
            )
    try:
        if isinstance(found.get("loss"), type):
            found["loss"] = constructors.call("loss", found["loss"])
        Objects(**found).check_types()
    except ValueError as error:
        raise RunError(str(error)) from error
    return found


def _imported(kind: str, name: str) -> Any:
    module, _, path = name.partition(":")
    # As for `python -m`: code in the working directory comes first.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = importlib.import_module(module)
    except (Exception, SystemExit) as error:
        raise RunError(_failed(kind, name, module, error)) from error
    for part in path.split("."):
        if not hasattr(found, part):
            known = [x for x in vars(found) if not x.startswith("_")]
            near = difflib.get_close_matches(part, known, 1, 0.5)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            place = getattr(sys.modules[module], "__file__", None) or module
            raise RunError(f"{kind}={name!r}: {place} has no {part!r}.{hint}")
        found = getattr(found, part)
    return found


def _failed(kind: str, name: str, module: str, error: BaseException) -> str:
    """Returns why a module cannot be imported, as a sentence."""
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    if missing is not None and f"{module}.".startswith(f"{missing}."):
        return (
            f"{kind}={name!r}: there is no module {missing!r} in {os.getcwd()} or "
            "among the installed packages."
        )
    return f"{kind}={name!r}: the import of {module} raised {constructors.told(error)}."
