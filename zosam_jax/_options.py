"""Options that one function passes on to another, in one signature.

Many constructors share their options. Each names its own and passes the others on:

    class Options(TypedDict, total=False):
        interval: int
        seed: int

    def dynamic(sparsity: float, *, grow: Score, interval: int = 100, seed: int = 0):
        '''Args: ... interval: Steps between changes. ...'''

    @passes_options_to(dynamic)
    def rigl(sparsity: float, **options: Unpack[Options]) -> SparseMethod:
        return dynamic(sparsity, grow=scores.gradient, **options)

Editors and type checkers read the `TypedDict` (PEP 692). The decorator gives Python the
same signature: `inspect.signature(rigl)` names `interval` and `seed` with the defaults
of `dynamic`, and `help(rigl)` has their descriptions. A key of the `TypedDict` that
`dynamic` does not take, or takes with another type, is an error on import. An unknown
keyword is a `TypeError` that names the nearest option, and a missing argument one that
describes it. `checks_arguments` gives the same errors to a function without options.
A gradient or sparse method that is returned shows the call that made it.
"""

import functools
import inspect
import re
import typing
from collections.abc import Callable, Collection
from typing import Any, TypeVar

from zosam_jax import _calls, _check

F = TypeVar("F", bound=Callable[..., object])


def passes_options_to(target: Callable[..., object]) -> Callable[[F], F]:
    """Returns a decorator for functions that end in `**options: Unpack[Options]`.

    Args:
      target: The function that takes the options, as keyword-only parameters. Each key
        of `Options` is one of them.

    Returns:
      The decorator. The decorated function has a complete signature and docstring, and
      checks its arguments against them.

    Raises:
      TypeError: A key of `Options` is no keyword-only parameter of `target`, or has
        another type there.
    """

    def decorate(function: F) -> F:
        own = inspect.signature(function)
        parameters = [p for p in own.parameters.values() if p.kind is not p.VAR_KEYWORD]
        passed = _passed(function, target)
        return with_signature(
            function,
            Signature([*parameters, *passed], return_annotation=own.return_annotation),
            _joined_docs(function, target, [p.name for p in passed]),
        )

    return decorate


def checks_arguments(function: F) -> F:
    """Returns the function; wrong arguments raise the errors of `passes_options_to`.

    For a constructor beside others that pass options on: all have the same errors.

    Args:
      function: Takes no `**options`.
    """
    own = inspect.signature(function)
    signature = Signature(
        list(own.parameters.values()), return_annotation=own.return_annotation
    )
    return with_signature(function, signature, function.__doc__)


def with_signature(function: F, signature: inspect.Signature, doc: str | None) -> F:
    """Returns the function with another signature, which its arguments are checked by.

    Args:
      function: Takes at least the parameters of `signature`.
      signature: What `inspect.signature` shall return.
      doc: Its docstring; None under `python -OO`.
    """
    name = public_name(function)

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> object:
        _check.options(name, kwargs, signature.parameters)
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            raise TypeError(f"{name}: {error}{_described(error, doc)}") from None
        made = function(*args, **kwargs)
        if isinstance(made, _calls.Described):
            return made.called_as(_calls.text(name, given, signature.parameters))
        return made

    checked.__doc__ = doc
    vars(checked)["__signature__"] = signature
    return typing.cast(F, checked)


def _described(error: TypeError, doc: str | None) -> str:
    """Returns the docstring's entry of the argument that is missing, or ""."""
    missing = re.search(r"missing a required .*argument: '(\w+)'", str(error))
    entry = missing and entries(doc).get(missing[1])
    return f". {entry}" if entry else ""


def entries(doc: str | None) -> dict[str, str]:
    r"""Returns the entries of a docstring's Args section, each in one line.

    >>> entries("Adds.\n\nArgs:\n  x: A\n    number.")
    {'x': 'x: A number.'}

    Args:
      doc: The docstring; None under `python -OO`.
    """
    found = split_args(inspect.cleandoc(doc or ""))[1]
    return {name: " ".join(text.split()) for name, text in found.items()}


def public_name(function: Callable[..., object]) -> str:
    """Returns the name by which a user calls a function, of this package or another."""
    if not f"{function.__module__}.".startswith("zosam_jax."):
        return function.__name__
    inside = "sparsity." if ".sparsity." in f"{function.__module__}." else ""
    return f"zs.{inside}{function.__name__}"


class Signature(inspect.Signature):
    """A signature that leaves the defaults of static parameters to the function.

    `optax.inject_hyperparams` binds the arguments, applies the defaults and traces all
    numbers. A parameter that is annotated as plain `int` or `float` must be known
    before tracing (it sets a shape or the length of a loop), so `apply_defaults` leaves
    it out. One that may be traced is annotated as `Scalar` or `int | jax.Array`.
    """

    def bind(self, *args: Any, **kwargs: Any) -> inspect.BoundArguments:
        """Binds the arguments as `inspect.Signature.bind` does."""
        return _Bound(self, super().bind(*args, **kwargs).arguments)


class _Bound(inspect.BoundArguments):
    def apply_defaults(self) -> None:
        given = set(self.arguments)
        super().apply_defaults()
        for name, parameter in self.signature.parameters.items():
            if parameter.annotation in (int, float) and name not in given:
                del self.arguments[name]


def keys_of(function: Callable[..., object]) -> dict[str, Any]:
    """Returns the types in the `TypedDict` that `function` unpacks, by name."""
    (unpacked,) = (
        p.annotation
        for p in inspect.signature(function).parameters.values()
        if p.kind is p.VAR_KEYWORD
    )
    (options,) = typing.get_args(unpacked)
    return typing.get_type_hints(options)


def _passed(
    function: Callable[..., object], target: Callable[..., object]
) -> list[inspect.Parameter]:
    """The parameters of `target` that the function's `TypedDict` names, in order."""
    takes = inspect.signature(target).parameters
    for name, annotation in keys_of(function).items():
        parameter = takes.get(name)
        if parameter is None or parameter.kind is not parameter.KEYWORD_ONLY:
            raise TypeError(
                f"{function.__name__}() passes on the option {name!r}, which is no "
                f"keyword-only parameter of {target.__name__}()."
            )
        if parameter.annotation != annotation:
            raise TypeError(
                f"{function.__name__}() passes on the option {name!r} as {annotation}; "
                f"{target.__name__}() takes {parameter.annotation}."
            )
    return [p for name, p in takes.items() if name in keys_of(function)]


def _joined_docs(
    function: Callable[..., object],
    target: Callable[..., object],
    names: Collection[str],
) -> str | None:
    """The function's docstring, its Args section continued with those of `target`."""
    if function.__doc__ is None:
        return None
    doc = inspect.cleandoc(function.__doc__)
    before, own, after = split_args(doc)
    theirs = split_args(inspect.cleandoc(target.__doc__ or ""))[1]
    # The entry of `**options` gives way to the options themselves.
    entries = {name: text for name, text in own.items() if name != "options"}
    entries |= {name: theirs[name] for name in names if name in theirs}
    return join_args(before, entries, after)


def split_args(doc: str) -> tuple[str, dict[str, str], str]:
    """Returns a docstring in three parts: before Args, its entries by name, after."""
    found = re.search(r"^Args:\n((?:  .*\n?)+)", doc, re.MULTILINE)
    if found is None:
        before, mark, after = doc.partition("\n\nReturns:")
        return before.rstrip(), {}, (mark + after).strip()
    entries: dict[str, str] = {}
    for text in re.split(r"^(?=  \S)", found[1], flags=re.MULTILINE):
        name = re.match(r"  \*{0,2}(\w+)", text)
        if name is not None:
            entries[name[1]] = text.rstrip()
    return doc[: found.start()].rstrip(), entries, doc[found.end() :].strip()


def join_args(before: str, entries: dict[str, str], after: str) -> str:
    """Returns the docstring that `split_args` took apart.

    Args:
      before: The text before Args.
      entries: The entries of Args, by name, in their order.
      after: The text after Args.
    """
    args = "\n".join(["Args:", *entries.values()]) if entries else ""
    return "\n\n".join(part for part in (before, args, after) if part)
