"""What stands for the code of a function, so that a reward whose function was edited is another one."""

from __future__ import annotations

import ast
import hashlib
import inspect
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import FunctionType
from typing import Any


def function_path(function: Callable[..., Any]) -> str:
    """Module and name of a function, or of the class of a callable object.

    >>> function_path(partial(sorted, reverse=True))
    'builtins:sorted'
    """
    named = _named(function)
    return f"{named.__module__}:{named.__qualname__}"


def code_digest(function: Callable[..., Any]) -> str | None:
    """A SHA-256 over a function's code and all that it names in its own module, comments and the rest of the module left aside.

    It does not see what the module imports, nor what the function holds (`held_values`).

    Returns:
        None where there is no file to read, as in an interactive session.
    """
    named = _named(function)
    try:
        file = inspect.getsourcefile(named)
        tree = None if file is None else ast.parse(Path(file).read_bytes())
    except (OSError, TypeError, SyntaxError, ValueError):
        return None
    if tree is None:
        return None
    needed = _needed(tree.body, named.__qualname__.partition(".")[0])
    return hashlib.sha256("\n".join(map(ast.dump, needed)).encode("utf-8", "backslashreplace")).hexdigest()


def held_values(function: Callable[..., Any]) -> str:
    """What a function in memory holds beside its code: arguments of a partial, its defaults, what it closes over.

    >>> held_values(partial(sorted, reverse=True)) == held_values(partial(sorted, reverse=False))
    False
    """
    held: list[Any] = []
    while isinstance(function, partial):
        held += [function.args, sorted(function.keywords.items())]
        function = function.func
    if not isinstance(function, FunctionType):
        return repr([*held, function])
    held += [function.__defaults__, function.__kwdefaults__]
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # it is empty
            held.append(cell.cell_contents)
    return repr(held)


def _named(function: Any) -> Any:
    while isinstance(function, partial):
        function = function.func
    return function if hasattr(function, "__qualname__") else type(function)


def _needed(statements: list[ast.stmt], name: str) -> list[ast.stmt]:
    """The statements of a module on which one of its names depends; all of them where it does not bind that name."""
    binding: dict[str, set[int]] = defaultdict(set)
    needed: set[int] = set()
    for place, statement in enumerate(statements):
        names = set(_bound(statement))
        for bound in names:
            binding[bound].add(place)
        is_docstring = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
        if not names and not is_docstring:  # done for its effect
            needed.add(place)
    if name not in binding:
        return statements
    pending = [*needed, *binding[name]]
    needed.update(pending)
    while pending:
        for node in ast.walk(statements[pending.pop()]):
            more = binding.get(node.id, set()) - needed if isinstance(node, ast.Name) else set()
            needed |= more
            pending += more
    return [statements[place] for place in sorted(needed)]


def _bound(statement: ast.stmt) -> Iterator[str]:
    """The names that a statement of a module gives something to."""
    for node in (
        [statement] if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) else ast.walk(statement)
    ):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.alias):
            yield (node.asname or node.name).partition(".")[0]
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
