"""Builds a provider from a spec: a path, a hub id, a URL, ``module:function``, a name, or a mapping."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import ValidationError

from rm_plugins.component import Component, LocalPath
from rm_plugins.constructor_schema import announces, schema_of, validator_of
from rm_plugins.digests import with_digests
from rm_plugins.errors import PluginError, RmPluginsError, SpecError, did_you_mean
from rm_plugins.imported_function import of_python_file
from rm_plugins.missing_path import not_there, other_kind
from rm_plugins.named_rewards import SPEC_VARIABLE, named_rewards_file
from rm_plugins.provider import Provider
from rm_plugins.providers.function import FunctionProvider
from rm_plugins.registry import Registry, default_registry
from rm_plugins.written_settings import beyond_bounds, read_mapping
from rm_plugins.written_spec import written_out

MOST_PROVIDERS = 1_000
"""How many rewards a spec may contain, each counted as often as it is named."""

MOST_FILES = 50
"""How many files and named rewards may be nested in each other."""

SHARED_KEYS = ("provider", "label", "transform", "on_error")
"""Keys that every provider's spec has in addition to its own."""

FILE_ENDINGS = (".yaml", ".yml", ".json")
_LONGEST_SHOWN = 200
_SECRET = ("headers",)
"""Keys whose values no message quotes."""
_LONGEST_TEXT = 4_096
_URL = re.compile(r"https?://", re.IGNORECASE)
_BUILT = (Component, LocalPath, Provider)
"""What values of a spec become: components, absolute paths, providers."""
_OBJECT = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def load(
    spec: str | Path | Mapping[str, Any] | Provider | Callable[..., Any],
    *,
    registry: Registry | None = None,
    **settings: Any,
) -> Provider:
    """The provider that a spec describes.

    Args:
        spec: One of

            - a model folder, or a ``.yaml``/``.json`` file that holds a mapping;
            - ``http://...``, short for ``{provider: remote, url: ...}``;
            - ``module:function``, or a callable, short for ``{provider: function, function: ...}``;
            - the name of a registered provider, or of a reward in ``rm_plugins.yaml``;
            - a model id of the hub, short for ``{provider: sequence-classifier, model: ...}``;
            - a mapping with ``provider``, that provider's own keys, and the shared ones ``label``, ``transform`` and
              ``on_error`` (``raise``, ``abstain`` or ``{fallback: SPEC}``);
            - a provider, which is returned unchanged.
        registry: Where names are looked up; the installed plug-ins by default.
        settings: Further keys of the mapping, which override the spec's own.

    Raises:
        SpecError: The spec is wrong; the message names the path inside it, what is allowed, and the nearest match.
        BrokenPluginError: The name might belong to a plug-in that failed to load.
        ModelError: The folder or hub id is not a usable reward model.
    """
    registry = registry or default_registry()
    try:
        provider = SpecBuilder(registry, Path.cwd()).provider(spec, "", settings)
    except RecursionError as error:
        raise SpecError("The spec is nested too deeply through its files and names.") from error
    if provider is not spec:
        provider.observer = registry.scored
    return provider


def component(kind: str, spec: str | Mapping[str, Any] | object, *, registry: Registry | None = None) -> Any:
    """A loss, regularizer, transform, aggregate or protocol from its name, from ``{name: NAME, ...}``, or as it is.

    Raises:
        SpecError: An argument is unknown, missing or of the wrong type.
        UnknownNameError: No plug-in registered the name.
    """
    return SpecBuilder(registry or default_registry(), Path.cwd()).component(kind, spec, kind)


class SpecBuilder:
    """Builds one spec and the specs nested in it.

    Args:
        registry: Where names are looked up.
        folder: The folder that paths are relative to.
        source: The file that the spec came from, for messages.
        within: The files and named rewards that contain this spec.
        made: The counts of what was made so far for the outermost spec.
    """

    def __init__(
        self,
        registry: Registry,
        folder: Path,
        source: str = "",
        within: tuple[str, ...] = (),
        made: Counter[str] | None = None,
    ) -> None:
        self.registry = registry
        self.folder = folder
        self.source = source
        self.within = within
        self.made = Counter() if made is None else made
        self._open: list[int] = []  # ids of what is being built: in YAML, a mapping or a list can contain itself

    def inside(self, file: Path, path: str, reward: str = "") -> SpecBuilder:
        """A builder for the spec in a file, or for one named reward in it."""
        entered = (*self.within, f"{file.resolve()}:{reward}" if reward else str(file.resolve()))
        if entered[-1] in self.within:
            raise self.error(path, f"the spec contains itself: {' > '.join(entered)}.")
        if len(entered) > MOST_FILES:
            raise self.error(path, f"more than {MOST_FILES} files and names are nested in each other.")
        return SpecBuilder(self.registry, file.resolve().parent, str(file), entered, self.made)

    @contextmanager
    def opened(self, spec: object, path: str) -> Iterator[None]:
        """Within it, a part of the spec is built, which must not contain itself."""
        if id(spec) in self._open and not isinstance(spec, str):
            raise self.error(path, "the spec contains itself: this part is nested in the same part.")
        self._open.append(id(spec))
        try:
            yield
        finally:
            self._open.pop()

    def check_bounds(self, value: list[object], path: str) -> None:
        """Refuse what no spec needs and what would exhaust the memory: a thousand levels, a number with a thousand digits."""
        if (beyond := beyond_bounds(value)) is not None:
            for part in beyond[0][1:]:
                path = join_path(path, part)
            raise self.error(path if len(path) <= _LONGEST_SHOWN else f"{path[:_LONGEST_SHOWN]}...", f"{beyond[1]}.")

    def error(self, path: str, message: str) -> SpecError:
        """An error whose message begins with the file and the path inside it."""
        where = ": ".join(part for part in (self.source, path) if part)
        return SpecError(f"{where}: {message}" if where else message)

    def provider(self, spec: object, path: str, settings: Mapping[str, Any] | None = None) -> Provider:
        """The provider of a spec of any form; `settings` override its own keys."""
        if not self._open:
            self.check_bounds([spec, dict(settings or {})], path)
        if isinstance(spec, Provider):
            if settings:
                raise self.error(path, f"{spec.label!r} is already built; {', '.join(settings)} can no longer be set.")
            return spec
        if isinstance(spec, Mapping):
            with self.opened(spec, path):
                return self.from_mapping({**spec, **(settings or {})}, path)
        if isinstance(spec, (str, Path)):
            return self.from_text(str(spec), path, settings or {})
        if callable(spec):
            return self.from_mapping({"provider": FunctionProvider.name, "function": spec, **(settings or {})}, path)
        raise self.error(path, f"a spec is text, a path, a mapping, a callable or a provider, not {type(spec).__name__}.")

    def from_text(self, text: str, path: str, settings: Mapping[str, Any]) -> Provider:
        """The provider that a text names."""
        if len(text) > _LONGEST_TEXT or "\0" in text:
            raise self.error(path, f"a text of {len(text):,} characters is not the name of a reward: {text!r:.80}...")
        path_named = (self.folder / text).expanduser() if not text.startswith("~") else Path(text).expanduser()
        if _URL.match(text):
            return self.from_mapping({"provider": "remote", "url": text, **settings}, path)
        try:
            is_folder = path_named.is_dir()
        except OSError as error:  # the name is too long for a file, or a folder may not be read
            raise self.error(path, f"{text!r:.200} cannot be checked: {error.strerror}.") from error
        if is_folder:
            return self.from_mapping({"provider": "sequence-classifier", "model": str(path_named), **settings}, path)
        if path_named.suffix in FILE_ENDINGS and path_named.is_file():
            inner = self.inside(path_named, path)
            content = read_mapping(path_named)
            if "provider" not in content and "provider" not in settings:
                raise inner.error(
                    "",
                    f"the key 'provider' is missing. If the file names rewards ({', '.join(content)}), set {SPEC_VARIABLE} to "
                    "it and load one by its name.",
                )
            inner.check_bounds([content, dict(settings)], "")
            return inner.from_mapping({**content, **settings}, "")
        if meant := of_python_file(text):
            raise self.error(path, f"{text!r} names a Python file. Name the module and the function: {meant!r}.")
        if text.startswith((".", "/", "~")) or path_named.suffix in FILE_ENDINGS:
            if kind := other_kind(path_named):
                raise self.error(path, f"{text!r} is {kind}, not a readable file.")
            raise self.error(path, f"{text!r} does not exist{not_there(path_named, text)}")
        if _OBJECT.fullmatch(text):
            return self.from_mapping({"provider": FunctionProvider.name, "function": text, **settings}, path)
        if text.replace("_", "-") in self.registry.all("provider"):
            return self.from_mapping({"provider": text, **settings}, path)
        file = named_rewards_file()
        rewards = read_mapping(file) if file else {}
        if file and text in rewards:
            return self.inside(file, path, text).provider(rewards[text], text, {"label": text, **settings})
        known = [*self.registry.all("provider"), *rewards]
        if not _HUB_ID.fullmatch(text):
            raise self.error(
                path,
                f"{text!r} is not a folder or file, a URL, module:function, a registered provider, a named reward, or a model id "
                f"(OWNER/NAME). {did_you_mean(text, known)}",
            )
        return self.from_mapping({"provider": "sequence-classifier", "model": text, **settings}, path)

    def from_mapping(self, spec: Mapping[str, Any], path: str) -> Provider:
        """The provider that a mapping describes."""
        self.made["providers"] += 1
        if self.made["providers"] > MOST_PROVIDERS:
            raise self.error(path, f"the spec and the files that it names contain more than {MOST_PROVIDERS:,} rewards.")
        arguments = dict(spec)
        if "provider" not in arguments:
            known = ", ".join(sorted(self.registry.all("provider")))
            raise self.error(path, f"the key 'provider' is missing. Allowed values: {known}.")
        cls = self.lookup("provider", arguments.pop("provider"), join_path(path, "provider"))
        if "name" in arguments and "name" not in schema_of(cls):  # type: ignore[arg-type]  # a class is hashable
            warnings.warn("A reward's own name is its `label`; `name` names a component. Write `label`.", FutureWarning, 2)
            arguments = {"label": arguments.pop("name"), **arguments}
        shared = {key: arguments.pop(key) for key in SHARED_KEYS if key in arguments}
        label = shared.get("label")
        if label is not None and not isinstance(label, str):
            raise self.error(join_path(path, "label"), f"must be text, not {label!r}.")
        provider: Provider
        provider, written = self.construct(cls, arguments, path, also=SHARED_KEYS)
        provider.where = ": ".join(filter(None, (self.source, path)))
        if label is not None:
            provider.label = label
            written["label"] = label
        if shared.get("transform") is not None:
            where = join_path(path, "transform")
            provider.transform = self.component("transform", shared["transform"], where)
            with self.errors_at(where):
                provider.transform.bind(provider)
            written["transform"] = written_out(provider.transform)
        self.set_on_error(provider, shared.get("on_error", "raise"), join_path(path, "on_error"))
        if provider.fallback is not None:
            written["on_error"] = {"fallback": written_out(provider.fallback)}
        elif provider.on_error != "raise":
            written["on_error"] = provider.on_error
        provider.spec = {"provider": cls.name, **written}
        return provider

    def set_on_error(self, provider: Provider, policy: object, path: str) -> None:
        """Set what the provider does with failures."""
        if isinstance(policy, Mapping) and set(policy) == {"fallback"}:
            provider.fallback = self.provider(policy["fallback"], join_path(path, "fallback"))
        elif policy in ("raise", "abstain"):
            provider.on_error = policy
        else:
            raise self.error(path, f"must be 'raise', 'abstain' or {{fallback: SPEC}}, not {policy!r}.")

    def component(self, kind: str, spec: object, path: str) -> Any:
        """A transform, aggregate, protocol, loss or regularizer from its spec."""
        if kind == "transform" and isinstance(spec, (list, tuple)):
            with self.opened(spec, path):
                return self.component(kind, {"name": "chain", "transforms": spec}, path)
        if isinstance(spec, (str, Mapping)):
            arguments = {"name": spec} if isinstance(spec, str) else dict(spec)
            if "name" not in arguments:
                known = ", ".join(sorted(self.registry.all(kind)))
                raise self.error(path, f"the key 'name' is missing. Allowed values: {known}.")
            cls = self.lookup(kind, arguments.pop("name"), path if isinstance(spec, str) else join_path(path, "name"))
            with self.opened(spec, path):
                made, written = self.construct(cls, arguments, path, also=("name",))
            if isinstance(made, Component):
                made.spec = {"name": cls.name, **written}
            return made
        if isinstance(spec, Component) or callable(spec):
            return spec
        raise self.error(path, f"must be a name, a mapping with 'name', or an object, not {spec!r}.")

    def lookup(self, kind: str, name: object, path: str) -> type[Any]:
        """The class registered under a name."""
        if not isinstance(name, str):
            raise self.error(path, f"must be the name of a {kind}, not {name!r}.")
        try:
            return self.registry.get(kind, name)
        except PluginError as error:
            raise type(error)(str(self.error(path, str(error)))) from error.__cause__

    def construct(
        self, cls: type[Any], arguments: Mapping[str, Any], path: str, also: Sequence[str] = ()
    ) -> tuple[Any, dict[str, Any]]:
        """`cls` called with `arguments`, which are checked against its constructor's annotations, and the arguments written out."""
        schema = schema_of(cls)  # type: ignore[arg-type]  # a class is hashable
        resolved = {
            key: self.resolve(schema[key], value, join_path(path, key)) if key in schema else value
            for key, value in arguments.items()
        }
        try:
            validator_of(cls).validate_python(resolved)  # type: ignore[arg-type]
        except ValidationError as error:
            what = f"{getattr(cls, 'name', cls.__name__)!r}"
            raise SpecError(self.problems(error, what, path, [*schema, *also])) from None
        try:
            written = {key: written_out(value) for key, value in resolved.items()}
            # Before it is made: a file that is edited in between then counts as changed.
            read = with_digests({key: value for key, value in written.items() if key not in _without_effect(cls)})
            with self.errors_at(path):
                made = cls(**resolved)
            if isinstance(made, (Component, Provider)):
                made.spec_as_read = read
            return made, written
        except RmPluginsError:
            raise
        except Exception as error:  # a plug-in's constructor may raise anything
            reason = f"{type(error).__name__}: {error}"
            raise self.error(path, f"{getattr(cls, 'name', cls.__name__)!r} could not be made: {reason}") from error

    @contextmanager
    def errors_at(self, path: str) -> Iterator[None]:
        """Prefixes the errors of a component with its path in the spec."""
        try:
            yield
        except SpecError as error:
            raise self.error(join_path(path, error.key) if error.key else path, error.message) from error.__cause__

    def problems(self, error: ValidationError, what: str, path: str, allowed: Sequence[str]) -> str:
        """One line for every key that is wrong."""
        messages: dict[str, list[str]] = {}
        for problem in error.errors(include_url=False):
            key = str(problem["loc"][0])
            match problem["type"]:
                case "extra_forbidden":
                    message = f"unknown key {key!r} for {what}. {did_you_mean(key, allowed)}"
                case "missing":
                    message = f"{what} needs the key {key!r}, which is missing."
                case _:
                    given = "<hidden>" if key in _SECRET else f"{problem['input']!r:.80}"
                    message = f"{problem['msg'][:1].lower()}{problem['msg'][1:]}, not {given}."
            # After the key come positions and, for a union, one entry per branch.
            positions = [part for part in problem["loc"][1:] if isinstance(part, int)]
            where = "".join([join_path(path, key), *(f"[{position}]" for position in positions)])
            messages.setdefault(where, []).append(message)
        return "\n".join(str(self.error(where, " Or: ".join(alternatives))) for where, alternatives in messages.items())

    def resolve(self, annotation: Any, value: Any, path: str) -> Any:
        """`value`, in which the specs and local paths that its annotation announces are replaced by what they describe."""
        origin, parts = get_origin(annotation), get_args(annotation)
        if value is None:
            return None
        if origin is Annotated:
            return self.local(value, path) if LocalPath in parts[1:] else self.resolve(parts[0], value, path)
        if origin in (Union, UnionType):
            announced = [part for part in parts if part is not NoneType and announces(part, *_BUILT)]
            return self.resolve(announced[0], value, path) if announced else value
        if isinstance(annotation, type) and issubclass(annotation, Provider):
            return self.provider(value, path)
        if isinstance(annotation, type) and issubclass(annotation, Component):
            return self.component(annotation.kind, value, path)
        if not announces(annotation, *_BUILT):
            return value
        if isinstance(value, Mapping) and len(parts) == 2:
            return {key: self.resolve(parts[1], item, join_path(path, key)) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.resolve(parts[0], item, join_path(path, position)) for position, item in enumerate(value)]
        return value

    def local(self, value: Any, path: str) -> Any:
        """A path relative to the spec's own file, where such a file or folder exists; else the value."""
        if not isinstance(value, str):
            return value
        local = Path(value).expanduser() if value.startswith("~") else self.folder / value
        with suppress(OSError):  # the text is too long for a file's name
            if local.exists():
                return str(local)
        if value.startswith((".", "/", "~")):
            raise self.error(path, f"{value!r} does not exist{not_there(local, value)}")
        return value


def _without_effect(cls: type[Any]) -> Collection[str]:
    """The keys of a spec that change no score."""
    return cls.keys_without_effect if issubclass(cls, (Component, Provider)) else ()


def join_path(path: str, part: object) -> str:
    """The path in a spec of a key or a position below `path`."""
    if isinstance(part, int):
        return f"{path}[{part}]"
    return f"{path}.{part}" if path else str(part)
