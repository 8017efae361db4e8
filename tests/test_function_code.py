"""A function whose code, or whose module's part that it uses, was edited is another reward; nothing else makes it one."""

from __future__ import annotations

import ast
import importlib
import itertools
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


HELPERS = """
from functools import wraps

SCALE = 2.0


def scaled(text):
    return SCALE * len(text)


def unused(text):
    return 0.0


def counted(function):
    @wraps(function)
    def counting(samples):
        return [1.0 * score for score in function(samples)]
    return counting


def bare(function):
    def inner(samples):
        return function(samples)
    return inner


class State:
    def __init__(self, low):
        self.low = low

    def __call__(self, samples):
        return [float(len(s.completion_text) > self.low) for s in samples]
"""

USERS = """
import helping
from functools import partial
from helping import State, bare, counted, scaled


def by_name(samples):
    return [scaled(s.completion_text) for s in samples]


def by_module(samples):
    return [helping.scaled(s.completion_text) for s in samples]


def inside(samples):
    from helping import scaled as scale
    return [scale(s.completion_text) for s in samples]


def plain(samples):
    return [0.5 for s in samples]


@counted
def decorated(samples):
    return [0.5 for s in samples]


@bare
def hidden(samples):
    return [0.5 for s in samples]


def window(samples, low=1):
    return [float(len(s.completion_text) > low) for s in samples]


def kind(sample):
    return str(len(sample.completion_text) > 1).lower()


state = State(low=3)
short = partial(window, low=2)
anonymous = lambda samples: [0.25 for s in samples]
"""


@pytest.fixture
def two_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """Gives the fingerprint of a spec whose functions are in two modules, which are written anew with a text in place of another."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    names = {"helping": HELPERS, "using": USERS}

    def of(spec: Any, old: str = "", new: str = "") -> str:
        changed = {name: text.replace(old, new) if old else text for name, text in names.items()}
        assert not old or changed != names
        for name, text in changed.items():
            (tmp_path / f"{name}.py").write_text(text)
            sys.modules.pop(name, None)
        importlib.invalidate_caches()
        return fingerprint(rm.load(spec))

    yield of
    for name in names:
        sys.modules.pop(name, None)


ROUTE = {"provider": "route", "by": "using:kind", "routes": {"true": "using:plain", "false": "using:plain"}}
NESTED = {"provider": "gate", "gate": "using:plain", "reward": {"provider": "sum", "members": ["using:by_name", "using:plain"]}}


@pytest.mark.parametrize(
    ("spec", "old", "new"),
    [
        ("using:by_name", "SCALE * len", "SCALE + len"),
        ("using:by_name", "SCALE = 2.0", "SCALE = 3.0"),
        ("using:by_module", "SCALE = 2.0", "SCALE = 3.0"),
        ("using:inside", "SCALE = 2.0", "SCALE = 3.0"),
        ("using:decorated", "[0.5 for", "[0.75 for"),
        ("using:decorated", "1.0 * score", "2.0 * score"),
        ("using:hidden", "[0.5 for", "[0.75 for"),
        ("using:state", "low=3", "low=4"),
        ("using:state", "> self.low", ">= self.low"),
        ("using:short", "low=2", "low=5"),
        ("using:short", "> low)", ">= low)"),
        ("using:anonymous", "0.25", "0.75"),
        ("helping:scaled", "SCALE = 2.0", "SCALE = 3.0"),
        (ROUTE, "> 1)", "> 2)"),
        (NESTED, "SCALE = 2.0", "SCALE = 3.0"),
    ],
)
def test_what_it_uses_elsewhere_was_edited(two_modules: Callable[..., str], spec: Any, old: str, new: str) -> None:
    assert two_modules(spec) == two_modules(spec)
    assert two_modules(spec) != two_modules(spec, old, new)


@pytest.mark.parametrize("spec", ["using:by_name", "using:plain", "using:decorated", NESTED])
def test_what_it_does_not_use_elsewhere_was_edited(two_modules: Callable[..., str], spec: Any) -> None:
    assert two_modules(spec) == two_modules(spec, "return 0.0", "return 1.0")


def test_a_parser_that_another_thread_disturbs_is_asked_again(
    two_modules: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = two_modules("using:by_name")
    parse, calls = ast.parse, itertools.count()

    def disturbed(source: bytes) -> ast.Module:
        if next(calls) % 3 < 2:
            raise SystemError("AST constructor recursion depth mismatch (before=51, after=45)")
        return parse(source)

    with monkeypatch.context() as patched:
        patched.setattr(ast, "parse", disturbed)
        assert two_modules("using:by_name") == before


def test_a_provider_of_a_plug_in_was_edited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    plugin = """
import numpy as np
import rm_plugins as rm

class Half(rm.Transform):
    name = "half"
    def __call__(self, values, samples):
        return values / 2

class Fixed(rm.Provider):
    name = "always"
    def __init__(self, *, value: float) -> None:
        self.value = value
    def score_batch(self, samples):
        return rm.Scores(np.full(len(samples), self.value))

@rm.hookimpl
def rm_register_providers():
    return [Fixed]

@rm.hookimpl
def rm_register_transforms():
    return [Half]
"""

    def of(old: str = "", new: str = "") -> str:
        (tmp_path / "a_plugin.py").write_text(plugin.replace(old, new) if old else plugin)
        sys.modules.pop("a_plugin", None)
        importlib.invalidate_caches()
        registry = rm.Registry([importlib.import_module("a_plugin")])
        return fingerprint(rm.load({"provider": "always", "value": 1.0, "transform": "half"}, registry=registry))

    assert of() == of()
    assert of() != of("self.value))", "-self.value))")
    assert of() != of("values / 2", "values / 3")
    sys.modules.pop("a_plugin")


def test_objects_in_memory_are_told_apart_by_their_state() -> None:
    class Judge:
        def __init__(self, low: float) -> None:
            self.low = low

        def __call__(self, samples: Any) -> list[float]:
            return [self.low] * len(samples)

        def score(self, samples: Any) -> list[float]:
            return [self.low] * len(samples)

    def closing(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda samples: function(samples)

    for make in (Judge, lambda low: Judge(low).score, lambda low: closing(Judge(low)), lambda low: partial(Judge(low))):
        assert fingerprint(rm.load(make(1.0))) == fingerprint(rm.load(make(1.0)))
        assert fingerprint(rm.load(make(1.0))) != fingerprint(rm.load(make(2.0)))


def test_functions_without_a_file_are_told_apart_by_what_they_were_compiled_to() -> None:
    def made(body: str) -> str:
        space: dict[str, Any] = {"__name__": "nowhere_in_a_file"}
        exec(f"def reward(samples):\n    return [{body} for sample in samples]\n", space)
        return fingerprint(rm.load(space["reward"]))

    assert made("1.0") == made("1.0")
    assert len({made("1.0"), made("2.0"), made("len(sample.completion_text)"), made("len(sample.prompt)")}) == 4
