"""Finds plug-ins and keeps what they register."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

import pluggy

from rm_plugins.errors import BrokenPluginError, DuplicateNameError, PluginError, UnknownNameError, did_you_mean
from rm_plugins.hooks import PROJECT
from rm_plugins.hookspecs import HookSpecs

if TYPE_CHECKING:
    import click

    from rm_plugins.provider import Provider
    from rm_plugins.samples import Sample
    from rm_plugins.scores import Scores

__all__ = ["KINDS", "BrokenPlugin", "PluginCommand", "Registration", "Registry", "default_registry"]

KINDS: Mapping[str, str] = {
    "provider": "rm_register_providers",
    "loss": "rm_register_losses",
    "regularizer": "rm_register_regularizers",
    "aggregate": "rm_register_aggregates",
    "transform": "rm_register_transforms",
    "protocol": "rm_register_protocols",
    "suite": "rm_register_suites",
}
"""What can be registered, and the hook that registers it."""

BUILT_INS = (
    "rm_plugins.providers",
    "rm_plugins.losses",
    "rm_plugins.aggregates",
    "rm_plugins.transforms",
    "rm_plugins.protocols",
    "rm_plugins.suites",
)


@dataclass(frozen=True, slots=True)
class Registration:
    """One class that a plug-in registered.

    Args:
        kind: A key of `KINDS`.
        name: The name it is asked for by.
        cls: The class itself.
        plugin: The plug-in that brought it.
        version: The version of the distribution the plug-in came in, empty where there is none.
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


class Registry:
    """Plug-ins and what they registered.

    Args:
        plugins: Plug-in modules or objects, besides the built-in ones. One with a misspelt hook is refused at once.
        discover: Whether to load the installed plug-ins of the entry-point group ``rm_plugins``. One that fails is kept in
            `broken` and takes nothing else down.

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
        own_version = _own_version()
        for module in BUILT_INS:
            self._add(__import__(module, fromlist=["_"]), module, own_version)
        for plugin in plugins:
            name = getattr(plugin, "__name__", None) or type(plugin).__name__
            self._add(plugin, name, "")
        if discover:
            for entry_point in sorted(entry_points(group=PROJECT), key=lambda found: found.name):
                self._discover(entry_point)

    def _add(self, plugin: object, name: str, version: str) -> None:
        if self._manager.has_plugin(name):
            raise PluginError(f"The plug-in {name!r} was refused: another one of that name is there already.")
        try:
            self._manager.register(plugin, name)
            self._manager.check_pending()
        except (pluggy.PluginValidationError, ValueError) as error:
            if self._manager.has_plugin(name):
                self._manager.unregister(name=name)
            raise PluginError(f"The plug-in {name!r} was refused: {error}") from error
        self._versions[name] = version

    def _discover(self, entry_point: EntryPoint) -> None:
        distribution = entry_point.dist
        version = distribution.version if distribution else ""
        origin = f"{distribution.name} {version} ({entry_point.value})" if distribution else entry_point.value
        self._discovered[entry_point.name] = origin
        try:
            self._add(entry_point.load(), entry_point.name, version)
        except Exception as error:  # somebody else's module may raise anything at all
            self.broken.append(BrokenPlugin(entry_point.name, origin, error))

    def all(self, kind: str) -> Mapping[str, Registration]:
        """Everything registered of one kind, by name.

        Raises:
            DuplicateNameError: Two classes claim one name.
            PluginError: A plug-in registered something that carries no name.
        """
        if kind not in self._registered:
            self._registered[kind] = self._collect(kind)
        return self._registered[kind]

    def _collect(self, kind: str) -> dict[str, Registration]:
        found: dict[str, Registration] = {}
        for plugin, value in self._call(KINDS[kind]):
            for cls in value:
                name = getattr(cls, "name", None)
                if not isinstance(cls, type) or not isinstance(name, str):
                    raise PluginError(
                        f"The plug-in {plugin!r} registered {cls!r} as a {kind}; a class with `name: ClassVar[str]` is needed."
                    )
                if name in found:
                    other = found[name]
                    raise DuplicateNameError(
                        f"The {kind} name {name!r} is registered twice: by {other.cls.__module__}.{other.cls.__qualname__} "
                        f"(plug-in {other.plugin!r}) and {cls.__module__}.{cls.__qualname__} (plug-in {plugin!r}). Rename one, or "
                        "uninstall its plug-in."
                    )
                found[name] = Registration(kind, name, cls, plugin, self._versions[plugin])
        return found

    def _call(self, hook: str) -> list[tuple[str, Sequence[Any]]]:
        """What each plug-in answers to a hook; an installed one that fails is kept in `broken`."""
        answers = []
        for found in getattr(self._manager.hook, hook).get_hookimpls():
            try:
                answers.append((found.plugin_name, found.function() or ()))
            except Exception as error:
                if found.plugin_name not in self._discovered:
                    raise
                self.broken.append(BrokenPlugin(found.plugin_name, self._discovered[found.plugin_name], error))
        return answers

    def get(self, kind: str, name: str) -> type[Any]:
        """The class registered under `name`; an underscore is read as a hyphen.

        Raises:
            UnknownNameError: Nobody registered it; the message has the nearest match.
            BrokenPluginError: Nobody registered it, and a plug-in that might have done so failed to load.
        """
        found = self.all(kind)
        if (kebab := name.replace("_", "-")) in found:
            return found[kebab].cls
        message = f"There is no {kind} called {name!r}. {did_you_mean(name, found)}"
        if self.broken:
            raise BrokenPluginError(f"{message} {self.suspects()}") from self.broken[0].error
        raise UnknownNameError(message)

    def suspects(self) -> str:
        """What to say of a name that nobody registered while some plug-ins are broken."""
        failed = "; ".join(f"{plugin.name} from {plugin.origin}: {plugin.reason}" for plugin in self.broken)
        return f"It might belong to a plug-in that could not be loaded: {failed}."

    def commands(self) -> dict[str, PluginCommand]:
        """The commands that plug-ins add to the ``rm-plugins`` program, by name.

        Raises:
            DuplicateNameError: Two plug-ins add one command.
        """
        found: dict[str, PluginCommand] = {}
        for plugin, commands in self._call("rm_register_commands"):
            for command in commands:
                name = str(command.name)
                if name in found:
                    raise DuplicateNameError(
                        f"The command {name!r} is added by two plug-ins: {found[name].plugin!r} and {plugin!r}. Uninstall one."
                    )
                found[name] = PluginCommand(name, command, plugin, self._versions[plugin])
        return found

    def scored(self, provider: Provider, samples: Sequence[Sample], scores: Scores) -> None:
        """Tell every `rm_scored` hook of a scored batch."""
        self._manager.hook.rm_scored(provider=provider, samples=samples, scores=scores)

    def __reduce__(self) -> tuple[Any, ...]:
        # Plug-ins may be modules, which cannot be pickled: another process has the default registry in this one's place.
        return default_registry, ()


def _own_version() -> str:
    from rm_plugins import __version__

    return __version__


@lru_cache(maxsize=1)
def default_registry() -> Registry:
    """The registry of the built-in and the installed plug-ins, made at first use."""
    return Registry(discover=True)
