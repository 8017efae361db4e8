"""Finds plug-ins and keeps what they register."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from traceback import walk_tb
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pluggy

from rm_plugins.errors import BrokenPluginError, DuplicateNameError, PluginError, UnknownNameError, did_you_mean
from rm_plugins.hooks import PROJECT
from rm_plugins.hookspecs import HookSpecs
from rm_plugins.version import __version__

if TYPE_CHECKING:
    import click

    from rm_plugins.provider import Provider
    from rm_plugins.samples import Sample
    from rm_plugins.scores import Scores

KINDS: Mapping[str, str] = {
    "provider": "rm_register_providers",
    "loss": "rm_register_losses",
    "regularizer": "rm_register_regularizers",
    "aggregate": "rm_register_aggregates",
    "transform": "rm_register_transforms",
    "protocol": "rm_register_protocols",
    "comparer": "rm_register_comparers",
    "judge": "rm_register_judges",
    "suite": "rm_register_suites",
    "dialect": "rm_register_dialects",
    "engine": "rm_register_engines",
}
"""The kinds of things that can be registered, each with its hook."""

BUILT_INS = (
    "rm_plugins.providers",
    "rm_plugins.losses",
    "rm_plugins.aggregates",
    "rm_plugins.transforms",
    "rm_plugins.protocols",
    "rm_plugins.comparisons",
    "rm_plugins.judges",
    "rm_plugins.suites",
    "rm_plugins.server.dialects",
)


@dataclass(frozen=True, slots=True)
class Registration:
    """One class that a plug-in registered.

    Args:
        kind: A key of `KINDS`.
        name: Its name in specs.
        cls: The class itself.
        plugin: The plug-in that registered it.
        version: The version of the plug-in's distribution, empty where there is none.
    """

    kind: str
    name: str
    cls: type[Any]
    plugin: str
    version: str

    @property
    def doc(self) -> str:
        """The first line of the class's docstring."""
        return (inspect.getdoc(self.cls) or "").partition("\n")[0]


@dataclass(frozen=True, slots=True)
class PluginCommand:
    """A command that a plug-in adds to the ``rm-plugins`` program."""

    name: str
    command: click.Command
    plugin: str
    version: str

    @property
    def doc(self) -> str:
        """The first sentence of the command's help."""
        return self.command.get_short_help_str(limit=100)


@dataclass(frozen=True, slots=True)
class BrokenPlugin:
    """A plug-in that could not be loaded."""

    name: str
    origin: str
    error: BaseException

    @property
    def reason(self) -> str:
        """The exception, in one line."""
        return f"{type(self.error).__name__}: {str(self.error).partition(chr(10))[0]}"


@dataclass(frozen=True, slots=True)
class _Registered:
    """Something that a plug-in registered through a hook."""

    name: str
    value: Any
    plugin: str


class Registry:
    """Plug-ins and what they registered.

    Args:
        plugins: Plug-in modules or objects, besides the built-in ones. One with a misspelt hook is refused at once.
        discover: Whether to load the installed plug-ins of the entry-point group ``rm_plugins``. Plug-ins that fail are listed in
            `broken` and do not affect the others.

    Raises:
        PluginError: One of `plugins` implements a hook that does not exist, or with wrong arguments.
    """

    def __init__(self, plugins: Iterable[object] = (), *, discover: bool = False) -> None:
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(HookSpecs)
        self._versions: dict[str, str] = {}
        self._registered: dict[str, dict[str, Registration]] = {}
        self._discovered: dict[str, str] = {}
        self.broken: list[BrokenPlugin] = []
        for module in BUILT_INS:
            self._add(__import__(module, fromlist=["_"]), module, __version__)
        for plugin in plugins:
            name = getattr(plugin, "__name__", None) or type(plugin).__name__
            self._add(plugin, name, "")
        if discover:
            for entry_point in sorted(entry_points(group=PROJECT), key=lambda entry_point: entry_point.name):
                self._discover(entry_point)

    def _add(self, plugin: object, name: str, version: str) -> None:
        if self._manager.has_plugin(name):
            raise PluginError(f"The plug-in {name!r} was refused: another plug-in of that name is loaded already.")
        try:
            self._manager.register(self._hashable(plugin, name), name)
            self._manager.check_pending()
        except (pluggy.PluginValidationError, ValueError) as error:
            if self._manager.has_plugin(name):
                self._manager.unregister(name=name)
            raise PluginError(f"The plug-in {name!r} was refused: {error}") from error
        self._versions[name] = version

    def _hashable(self, plugin: object, name: str) -> object:
        """The plug-in itself where it is hashable, else a module with its hooks: pluggy keeps plug-ins in sets."""
        try:
            hash(plugin)
        except TypeError:
            module = ModuleType(name)
            hooks = [key for key in dir(plugin) if self._manager.parse_hookimpl_opts(plugin, key) is not None]
            vars(module).update({key: getattr(plugin, key) for key in hooks})
            return module
        return plugin

    def _discover(self, entry_point: EntryPoint) -> None:
        distribution = entry_point.dist
        version = distribution.version if distribution else ""
        origin = f"{distribution.name} {version} ({entry_point.value})" if distribution else entry_point.value
        self._discovered[entry_point.name] = origin
        try:
            self._add(entry_point.load(), entry_point.name, version)
        except Exception as error:  # a plug-in's module may raise anything at all
            self.broken.append(BrokenPlugin(entry_point.name, origin, error))

    def all(self, kind: str) -> Mapping[str, Registration]:
        """Everything registered of one kind, by name.

        Raises:
            DuplicateNameError: Two classes claim one name.
            PluginError: One of `plugins` registered something that is not a class with a name.
        """
        if kind not in self._registered:
            self._registered[kind] = self._collect(kind)
        return self._registered[kind]

    def _collect(self, kind: str) -> dict[str, Registration]:
        registered: dict[str, Registration] = {}
        for entry in self._ask(KINDS[kind], f"as a {kind}; a class with `name: ClassVar[str]` is needed", _name_of_class):
            name, cls = entry.name, entry.value
            if name in registered:
                other = registered[name]
                raise DuplicateNameError(
                    f"The {kind} name {name!r} is registered twice: by {other.cls.__module__}.{other.cls.__qualname__} "
                    f"(plug-in {other.plugin!r}) and {cls.__module__}.{cls.__qualname__} (plug-in {entry.plugin!r}). "
                    "Rename one, or uninstall its plug-in."
                )
            registered[name] = Registration(kind, name, cls, entry.plugin, self._versions[entry.plugin])
        return registered

    def _ask(self, hook: str, needed: str, name_of: Callable[[Any], str | None]) -> list[_Registered]:
        """What plug-ins register through a hook, in the order of the plug-ins.

        Each plug-in is called separately, so that one that fails does not affect the others. Hook wrappers are then called, from the
        innermost to the outermost, with what all others registered, and may remove, replace or add something.

        Args:
            hook: The hook's name.
            needed: The end of the error message about a value that cannot be registered.
            name_of: Returns the name of a value that can be registered, else None.
        """
        implementations = getattr(self._manager.hook, hook).get_hookimpls()
        wrapping = dict.fromkeys(one.plugin_name for one in implementations if one.wrapper or one.hookwrapper)
        plain = dict.fromkeys(one.plugin_name for one in implementations if one.plugin_name not in wrapping)

        def answer(plugin: str, others: Collection[str] = ()) -> list[tuple[str, Any]] | None:
            """What one plug-in registers, with what the others do where it wraps them; None where it failed and is now in `broken`."""
            named: list[tuple[str, Any]] = []
            try:
                for value in self._call(hook, [*others, plugin]):
                    name = name_of(value)
                    if name is None:
                        raise PluginError(f"The plug-in {plugin!r} registered {value!r} {needed}.")
                    named.append((name, value))
            except Exception as error:
                if plugin not in self._discovered:
                    raise
                self._break(plugin, error)
                return None
            return named

        registered: list[_Registered] = []
        working: list[str] = []
        for plugin in plain:
            if (values := answer(plugin)) is not None:
                working.append(plugin)
                registered += [_Registered(name, value, plugin) for name, value in values]
        for plugin in wrapping:
            if (values := answer(plugin, working)) is not None:
                working.append(plugin)
                registered = _attributed(values, registered, plugin)
        return registered

    def _call(self, hook: str, plugins: Sequence[str]) -> Iterator[Any]:
        """Call a hook of only some plug-ins; yields every value of every list that they return."""
        others = [plugin for name, plugin in self._manager.list_name_plugin() if name not in plugins]
        answers = self._manager.subset_hook_caller(hook, others)()
        for values in answers if isinstance(answers, list) else [answers]:
            if not isinstance(values, Iterable):
                raise PluginError(f"The hook {hook} of the plug-in {plugins[-1]!r} returned {values!r}; a list is needed.")
            yield from values

    def _break(self, plugin: str, error: Exception) -> None:
        broken = BrokenPlugin(plugin, self._discovered[plugin], error)
        if (plugin, broken.reason) not in {(other.name, other.reason) for other in self.broken}:
            self.broken.append(broken)

    def get(self, kind: str, name: str) -> type[Any]:
        """The class registered under `name`; an underscore is read as a hyphen.

        Raises:
            UnknownNameError: No plug-in registered it; the message has the nearest match.
            BrokenPluginError: No plug-in registered it, and one that might have done so failed to load.
        """
        registered = self.all(kind)
        if (kebab := name.replace("_", "-")) in registered:
            return registered[kebab].cls
        message = f"There is no {kind} called {name!r}. {did_you_mean(name, registered)}"
        if self.broken:
            raise BrokenPluginError(f"{message} {self.suspects()}") from self.broken[0].error
        raise UnknownNameError(message)

    def suspects(self) -> str:
        """The end of an error message about an unknown name, where some plug-ins are broken."""
        failed = "; ".join(f"{plugin.name} from {plugin.origin}: {plugin.reason}" for plugin in self.broken)
        return f"It might belong to a plug-in that could not be loaded: {failed}."

    def commands(self) -> dict[str, PluginCommand]:
        """The commands that plug-ins add to the ``rm-plugins`` program, by name.

        Raises:
            DuplicateNameError: Two plug-ins add one command.
        """
        commands: dict[str, PluginCommand] = {}
        for entry in self._ask(
            "rm_register_commands", "as a command; a `click.Command` with a name is needed", _name_of_command
        ):
            if entry.name in commands:
                raise DuplicateNameError(
                    f"The command {entry.name!r} is added by two plug-ins: {commands[entry.name].plugin!r} and "
                    f"{entry.plugin!r}. Uninstall one."
                )
            commands[entry.name] = PluginCommand(entry.name, entry.value, entry.plugin, self._versions[entry.plugin])
        return commands

    def scored(self, provider: Provider, samples: Sequence[Sample], scores: Scores) -> None:
        """Call every `rm_scored` hook with a scored batch.

        Raises:
            PluginError: A hook raised; the message names its plug-in, and the original exception is the ``__cause__``.
        """
        try:
            self._manager.hook.rm_scored(provider=provider, samples=samples, scores=scores)
        except Exception as error:
            raise PluginError(
                f"{self._failed('rm_scored', error)} in its hook rm_scored, after {provider.called} had scored {len(samples)} "
                f"samples: {type(error).__name__}: {error}"
            ) from error

    def _failed(self, hook: str, error: Exception) -> str:
        """Names the plug-in that raised an error in a hook, or the candidates where the traceback does not show it."""
        implementations = getattr(self._manager.hook, hook).get_hookimpls()
        suspects = list(dict.fromkeys(one.plugin_name for one in implementations))
        for frame, _ in reversed(list(walk_tb(error.__traceback__))):
            owners = {one.plugin_name for one in implementations if getattr(one.function, "__code__", None) is frame.f_code}
            if owners:
                suspects = [plugin for plugin in suspects if plugin in owners]
                break
        if len(suspects) == 1:
            return f"The plug-in {suspects[0]!r} failed"
        return f"One of the plug-ins {', '.join(map(repr, suspects))} failed"

    def __reduce__(self) -> tuple[Any, ...]:
        # Plug-ins may be modules, which cannot be pickled: another process uses the default registry instead.
        return default_registry, ()


def _name_of_class(value: Any) -> str | None:
    name = getattr(value, "name", None)
    return name if isinstance(value, type) and isinstance(name, str) else None


def _name_of_command(value: Any) -> str | None:
    import click

    return value.name if isinstance(value, click.Command) else None


def _attributed(values: Sequence[tuple[str, Any]], before: Sequence[_Registered], wrapper: str) -> list[_Registered]:
    """What is registered after a plug-in wrapped a hook: earlier values keep their plug-in and place, new ones belong to the wrapper.

    A value that replaces another value of the same name belongs to the plug-in of the replaced value.
    """
    kept = {id(value) for _, value in values}
    places: dict[object, int] = {}
    for place, entry in enumerate(before):
        places.setdefault(id(entry.value) if id(entry.value) in kept else entry.name, place)
    placed: list[tuple[int, _Registered]] = []
    for name, value in values:
        place = places.get(id(value), places.get(name, len(before)))
        plugin = before[place].plugin if place < len(before) else wrapper
        placed.append((place, _Registered(name, value, plugin)))
    return [entry for _, entry in sorted(placed, key=lambda item: item[0])]


@lru_cache(maxsize=1)
def default_registry() -> Registry:
    """The registry of the built-in and the installed plug-ins, built at first use."""
    return Registry(discover=True)
