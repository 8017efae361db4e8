"""A spec that is read here and loaded on another node: files of settings are shipped, and local paths must exist there too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from rm_plugins.constructor_schema import schema_of
from rm_plugins.errors import ModelError, SpecError, did_you_mean
from rm_plugins.provider import Provider
from rm_plugins.registry import Registry, default_registry
from rm_plugins.spec import SHARED_KEYS, SpecBuilder, join_path


@dataclass(frozen=True, slots=True)
class ShippedSpec:
    """A spec without references to files of settings, and the local paths in it.

    Args:
        spec: The mapping for `rm_plugins.load`; the content of each file of settings that the spec named is part of it.
        paths: The folders and files that it names, by their path in the spec; they are absolute and exist where the spec was read.
    """

    spec: Mapping[str, Any]
    paths: Mapping[str, str]

    @classmethod
    def read(cls, spec: str | Path | Mapping[str, Any], *, registry: Registry | None = None) -> ShippedSpec:
        """Read a spec, and every file of settings that it names, without loading a model.

        Args:
            spec: A spec as `rm_plugins.load` takes it, except what only exists in this process: a provider or a function.
            registry: Where names are looked up; the installed plug-ins by default.

        Raises:
            SpecError: A file does not exist, the spec names an unknown provider, or a part of it was made in Python.
        """
        paths: dict[str, str] = {}
        reader = _Reader(registry or default_registry(), Path.cwd(), paths)
        try:
            written = cast("Mapping[str, Any]", reader.provider(spec, ""))
        except RecursionError as error:
            raise SpecError("The spec is nested too deeply through its files and names.") from error
        return cls(written, paths)

    def check_here(self) -> None:
        """Check that this node has the local paths.

        Raises:
            ModelError: Some do not exist; the message names each and its place in the spec.
        """
        missing = [f"{where}: {path}" for where, path in self.paths.items() if not Path(path).exists()]
        if missing:
            raise ModelError(
                f"{len(missing)} of the {len(self.paths)} local paths in the spec do not exist on this node: {'; '.join(missing)}. "
                "They exist where the spec was read. Put them on storage that every node mounts at the same place, or name a model of the "
                "hub."
            )


class _Reader(SpecBuilder):
    """Writes out a spec instead of building it."""

    def __init__(
        self, registry: Registry, folder: Path, paths: dict[str, str], source: str = "", within: tuple[str, ...] = ()
    ) -> None:
        super().__init__(registry, folder, source, within)
        self._paths = paths
        self._place = ""

    def inside(self, file: Path, path: str, reward: str = "") -> SpecBuilder:
        checked = super().inside(file, path, reward)
        reader = _Reader(self.registry, checked.folder, self._paths, checked.source, checked.within)
        reader._place = path
        return reader

    def provider(self, spec: object, path: str, settings: Mapping[str, Any] | None = None) -> Provider:
        if isinstance(spec, Provider):
            raise self.error(
                path, f"{spec.label!r} was made in Python, so it cannot be sent to another node. Write it as a spec."
            )
        if callable(spec) and not isinstance(spec, (str, Path, Mapping)):
            raise self.error(path, "a function made in Python cannot be sent to another node. Write it as 'module:function'.")
        return super().provider(spec, path, settings)

    def from_mapping(self, spec: Mapping[str, Any], path: str) -> Provider:
        if "provider" not in spec:
            raise self.error(path, "the key 'provider' is missing.")
        cls = self.lookup("provider", spec["provider"], join_path(path, "provider"))
        written = self._resolved(cls, spec, path)
        if (transform := spec.get("transform")) is not None:
            written["transform"] = self.component("transform", transform, join_path(path, "transform"))
        on_error = spec.get("on_error")
        if isinstance(on_error, Mapping) and set(on_error) == {"fallback"}:
            written["on_error"] = {"fallback": self.provider(on_error["fallback"], join_path(path, "on_error.fallback"))}
        return cast("Provider", written)

    def component(self, kind: str, spec: object, path: str) -> Any:
        if kind == "transform" and isinstance(spec, Sequence) and not isinstance(spec, str):
            return [self.component(kind, each, join_path(path, place)) for place, each in enumerate(spec)]
        if not isinstance(spec, Mapping) or "name" not in spec:
            return spec
        return self._resolved(self.lookup(kind, spec["name"], join_path(path, "name")), spec, path)

    def local(self, value: Any, path: str) -> Any:
        found = super().local(value, path)
        if isinstance(found, str) and Path(found).exists():
            where = ".".join(filter(None, (self._place, path)))
            found = self._paths[where] = str(Path(found).resolve())
        return found

    def _resolved(self, cls: type[Any], spec: Mapping[str, Any], path: str) -> dict[str, Any]:
        schema = schema_of(cls)  # type: ignore[arg-type]  # a class is hashable
        allowed = [*schema, *(SHARED_KEYS if issubclass(cls, Provider) else ("name",))]
        for key in spec:
            if key not in allowed:
                raise self.error(join_path(path, key), f"unknown key {key!r} for {cls.name!r}. {did_you_mean(key, allowed)}")
        with self.opened(spec, path):
            return {
                key: self.resolve(schema[key], value, join_path(path, key)) if key in schema else value
                for key, value in spec.items()
            }
