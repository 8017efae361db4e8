"""Functions that a setting names as ``module:function``."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

from rm_plugins.errors import SpecError, did_you_mean

_PYTHON_FILE = re.compile(r"(.+)\.py(?::(.*))?")


def imported(text: str) -> Callable[..., Any]:
    """The function that ``module:function`` names, which is also looked for in the working directory.

    Raises:
        SpecError: It cannot be imported, or is not a function.
    """
    if meant := of_python_file(text):
        raise SpecError(f"{text!r} names a file. Name the module and the function: {meant!r}.", key="function")
    module, _, path = text.partition(":")
    if not path:
        raise SpecError(f"{text!r} must have the form module:function.", key="function")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())  # a console script does not look into the working directory
    try:
        named: Any = import_module(module)
    except Exception as error:  # a user's module may raise anything at all
        raise SpecError(f"{text!r} cannot be imported: {type(error).__name__}: {error}.", key="function") from error
    for part in path.split("."):
        try:
            named = getattr(named, part)
        except AttributeError as error:
            there = [name for name, value in vars(named).items() if callable(value) and not name.startswith("_")]
            raise SpecError(
                f"{text!r} cannot be imported: AttributeError: {error}. {did_you_mean(part, there)}", key="function"
            ) from error
    if not callable(named):
        raise SpecError(f"{text!r} is {type(named).__name__}, not a function.", key="function")
    return named  # type: ignore[no-any-return]  # anything callable


def of_python_file(text: str) -> str:
    """The ``module:function`` that a text means which names a Python file; empty for any other text.

    >>> of_python_file("rules/short.py:score"), of_python_file("rules.short:score")
    ('rules.short:score', '')
    """
    named = _PYTHON_FILE.fullmatch(text)
    if named is None:
        return ""
    module = re.sub(r"[/\\]+", ".", named[1].removeprefix("./")).strip(".")
    return f"{module}:{named[2] or 'FUNCTION'}"
