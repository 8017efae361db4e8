"""Hooks that wrap others, and hooks that are told of scores."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import click
import pytest

import rm_plugins as rm
from rm_plugins.errors import DataError, DuplicateNameError, PluginError
from rm_plugins.registry import KINDS
from tests.test_registry import Constant, numbered, plugin


def around(change: Callable[[list[Any]], Any], **options: Any) -> Callable[[], Any]:
    """A wrapper of a hook that returns what `change` makes of the lists of all others, in pluggy's new or old style."""

    def new() -> Any:
        return change((yield))

    def old() -> Any:
        outcome = yield
        outcome.force_result(change(outcome.get_result()))

    hook: Callable[[], Any] = rm.hookimpl(**options)(old if options.get("hookwrapper") else new)
    return hook


STYLES: list[dict[str, Any]] = [{"wrapper": True}, {"hookwrapper": True}]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("style", STYLES, ids=str)
class TestWrappers:
    """Everything registered passes pluggy's wrappers."""

    def registry(self, kind: str, style: dict[str, Any], change: Callable[[list[Any]], Any], *others: object) -> rm.Registry:
        return rm.Registry([*others, SimpleNamespace(__name__="around", **{KINDS[kind]: around(change, **style)})])

    def test_one_that_changes_nothing(self, kind: str, style: dict[str, Any]) -> None:
        seen: list[list[Any]] = []

        def watch(lists: list[Any]) -> list[Any]:
            seen.append([cls for classes in lists for cls in classes])
            return lists

        theirs = plugin("theirs", **{KINDS[kind]: [numbered(kind)]})
        registered = self.registry(kind, style, watch, theirs).all(kind)
        assert list(registered.items()) == list(rm.Registry([theirs]).all(kind).items())
        (everything,) = seen  # once
        assert {cls.name for cls in everything} == set(registered)

    def test_one_that_adds(self, kind: str, style: dict[str, Any]) -> None:
        cls = numbered(kind)
        registered = self.registry(kind, style, lambda lists: [*lists, [cls]]).all(kind)
        assert (registered[cls.name].cls, registered[cls.name].plugin) == (cls, "around")
        before = rm.Registry().all(kind)
        assert {name: registered[name] for name in before} == before

    def test_one_that_drops(self, kind: str, style: dict[str, Any]) -> None:
        dropped = next(iter(rm.Registry().all(kind)), "")
        registered = self.registry(
            kind, style, lambda lists: [[cls for cls in classes if cls.name != dropped] for classes in lists]
        ).all(kind)
        assert [*registered] == [name for name in rm.Registry().all(kind) if name != dropped]

    def test_one_that_replaces(self, kind: str, style: dict[str, Any]) -> None:
        theirs, better = numbered(kind), numbered(kind)
        registered = self.registry(
            kind,
            style,
            lambda lists: [[better if cls is theirs else cls for cls in classes] for classes in lists],
            plugin("theirs", **{KINDS[kind]: [theirs]}),
        ).all(kind)
        assert (registered[theirs.name].cls, registered[theirs.name].plugin) == (better, "theirs")

    def test_one_that_adds_under_a_name_that_is_taken(self, kind: str, style: dict[str, Any]) -> None:
        theirs, other = numbered(kind), numbered(kind)
        registry = self.registry(kind, style, lambda lists: [*lists, [other]], plugin("theirs", **{KINDS[kind]: [theirs]}))
        with pytest.raises(DuplicateNameError, match=r"plug-in 'theirs'.*plug-in 'around'"):
            registry.all(kind)

    def test_one_that_settles_which_of_two_is_meant(self, kind: str, style: dict[str, Any]) -> None:
        ones, others = numbered(kind), numbered(kind)
        plugins = [plugin("one", **{KINDS[kind]: [ones]}), plugin("two", **{KINDS[kind]: [others]})]
        with pytest.raises(DuplicateNameError, match=r"plug-in 'one'.*plug-in 'two'"):
            rm.Registry(plugins).all(kind)
        registered = self.registry(
            kind, style, lambda lists: [[cls for cls in classes if cls is not ones] for classes in lists], *plugins
        ).all(kind)
        assert (registered[ones.name].cls, registered[ones.name].plugin) == (others, "two")

    @pytest.mark.parametrize("made", [None, 3, [[numbered("x"), "nobody"]]])
    def test_one_that_gives_something_else(self, kind: str, style: dict[str, Any], made: Any) -> None:
        with pytest.raises(PluginError, match="around"):
            self.registry(kind, style, lambda lists: made).all(kind)


def test_two_wrappers_are_told_apart() -> None:
    def adding(name: str) -> object:
        added = type(name, (), {"name": name})
        hook = around(lambda lists: [*lists, [added]], wrapper=True)
        return SimpleNamespace(__name__=f"adds-{name}", rm_register_losses=hook)

    registered = rm.Registry([adding("first"), adding("second")]).all("loss")
    assert [registered[name].plugin for name in ("first", "second")] == ["adds-first", "adds-second"]


def test_commands_pass_wrappers() -> None:
    polish, shine = click.Command("polish"), click.Command("shine")

    def change(lists: list[Any]) -> list[Any]:
        return [[command for command in commands if command is not polish] for commands in [*lists, [shine]]]

    wrapper = SimpleNamespace(__name__="around", rm_register_commands=around(change, wrapper=True))
    plugins = [plugin(rm_register_commands=[polish]), wrapper]
    assert {name: command.plugin for name, command in rm.Registry(plugins).commands().items()} == {"shine": "around"}


def test_every_observer_is_told_of_a_scored_batch() -> None:
    seen: list[tuple[str, int, float]] = []

    def rm_scored(provider: rm.Provider, samples: Sequence[rm.Sample], scores: rm.Scores) -> None:
        seen.append((provider.label, len(samples), float(scores.values.sum())))

    registry = rm.Registry([plugin(rm_scored=rm_scored, rm_register_providers=[Constant])])
    rm.load({"provider": "constant-number", "label": "two", "value": 2.0}, registry=registry).score([rm.Sample("", "a")] * 3)
    assert seen == [("two", 3, 6.0)]


def scoring(*plugins: object) -> rm.Scores:
    registry = rm.Registry([plugin("constants", rm_register_providers=[Constant]), *plugins])
    return rm.load({"provider": "constant-number"}, registry=registry).score([rm.Sample("", "a")] * 3)


class TestScoredHooks:
    """What a hook that is told of scores may do."""

    def test_one_that_raises_is_named(self) -> None:
        def rm_scored(scores: rm.Scores) -> None:
            raise KeyError("no such column")

        quiet = plugin("quiet", rm_scored=lambda: None)
        with pytest.raises(
            PluginError, match=r"^The plug-in 'loud' failed in its hook rm_scored, after 'constant-number'"
        ) as caught:
            scoring(quiet, plugin("loud", rm_scored=rm_scored), plugin("last", rm_scored=lambda: None))
        assert isinstance(caught.value.__cause__, KeyError)
        assert "KeyError: 'no such column'" in str(caught.value)

    def test_an_error_of_ours_is_told_apart_from_the_rewards_own(self) -> None:
        def rm_scored() -> None:
            raise DataError("this row is odd")

        with pytest.raises(PluginError, match=r"'mine' failed.*DataError: this row is odd"):
            scoring(plugin(rm_scored=rm_scored))

    def test_where_it_is_unknown_which_one_raised_all_are_named(self) -> None:
        def failing() -> Callable[[], None]:
            def rm_scored() -> None:
                raise ValueError("of either")

            return rm_scored

        with pytest.raises(PluginError, match=r"^One of the plug-ins 'one', 'two' failed"):
            scoring(plugin("one", rm_scored=failing()), plugin("two", rm_scored=failing()))

    def test_a_call_from_within_is_its_plugins(self) -> None:
        def rm_scored(scores: rm.Scores) -> None:
            json.loads("no JSON")

        with pytest.raises(PluginError, match=r"^The plug-in 'mine' failed"):
            scoring(plugin("other", rm_scored=lambda: None), plugin(rm_scored=rm_scored))

    @pytest.mark.parametrize("style", STYLES, ids=str)
    def test_a_wrapper_is_run_around_the_others(self, style: dict[str, Any]) -> None:
        told: list[str] = []

        def wrapper(provider: rm.Provider) -> Any:
            told.append("before")
            result = yield
            told.append("after")
            return result

        around = SimpleNamespace(__name__="around", rm_scored=rm.hookimpl(**style)(wrapper))
        assert len(scoring(plugin(rm_scored=lambda: told.append("scored")), around)) == 3
        assert told == ["before", "scored", "after"]

    def test_a_wrapper_that_raises_is_named(self) -> None:
        def wrapper() -> Any:
            yield
            raise ValueError("too late")

        around = SimpleNamespace(__name__="around", rm_scored=rm.hookimpl(wrapper=True)(wrapper))
        with pytest.raises(PluginError, match=r"^The plug-in 'around' failed.*ValueError: too late"):
            scoring(plugin(rm_scored=lambda: None), around)

    def test_one_inside_a_wrapper_is_named(self) -> None:
        def rm_scored() -> None:
            raise ValueError("inside")

        def wrapper() -> Any:
            return (yield)

        around = SimpleNamespace(__name__="around", rm_scored=rm.hookimpl(wrapper=True)(wrapper))
        with pytest.raises(PluginError, match=r"^The plug-in 'mine' failed.*ValueError: inside"):
            scoring(plugin(rm_scored=rm_scored), around)

    def test_a_wrapper_may_make_up_for_one_that_raises(self) -> None:
        def rm_scored() -> None:
            raise ValueError("inside")

        def wrapper() -> Any:
            try:
                return (yield)
            except ValueError:
                return []

        around = SimpleNamespace(__name__="around", rm_scored=rm.hookimpl(wrapper=True)(wrapper))
        assert len(scoring(plugin(rm_scored=rm_scored), around)) == 3

    def test_an_interrupt_stays_one(self) -> None:
        def rm_scored() -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            scoring(plugin(rm_scored=rm_scored))
