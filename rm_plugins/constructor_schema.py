"""What a constructor's annotations say of the keys of a spec."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any, NotRequired, Required, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, TypeAdapter, with_config
from typing_extensions import TypedDict

from rm_plugins.errors import PluginError
from rm_plugins.provider import Component, LocalPath, Provider

__all__ = ["announces", "schema_of", "validator_of"]


def announces(annotation: Any) -> bool:
    """Whether a value of this annotation is, or contains, a spec or a local path."""
    if isinstance(annotation, type) and get_origin(annotation) is None:
        return issubclass(annotation, (Component, LocalPath, Provider))
    return any(announces(part) for part in get_args(annotation))


@cache
def schema_of(cls: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of a constructor's parameters, by name."""
    parameters = inspect.signature(cls).parameters
    try:
        hints = get_type_hints(cls.__init__, include_extras=True)
    except NameError as error:
        raise PluginError(
            f"{cls.__module__}.{cls.__qualname__} cannot be built from a spec: its constructor's annotations name "
            f"{error.name!r}, which is not there when the program runs. Import it outside `if TYPE_CHECKING`."
        ) from error
    return {name: hints.get(name, Any) for name, found in parameters.items() if found.kind is not found.VAR_KEYWORD}


@cache
def validator_of(cls: Callable[..., Any]) -> TypeAdapter[Any]:
    """What checks the keyword arguments of a constructor, strictly."""
    parameters = inspect.signature(cls).parameters
    takes_more = any(found.kind is found.VAR_KEYWORD for found in parameters.values())
    fields = {
        name: (Required if parameters[name].default is inspect.Parameter.empty else NotRequired)[annotation]
        for name, annotation in schema_of(cls).items()
    }
    config = ConfigDict(extra="allow" if takes_more else "forbid", strict=True, arbitrary_types_allowed=True)
    return TypeAdapter(with_config(config)(TypedDict(cls.__name__, fields)))  # type: ignore[operator]
