"""A function whose code, or whose module's part that it uses, was edited is another reward; nothing else makes it one."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import rm_plugins as rm
from rm_plugins.identity import fingerprint

MODULE = '''
"""Rewards."""
import math

FACTOR = 2.0
calls = []


def helper(text):
    return FACTOR * len(text)


def reward(samples):
    calls.append(len(samples))
    return [helper(sample.completion) for sample in samples]


def another(samples):
    return [math.pi for sample in samples]


def make(low):
    def made(samples):
        return [low for sample in samples]
    return made


class Judge:
    def __call__(self, samples):
        return [0.0 for sample in samples]


judge = Judge()
'''


@pytest.fixture
def prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """Gives the fingerprint of a reward of the module, which is written anew with one text in place of another."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def of(name: str = "reward", old: str = "", new: str = "", **settings: Any) -> str:
        text = MODULE.replace(old, new) if old else MODULE
        assert not old or text != MODULE
        (tmp_path / "edited.py").write_text(text)
        sys.modules.pop("edited", None)
        importlib.invalidate_caches()
        sys.dont_write_bytecode = True
        return fingerprint(rm.load({"provider": "function", "function": f"edited:{name}", **settings}))

    yield of
    sys.dont_write_bytecode = False
    sys.modules.pop("edited", None)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("helper(sample.completion)", "-helper(sample.completion)"),
        ("FACTOR * len", "FACTOR + len"),
        ("FACTOR = 2.0", "FACTOR = 3.0"),
        ("judge = Judge()", "judge = Judge()\nFACTOR += 1"),
        ("judge = Judge()", "judge = Judge()\nmath.tau = 6"),
    ],
)
def test_what_it_does_was_edited(prints: Callable[..., str], old: str, new: str) -> None:
    assert prints() != prints(old=old, new=new)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("math.pi", "math.e"),
        ('"""Rewards."""', '"""Some rewards."""'),
        ("FACTOR = 2.0", "FACTOR = 2.0  # twice\n\n"),
        ("judge = Judge()", ""),
    ],
)
def test_something_else_was_edited(prints: Callable[..., str], old: str, new: str) -> None:
    assert prints() == prints(old=old, new=new)


def test_made_functions_and_callable_objects_are_seen_too(prints: Callable[..., str]) -> None:
    made: dict[str, Any] = {"name": "make", "factory": True, "arguments": {"low": 1.0}}
    assert prints(**made) == prints(**made, old="math.pi", new="math.e")
    assert prints(**made) != prints(**made, old="[low for", new="[-low for")
    assert prints(**made) != prints(**{**made, "arguments": {"low": 2.0}})
    assert prints("judge") != prints("judge", old="[0.0 for", new="[1.0 for")


def test_what_it_has_counted_makes_it_no_other(prints: Callable[..., str]) -> None:
    before = prints()
    rewards = rm.load("edited:reward")
    rewards.score([rm.Sample("Q", "a")])
    assert fingerprint(rewards) == before


def test_a_function_in_memory_is_the_same_in_every_process() -> None:
    def local(samples: Any) -> list[float]:
        return [0.0] * len(samples)

    for function in (local, partial(local), lambda samples: [0.0] * len(samples)):
        assert " at 0x" not in str(rm.load(function).identity)
        assert fingerprint(rm.load(function)) == fingerprint(rm.load(function))


def test_functions_in_memory_are_told_apart_by_what_they_hold() -> None:
    def closing(over: float) -> Callable[..., list[float]]:
        return lambda samples: [over] * len(samples)

    def scaled(samples: Any, factor: float = 1.0) -> list[float]:
        return [factor] * len(samples)

    functions: list[Callable[..., Any]] = [
        closing(1.0),
        closing(2.0),
        scaled,
        partial(scaled, factor=2.0),
        partial(scaled, factor=3.0),
    ]
    assert len({fingerprint(rm.load(function)) for function in functions}) == len(functions)
    assert fingerprint(rm.load(closing(1.0))) == fingerprint(rm.load(closing(1.0)))
