"""What stands for the code of a function, so that a reward whose function was edited is another reward."""

from __future__ import annotations

import ast
import hashlib
import inspect
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import suppress
from functools import partial
from importlib.machinery import PathFinder
from importlib.util import resolve_name
from pathlib import Path
from traceback import walk_tb
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

_OURS = frozenset(("rm_plugins", "rm_plugins_engines", "rm_plugins_ray", "rm_plugins_trl"))
_INSTALLED = frozenset(("dist-packages", "site-packages"))
_TRIES = 10
"""Python 3.11 and 3.12 may fail with SystemError while another thread parses (python/cpython issue 106905); the next try succeeds."""


def function_path(function: Callable[..., Any]) -> str:
    """Module and name of a function, or of the class of a callable object.

    >>> function_path(partial(sorted, reverse=True))
    'builtins:sorted'
    """
    named = _named(function)
    return f"{named.__module__}:{named.__qualname__}"


def function_place(function: Callable[..., Any]) -> str:
    """The file and the line of a function, for messages; empty where it is in no file.

    >>> Path(function_place(function_place).partition(", ")[0]).name
    'function_code.py'
    """
    named = inspect.unwrap(_named(function))
    code = getattr(named, "__code__", None)
    try:
        file = inspect.getsourcefile(named)
        line = code.co_firstlineno if code is not None else inspect.getsourcelines(named)[1]
    except (OSError, TypeError):
        return ""
    return "" if file is None else f"{shown_file(file)}, line {line}"


def raised_at(function: Callable[..., Any], error: BaseException) -> str:
    """The file and the line of a function's file at which it raised an error; those of the function where that is not known."""
    try:
        file = inspect.getsourcefile(inspect.unwrap(_named(function)))
    except (OSError, TypeError):
        return ""
    lines = [line for frame, line in walk_tb(error.__traceback__) if frame.f_code.co_filename == file]
    return f"{shown_file(file)}, line {lines[-1]}" if file is not None and lines else function_place(function)


def shown_file(file: str) -> str:
    """A file as messages call it: relative to the working directory where it is inside, else its name."""
    path = Path(file)
    with suppress(ValueError, OSError):
        return str(path.relative_to(Path.cwd()))
    return path.name


def code_digest(function: Callable[..., Any], imported_as: str = "") -> str | None:
    """A SHA-256 over a function's code and all the code that it uses: in its own module, and in those that this one imports.

    Only those statements of a module count on which the used names depend; comments do not count. Modules of installed packages and of
    the standard library do not count, except those of the function's own package. The values that a function holds (`held_values`) do
    not count either.

    Args:
        function: The function, or a callable object, whose class is looked at.
        imported_as: The ``module:name`` that it was imported by, where it was.

    Returns:
        None where it has no Python code, such as a built-in function.
    """
    walk = _Walk()
    if imported_as:
        module, _, name = imported_as.partition(":")
        walk.add(module, name)
    compiled: list[Any] = []
    for part in _parts(function):
        if not walk.add(part.__module__, part.__qualname__) and isinstance(part, FunctionType):
            compiled.append(_compiled(part.__code__))
    code = walk.code()
    if not code and not compiled:
        return None
    return hashlib.sha256("\n".join([*code, *map(repr, compiled)]).encode("utf-8", "backslashreplace")).hexdigest()


def function_facts(function: Callable[..., Any], imported_as: str = "") -> list[Any]:
    """What identifies a function, as JSON values: where it is, its code, and what it holds if it was made in memory."""
    return [function_path(function), code_digest(function, imported_as), None if imported_as else held_values(function)]


def held_values(function: Callable[..., Any]) -> Any:
    """What a function in memory holds beside its code, as JSON values: arguments of a partial, its defaults, what it closes over.

    >>> held_values(partial(sorted, reverse=True)) == held_values(partial(sorted, reverse=False))
    False
    """
    return _held(function, ())


def others_code(classes: Iterator[type]) -> list[str]:
    """The digests of the code of those classes that are not part of rm-plugins, each with the name of its class."""
    theirs = {cls for cls in classes if cls.__module__.partition(".")[0] not in _OURS}
    digests = {f"{cls.__module__}:{cls.__qualname__}": code_digest(cls) for cls in theirs}
    return [f"{name} {digest}" for name, digest in sorted(digests.items())]


def _named(function: Any) -> Any:
    while isinstance(function, partial):
        function = function.func
    return function if hasattr(function, "__qualname__") else type(function)


def _parts(function: Any) -> Iterator[Any]:
    """The functions and classes whose code is that of a function: those in a partial, a method and a decorator, and itself."""
    while isinstance(function, (partial, MethodType)):
        if isinstance(function, MethodType) and not isinstance(function.__self__, (type, ModuleType)):
            yield type(function.__self__)
        function = function.func if isinstance(function, partial) else function.__func__
    named = _named(function)
    yield named
    while (wrapped := getattr(named, "__wrapped__", None)) is not None:
        named = _named(wrapped)
        yield named


class _Walk:
    """Collects the statements that names of modules depend on, through the modules that these import."""

    def __init__(self) -> None:
        self._trees: dict[str, list[ast.stmt] | None] = {}
        self._pending: list[tuple[str, str]] = []
        self._seen: set[tuple[str, str]] = set()
        self._roots: set[str] = set()

    def add(self, module: str, name: str) -> bool:
        """Look at a name of a module, such as ``Judge.score``; returns whether there is code to look at."""
        self._roots.add(module.partition(".")[0])
        self._push(module, name.partition(".")[0])
        return self._tree(module) is not None

    def code(self) -> list[str]:
        """The statements as text."""
        kept: dict[str, set[int]] = defaultdict(set)
        while self._pending:
            module, name = self._pending.pop()
            tree = self._tree(module) or []
            places = _needed(tree, name) if name else range(len(tree))
            for place in places:
                if place not in kept[module]:
                    kept[module].add(place)
                    self._follow(module, tree[place])
        return [ast.dump(statement) for module in sorted(kept) for statement in self._at(module, kept[module])]

    def _at(self, module: str, places: Set[int]) -> list[ast.stmt]:
        tree = self._tree(module) or []
        return [tree[place] for place in sorted(places)]

    def _follow(self, module: str, statement: ast.stmt) -> None:
        """Look at what a statement imports."""
        for node in ast.walk(statement):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    self._push_used(alias.name, "")
            elif isinstance(node, ast.ImportFrom):
                source = _source_of(node, module)
                for alias in node.names:
                    inner = f"{source}.{alias.name}"
                    is_module = self._is_followed(source) and self._tree(inner) is not None
                    self._push_used(inner if is_module else source, "" if is_module or alias.name == "*" else alias.name)

    def _push_used(self, module: str, name: str) -> None:
        if self._is_followed(module):
            self._push(module, name)

    def _push(self, module: str, name: str) -> None:
        if (module, name) not in self._seen:
            self._seen.add((module, name))
            self._pending.append((module, name))

    def _is_followed(self, module: str) -> bool:
        top = module.partition(".")[0]
        if top in self._roots:
            return True
        if not top or top in _OURS or top in sys.stdlib_module_names:
            return False
        file = _file_of(module)
        return file is not None and not _INSTALLED & {*file.parts}

    def _tree(self, module: str) -> list[ast.stmt] | None:
        """The statements of a module; None where there is no file to read, as in an interactive session."""
        if module not in self._trees:
            file = _file_of(module)
            try:
                self._trees[module] = None if file is None else _statements(file.read_bytes())
            except (OSError, SyntaxError, ValueError, RecursionError):
                self._trees[module] = None
        return self._trees[module]


def _statements(source: bytes) -> list[ast.stmt]:
    for _ in range(_TRIES):
        with suppress(SystemError):
            return ast.parse(source).body
    return ast.parse(source).body


def _source_of(node: ast.ImportFrom, module: str) -> str:
    """The module that is imported from, in a statement of `module`."""
    if not node.level:
        return node.module or ""
    package = module if (file := _file_of(module)) is not None and file.name == "__init__.py" else module.rpartition(".")[0]
    try:
        return resolve_name("." * node.level + (node.module or ""), package)
    except ImportError:  # beyond the top of the package; it would not have been imported
        return ""


def _file_of(module: str) -> Path | None:
    """The Python file of a module, which is not imported for that."""
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None and module not in sys.modules:
        path = None
        for place in range(module.count(".") + 1):
            name = ".".join(module.split(".")[: place + 1])
            spec = PathFinder.find_spec(name, path)
            if spec is None:
                return None
            path, file = spec.submodule_search_locations, spec.origin
    return Path(file) if file is not None and file.endswith(".py") and os.path.isfile(file) else None


def _needed(statements: list[ast.stmt], name: str) -> list[int]:
    """The places of the statements on which one of a module's names depends; all of them where it does not bind that name."""
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
        return list(range(len(statements)))
    pending = [*needed, *binding[name]]
    needed.update(pending)
    while pending:
        for node in ast.walk(statements[pending.pop()]):
            more = binding.get(node.id, set()) - needed if isinstance(node, ast.Name) else set()
            needed |= more
            pending += more
    return sorted(needed)


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


def _compiled(code: CodeType) -> list[Any]:
    """What a function without a source file was compiled to."""
    constants = [_compiled(constant) if isinstance(constant, CodeType) else _constant(constant) for constant in code.co_consts]
    return [code.co_code.hex(), code.co_names, constants]


def _constant(value: Any) -> Any:
    return sorted(map(repr, value)) if isinstance(value, frozenset) else repr(value)


def _held(value: Any, inside: tuple[int, ...]) -> Any:
    """A value as JSON, without the addresses of objects, which differ between processes."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if id(value) in inside:
        return "itself"
    inside = (*inside, id(value))
    if isinstance(value, partial):
        return [_held(value.func, inside), _held(value.args, inside), _held(value.keywords, inside)]
    if isinstance(value, MethodType):
        return [_held(value.__func__, inside), _held(value.__self__, inside)]
    if isinstance(value, FunctionType):
        cells = []
        for cell in value.__closure__ or ():
            with suppress(ValueError):  # it is empty
                cells.append(_held(cell.cell_contents, inside))
        defaults = [_held(value.__defaults__, inside), _held(value.__kwdefaults__, inside)]
        return [function_path(value), code_digest(value), *defaults, cells]
    if isinstance(value, (type, ModuleType)):
        return f"{getattr(value, '__module__', '')}:{getattr(value, '__qualname__', value.__name__)}"
    if isinstance(value, Mapping):
        return [[_held(key, inside), _held(item, inside)] for key, item in value.items()]
    if isinstance(value, (list, tuple)):
        return [_held(item, inside) for item in value]
    if isinstance(value, Set):
        return sorted(str(_held(item, inside)) for item in value)
    representation: Any = type(value).__repr__
    if representation is object.__repr__:
        return [f"{type(value).__module__}:{type(value).__qualname__}", _held(getattr(value, "__dict__", {}), inside)]
    return repr(value)
