"""The page on losses says what the losses are."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest

import rm_plugins as rm

PAGE = (Path(__file__).parents[1] / "docs" / "losses.md").read_text(encoding="utf-8")
BUILT_IN = [
    (kind, name)
    for kind in ("loss", "regularizer")
    for name, found in sorted(rm.Registry().all(kind).items())
    if "." in found.plugin
]


def rows() -> dict[str, tuple[str, str]]:
    """Formula and last column of each table row that begins with a name and a formula."""
    found = re.findall(r"^\| `([a-z0-9-]+)` \| `((?:[^`])+)` \| ?(.*?) ?\|$", PAGE, re.MULTILINE)
    return {name: (formula.replace("\\|", "|"), rest) for name, formula, rest in found}


def test_every_one_is_there() -> None:
    assert sorted(rows()) == sorted(name for _, name in BUILT_IN)


@pytest.mark.parametrize(("kind", "name"), BUILT_IN)
def test_its_formula_and_arguments(kind: str, name: str) -> None:
    cls: Any = rm.Registry().get(kind, name)
    formula, arguments = rows()[name]
    assert formula == cls.formula
    if kind == "regularizer":  # a configuration gives their weights alone
        return
    documented = dict(re.findall(r"`(\w+)`(?: \(`?([\w.]+)`?)?", arguments))
    for argument, parameter in inspect.signature(cls).parameters.items():
        default = parameter.default
        if default is not None:
            assert documented[argument] == (f"{default:g}" if isinstance(default, float) else str(default))
        assert argument in documented


def test_every_loss_is_named_beside_the_data_it_fits() -> None:
    table = PAGE.partition("## Losses by data")[2].partition("[Data]")[0]
    named = set(re.findall(r"`([a-z0-9-]+)`", table))
    assert {name for kind, name in BUILT_IN if kind == "loss"} <= named
