"""No regular expression of the library takes more than twice the time for twice the text, used as the library uses it."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import rm_plugins
from tests.time_growth import grows

ROOT = Path(__file__).parents[2]
SEARCHES = ("search", "findall", "finditer", "sub", "split")
PIECES = [
    *(
        " ",
        "\t",
        "\n",
        "\n ",
        " \n",
        "a",
        "A",
        "1",
        "_",
        "*",
        "**",
        "#",
        "-",
        ".",
        ":",
        "=",
        ">",
        "<",
        "<a",
        "`",
        "```",
        "```json\n",
    ),
    *(
        "~~~",
        "$",
        "\\",
        "\\text{",
        "\\boxed",
        "}",
        "{",
        "[",
        "[{",
        "(",
        ")",
        "/",
        "|",
        "'",
        '"',
        "a b ",
        "a.",
        "a:",
        "a-",
        "1.",
        "x y\n",
    ),
    *(
        "<answer>",
        "</answer>",
        "\n\nHuman: ",
        "[{'role'",
        "Score",
        "Score*",
        "role",
        "\u3041",
        "<svg ",
        "<defs>",
        "tie",
        "both ",
        "1 > ",
    ),
]


def patterns() -> Iterator[tuple[str, re.Pattern[str], set[str]]]:
    """Every pattern that a module keeps, and the methods that are called of it there."""
    for found in pkgutil.walk_packages(rm_plugins.__path__, "rm_plugins."):
        if found.name.endswith("__main__"):
            continue
        module = importlib.import_module(found.name)
        kept = {name: value for name, value in vars(module).items() if isinstance(value, re.Pattern)}
        if not kept or not isinstance(module.__file__, str):
            continue
        used: dict[str, set[str]] = {name: set() for name in kept}
        for node in ast.walk(ast.parse(Path(module.__file__).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in used:
                used[node.value.id].add(node.attr)
        for name, pattern in kept.items():
            if isinstance(pattern.pattern, str):
                yield f"{found.name}:{name}", pattern, used[name]


def uses(pattern: re.Pattern[str], methods: set[str]) -> dict[str, Callable[[str], Any]]:
    """How a pattern is used; one that is handed on may be searched for."""
    known = {method for method in methods if method in (*SEARCHES, "match", "fullmatch")}
    chosen = known - set(SEARCHES) | ({"search"} if known & set(SEARCHES) or not known else set())
    if known & {"findall", "finditer", "sub", "split"}:
        chosen.add("findall")
    return {method: getattr(pattern, method) for method in sorted(chosen)}


def outgrown(use: Callable[[str], Any]) -> list[str]:
    """The first text for which a use takes more than its share of time."""
    for piece in PIECES:
        for beginning in ("", "```json\n", "$"):
            for end in ("", " x"):
                said = grows(use, piece, characters=8_000, beginning=beginning, end=end, seconds=0.004)
                if said is not None:
                    return [said]
    return []


FOUND = {name: (pattern, methods) for name, pattern, methods in patterns()}


def test_there_are_patterns_to_look_at() -> None:
    assert len(FOUND) > 20


@pytest.mark.parametrize("name", sorted(FOUND))
def test_a_pattern_takes_time_in_proportion(name: str) -> None:
    pattern, methods = FOUND[name]
    for method, use in uses(pattern, methods).items():
        assert outgrown(use) == [], f"{name}.{method}: {pattern.pattern!r}"


@pytest.mark.parametrize("pattern", [r"a+!", r"^ {0,3}```json\n(?s:.*?)^```$", r"\s+\n!", r"<answer>(?s:.*?)</answer>"])
def test_the_sweep_sees_one_that_does_not(pattern: str) -> None:
    assert outgrown(re.compile(pattern, re.MULTILINE).search)
