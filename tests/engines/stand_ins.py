"""Replaces packages that engines import and a test does not need: schedulers of clusters, hubs, clients of services."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import types
from collections.abc import Sequence
from typing import Any


class _Attributes(type):
    def __getattr__(cls, name: str) -> Any:
        return _public(name)


class Anything(metaclass=_Attributes):
    """Every name of such a package: a class that takes any argument, a function that returns what it decorates."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return args[0] if len(args) == 1 and callable(args[0]) and not kwargs else Anything()

    def __getattr__(self, name: str) -> Any:
        return _public(name)

    def __class_getitem__(cls, item: Any) -> Any:
        return cls


def _public(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    return Anything


class _Module(types.ModuleType):
    __version__ = "9999"
    __path__: list[str] = []  # noqa: RUF012 - as of a package

    def __getattr__(self, name: str) -> Any:
        return _public(name)


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, names: Sequence[str]) -> None:
        self._names = names

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if any(name == own or name.startswith(f"{own}.") for own in self._names):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: types.ModuleType) -> None: ...


def stand_in_for(*names: str) -> None:
    """Make these packages and everything in them importable, whether or not they are installed."""
    sys.meta_path.insert(0, _Finder(names))
