"""How plug-ins are found, and what happens when one is wrong."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import click
import numpy as np
import pytest

import rm_plugins as rm
from rm_plugins.errors import BrokenPluginError, DuplicateNameError, PluginError, UnknownNameError
from rm_plugins.losses.bradley_terry import BradleyTerry
from rm_plugins.registry import KINDS, default_registry


class Constant(rm.Provider):
    """Gives one number. Always."""

    name: ClassVar[str] = "constant-number"

    def __init__(self, *, value: float = 1.0) -> None:
        self.value = value

    def score_batch(self, samples: Sequence[rm.Sample]) -> rm.Scores:
        return rm.Scores(np.full(len(samples), self.value))


def plugin(name: str = "mine", /, **hooks: Any) -> object:
    """A plug-in whose hooks give what the keyword arguments say, or call it."""
    module = SimpleNamespace(__name__=name)
    for hook, value in hooks.items():
        setattr(module, hook, rm.hookimpl(value if callable(value) else giving(value)))
    return module


def giving(value: Any) -> Callable[[], Any]:
    return lambda: value


def fails() -> list[Any]:
    raise ImportError("no module named bitsandpieces")


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Installs a distribution of one module with one entry point."""
    monkeypatch.syspath_prepend(tmp_path)

    def add(distribution: str, entry_point: str, source: str) -> None:
        module = distribution.replace("-", "_")
        (tmp_path / f"{module}.py").write_text(source)
        metadata = tmp_path / f"{module}-1.5.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.5\n")
        (metadata / "entry_points.txt").write_text(f"[rm_plugins]\n{entry_point} = {module}\n")
        monkeypatch.delitem(sys.modules, module, raising=False)

    return add


PROVIDER = """
from rm_plugins import Provider, hookimpl

class Quiet(Provider):
    name = "quiet"
    def score_batch(self, samples):
        raise NotImplementedError

@hookimpl
def rm_register_providers():
    return [Quiet]
"""


def test_built_ins_come_through_the_same_hooks() -> None:
    registry = rm.Registry()
    assert {"function", "sequence-classifier"} <= set(registry.all("provider"))
    loss = registry.all("loss")["bradley-terry"]
    assert (loss.cls, loss.plugin, loss.version) == (BradleyTerry, "rm_plugins.losses", rm.__version__)
    assert loss.doc.startswith("Bradley-Terry")
    assert all(registry.all(kind) is registry.all(kind) for kind in KINDS)


def test_a_plugin_is_an_object_that_is_handed_in() -> None:
    registry = rm.Registry([plugin(rm_register_providers=[Constant])])
    assert registry.get("provider", "constant-number") is Constant
    provider = registry.all("provider")["constant-number"]
    assert (provider.plugin, provider.version, provider.doc) == ("mine", "", "Gives one number. Always.")
    assert "constant-number" not in rm.Registry().all("provider")


def test_an_underscore_is_read_as_a_hyphen() -> None:
    assert rm.Registry().get("loss", "bradley_terry") is BradleyTerry


def test_an_unknown_name_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"There is no loss called 'bradly-terry'\. Did you mean 'bradley-terry'\?"):
        rm.Registry().get("loss", "bradly-terry")
    with pytest.raises(UnknownNameError, match="There is no protocol called 'grpc'"):
        rm.Registry().get("protocol", "grpc")


def test_a_misspelt_hook_is_refused_and_leaves_nothing_behind() -> None:
    with pytest.raises(PluginError, match=r"'mine' was refused: .*rm_register_provider\b"):
        rm.Registry([plugin(rm_register_provider=[Constant])])


def test_a_hook_with_unknown_arguments_is_refused() -> None:
    def rm_scored(provider: rm.Provider, sample: rm.Sample) -> None: ...

    with pytest.raises(PluginError, match="'mine' was refused"):
        rm.Registry([SimpleNamespace(__name__="mine", rm_scored=rm.hookimpl(rm_scored))])


def test_a_name_registered_twice_names_both_classes_and_both_plugins() -> None:
    class Other(Constant):
        pass

    registry = rm.Registry([plugin("one", rm_register_providers=[Constant]), plugin("two", rm_register_providers=[Other])])
    with pytest.raises(DuplicateNameError) as caught:
        registry.get("provider", "function")
    message = str(caught.value)
    assert "'constant-number' is registered twice" in message
    assert f"{__name__}.Constant (plug-in 'one')" in message
    assert "Other (plug-in 'two')" in message
    assert registry.get("loss", "bradley-terry") is BradleyTerry


def test_two_plugins_of_one_name_are_refused() -> None:
    with pytest.raises(PluginError, match="'mine' was refused: another plug-in of that name is loaded already"):
        rm.Registry([plugin(), plugin()])


@pytest.mark.parametrize("registered", [Constant(), "constant", type("Nameless", (), {}), lambda: None])
def test_only_classes_with_a_name_can_be_registered(registered: object) -> None:
    with pytest.raises(PluginError, match=r"'mine' registered .* as a provider; a class with `name: ClassVar\[str\]`"):
        rm.Registry([plugin(rm_register_providers=[registered])]).all("provider")


def test_a_plugin_that_was_handed_in_raises_what_it_raises() -> None:
    with pytest.raises(ImportError, match="bitsandpieces"):
        rm.Registry([plugin(rm_register_providers=fails)]).all("provider")


def test_commands_carry_their_plugin() -> None:
    command = click.Command("polish", help="Make it shine. And more.")
    added = rm.Registry([plugin(rm_register_commands=[command])]).commands()["polish"]
    assert (added.command, added.plugin, added.doc) == (command, "mine", "Make it shine.")
    with pytest.raises(DuplicateNameError, match="'polish' is added by two plug-ins: 'mine' and 'yours'"):
        rm.Registry(
            [plugin(rm_register_commands=[command]), plugin("yours", rm_register_commands=[click.Command("polish")])]
        ).commands()


def numbered(kind: str) -> type[Any]:
    """A class that can be registered as this kind."""
    return type("Numbered", (), {"name": f"a-{kind}-for-tests"})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("given", [[type("Nameless", (), {})], [3], ["a name"], 3, [numbered("x"), None]], ids=repr)
def test_what_is_no_class_with_a_name_is_refused_for_every_kind(kind: str, given: Any) -> None:
    registry = rm.Registry([plugin(**{KINDS[kind]: given})])
    with pytest.raises(PluginError, match="mine"):
        registry.all(kind)


def test_a_plugin_need_not_be_hashable() -> None:
    @dataclass
    class Plugin:
        cls: type[rm.Provider]

        @rm.hookimpl
        def rm_register_providers(self) -> list[type[rm.Provider]]:
            return [self.cls]

        @property
        def beside(self) -> str:
            raise RuntimeError("nobody asks for this")

    registered = rm.Registry([Plugin(Constant)]).all("provider")["constant-number"]
    assert (registered.cls, registered.plugin) == (Constant, "Plugin")


@pytest.mark.parametrize("given", ["polish", click.Command(None), lambda: None])
def test_only_commands_with_a_name_can_be_registered(given: object) -> None:
    with pytest.raises(PluginError, match=r"'mine' registered .* as a command; a `click.Command` with a name is needed"):
        rm.Registry([plugin(rm_register_commands=[given])]).commands()


class TestInstalled:
    def test_a_distribution_is_found_with_its_version(self, install: Callable[..., None]) -> None:
        install("quiet-rewards", "quiet", PROVIDER)
        quiet = rm.Registry(discover=True).all("provider")["quiet"]
        assert (quiet.plugin, quiet.version, quiet.cls.__module__) == ("quiet", "1.5", "quiet_rewards")
        assert "quiet" not in rm.Registry().all("provider")

    def test_the_order_is_by_name_whatever_was_installed_first(self, install: Callable[..., None]) -> None:
        source = "from rm_plugins import hookimpl, Provider\nclass A(Provider):\n    name = {!r}\n"
        source += "@hookimpl\ndef rm_register_providers():\n    return [A]\n"
        for name in ("zebra", "ant", "mole"):
            install(f"dist-{name[::-1]}", name, source.format(name))
        names = [name for name in rm.Registry(discover=True).all("provider") if name in ("zebra", "ant", "mole")]
        assert names == ["ant", "mole", "zebra"]

    @pytest.mark.parametrize(
        ("source", "reason"),
        [
            ("raise RuntimeError('cannot start\\nfor a reason')", "RuntimeError: cannot start"),
            ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
            ("def broken(:", "SyntaxError: "),
            ("from rm_plugins import hookimpl\n@hookimpl\ndef rm_registr_losses(): return []", "PluginError: "),
        ],
    )
    def test_a_broken_plugin_takes_nothing_down(self, source: str, reason: str, install: Callable[..., None]) -> None:
        install("broken-rewards", "a-broken-one", source)
        install("quiet-rewards", "quiet", PROVIDER)
        registry = rm.Registry(discover=True)
        assert "quiet" in registry.all("provider")
        (broken,) = registry.broken
        assert (broken.name, broken.origin) == ("a-broken-one", "broken-rewards 1.5 (broken_rewards)")
        assert broken.reason.startswith(reason)

    def test_a_name_that_might_be_a_broken_plugins_raises_its_cause(self, install: Callable[..., None]) -> None:
        install("broken-rewards", "broken", "raise RuntimeError('cannot start')")
        registry = rm.Registry(discover=True)
        with pytest.raises(
            BrokenPluginError, match=r"no provider called 'theirs'.*might belong to.*broken-rewards 1\.5"
        ) as caught:
            registry.get("provider", "theirs")
        assert str(caught.value.__cause__) == "cannot start"
        assert registry.get("loss", "bradley-terry") is BradleyTerry

    def test_a_hook_that_fails_breaks_its_own_plugin_only(self, install: Callable[..., None]) -> None:
        source = PROVIDER.replace("return [Quiet]", "import no_such_module")
        install("late-rewards", "late", source)
        registry = rm.Registry(discover=True)
        assert "function" in registry.all("provider")
        assert [(broken.name, broken.reason) for broken in registry.broken] == [
            ("late", "ModuleNotFoundError: No module named 'no_such_module'")
        ]

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize(
        ("hook", "reason"),
        [
            (
                "@hookimpl\ndef {hook}():\n    return [type('Nameless', (), {{}})]",
                "PluginError: The plug-in 'wrong' registered",
            ),
            ("@hookimpl\ndef {hook}():\n    return [Sound, 'name']", "PluginError: The plug-in 'wrong' registered 'name'"),
            ("@hookimpl\ndef {hook}():\n    return 3", "PluginError: The hook"),
            ("@hookimpl\ndef {hook}():\n    return 1 / 0", "ZeroDivisionError"),
            ("@hookimpl(wrapper=True)\ndef {hook}():\n    return 1 / 0\n    yield", "ZeroDivisionError"),
            ("@hookimpl(wrapper=True)\ndef {hook}():\n    yield\n    return 1 / 0", "ZeroDivisionError"),
            ("@hookimpl(wrapper=True)\ndef {hook}():\n    yield", "PluginError: The hook"),
            ("@hookimpl(wrapper=True)\ndef {hook}():\n    yield\n    yield", "RuntimeError"),
            ("@hookimpl(hookwrapper=True)\ndef {hook}():\n    return 1 / 0\n    yield", "ZeroDivisionError"),
            ("@hookimpl(hookwrapper=True)\ndef {hook}():\n    outcome = yield\n    outcome.force_result(3)", "PluginError"),
        ],
    )
    def test_what_is_wrong_with_one_costs_no_other(
        self, kind: str, hook: str, reason: str, install: Callable[..., None]
    ) -> None:
        ours = {*rm.Registry(discover=True).all(kind)} - {*rm.Registry().all(kind)}  # of the plug-ins of this project
        start = "from rm_plugins import hookimpl\nclass Sound:\n    name = {!r}\n"
        install("wrong", "wrong", start.format("of-the-wrong-one") + hook.format(hook=KINDS[kind]))
        sound = "@hookimpl\ndef {}():\n    return [Sound]"
        for name in ("a-sound", "z-sound"):  # asked before and after it
            install(name, name, start.format(name) + sound.format(KINDS[kind]))
        mine = plugin(**{KINDS[kind]: [numbered(kind)]})
        registry = rm.Registry([mine], discover=True)
        expected = [*rm.Registry([mine]).all(kind), "a-sound", "z-sound"]
        assert [name for name in registry.all(kind) if name not in ours] == expected
        (broken,) = registry.broken
        assert (broken.name, broken.origin) == ("wrong", "wrong 1.5 (wrong)")
        assert broken.reason.startswith(reason)
        with pytest.raises(BrokenPluginError):
            registry.get(kind, "of-the-wrong-one")

    def test_a_command_that_is_none_costs_no_other(self, install: Callable[..., None]) -> None:
        install("wrong", "wrong", "from rm_plugins import hookimpl\n@hookimpl\ndef rm_register_commands(): return ['polish']")
        registry = rm.Registry([plugin(rm_register_commands=[click.Command("shine")])], discover=True)
        assert "shine" in registry.commands()
        assert "shine" in registry.commands()
        assert [broken.name for broken in registry.broken] == ["wrong"]  # once

    def test_two_entry_points_of_one_name_leave_the_first(self, install: Callable[..., None]) -> None:
        install("quiet-rewards", "quiet", PROVIDER)
        install("quieter-rewards", "quiet", PROVIDER.replace('"quiet"', '"quieter"'))
        registry = rm.Registry(discover=True)
        assert len({"quiet", "quieter"} & set(registry.all("provider"))) == 1
        assert len(registry.broken) == 1

    def test_the_default_registry_pickles_as_itself(self) -> None:
        assert pickle.loads(pickle.dumps(default_registry())) is default_registry()
