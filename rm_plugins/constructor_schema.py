"""What a constructor's annotations say of the keys of a spec."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, NotRequired, Required, TypeVar, get_args, get_origin, get_type_hints

from typing_extensions import TypedDict

from rm_plugins.errors import PluginError

if TYPE_CHECKING:
    from pydantic import TypeAdapter

__all__ = ["announces", "held_by", "schema_of", "takes_settings", "validator_of"]

Constructor = TypeVar("Constructor", bound=Callable[..., None])


def announces(annotation: Any, *kinds: type) -> bool:
    """Whether a value of this annotation is, or contains, something of one of the kinds."""
    if isinstance(annotation, type) and get_origin(annotation) is None:
        return issubclass(annotation, kinds)
    return any(announces(argument, *kinds) for argument in get_args(annotation))


def held_by(holder: object, kind: type[Any]) -> dict[str, Any]:
    """What an object was made with that is of a kind, by its path among the arguments: ``members[0]``, ``routes.math``.

    These are the arguments of its constructor whose annotations announce the kind, where they are attributes of the same names.
    """
    try:
        schema = schema_of(type(holder))  # type: ignore[arg-type]  # a class is hashable
    except (PluginError, TypeError, ValueError):  # it is made in Python alone, for a spec could not make it
        return {}
    held: dict[str, Any] = {}
    for name, annotation in schema.items():
        if not announces(annotation, kind):
            continue
        value = getattr(holder, name, None)
        if isinstance(value, kind):
            held[name] = value
        elif isinstance(value, Mapping):
            held |= {f"{name}.{key}": item for key, item in value.items() if isinstance(item, kind)}
        elif isinstance(value, (list, tuple)):
            held |= {f"{name}[{place}]": item for place, item in enumerate(value) if isinstance(item, kind)}
    return held


def takes_settings(settings: type[Any], *, without: Collection[str] = ()) -> Callable[[Constructor], Constructor]:
    """Says of a constructor that its ``**settings`` are the fields of a dataclass, which it makes of them.

    Its signature then has them as keyword arguments, after its own, with their defaults and types: for specs, `help` and documentation.

    Args:
        settings: The dataclass, whose fields are for keywords only.
        without: Fields that it does not take.

    >>> from dataclasses import dataclass
    >>> @dataclass(kw_only=True)
    ... class Limits:
    ...     low: float = 0.0
    ...     high: float = 1.0
    >>> class Clip:
    ...     @takes_settings(Limits)
    ...     def __init__(self, *, strict: bool = False, **settings): ...
    >>> list(inspect.signature(Clip).parameters)
    ['strict', 'low', 'high']
    """

    def decorate(constructor: Constructor) -> Constructor:
        own = inspect.signature(constructor)
        kept = [parameter for parameter in own.parameters.values() if parameter.kind is not parameter.VAR_KEYWORD]
        hints = get_type_hints(settings, include_extras=True)
        taken = {
            name: parameter.replace(annotation=hints[name])
            for name, parameter in inspect.signature(settings).parameters.items()
            if name not in own.parameters and name not in without
        }
        constructor.__signature__ = own.replace(parameters=[*kept, *taken.values()])  # type: ignore[attr-defined]
        constructor.__annotations__ |= {name: hints[name] for name in taken}
        return constructor

    return decorate


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
    return {name: hints.get(name, Any) for name, parameter in parameters.items() if parameter.kind is not parameter.VAR_KEYWORD}


@cache
def validator_of(cls: Callable[..., Any]) -> TypeAdapter[Any]:
    """What checks the keyword arguments of a constructor, strictly."""
    from pydantic import ConfigDict, TypeAdapter, with_config

    parameters = inspect.signature(cls).parameters
    takes_more = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    fields = {
        name: (Required if parameters[name].default is inspect.Parameter.empty else NotRequired)[annotation]
        for name, annotation in schema_of(cls).items()
    }
    config = ConfigDict(extra="allow" if takes_more else "forbid", strict=True, arbitrary_types_allowed=True)
    return TypeAdapter(with_config(config)(TypedDict(cls.__name__, fields)))  # type: ignore[operator]
