"""Which keys a spec may have, read from the annotations of a constructor."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, NotRequired, Required, TypeVar, get_args, get_origin, get_type_hints

from typing_extensions import TypedDict

from rm_plugins.errors import PluginError

if TYPE_CHECKING:
    from pydantic import TypeAdapter

Constructor = TypeVar("Constructor", bound=Callable[..., None])


def announces(annotation: Any, *kinds: type) -> bool:
    """Whether an annotation is, or contains, one of the given classes."""
    if isinstance(annotation, type) and get_origin(annotation) is None:
        return issubclass(annotation, kinds)
    return any(announces(argument, *kinds) for argument in get_args(annotation))


def held_by(holder: object, kind: type[Any]) -> dict[str, Any]:
    """The instances of a class that an object was constructed with, by argument path: ``members[0]``, ``routes.math``.

    Looks at the constructor's arguments whose annotations contain the class, and reads the attributes of the same names.
    """
    try:
        schema = schema_of(type(holder))  # type: ignore[arg-type]  # a class is hashable
    except (PluginError, TypeError, ValueError):  # no spec can build this class, only Python code
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
    """Declare that the ``**settings`` of a constructor are the fields of a dataclass, which the constructor builds from them.

    The signature then lists these fields as keyword arguments after its own, with their types and defaults: for specs, `help` and
    the documentation.

    Args:
        settings: The dataclass; its fields must be keyword-only.
        without: Fields that the constructor does not take.

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
        named = [parameter for parameter in own.parameters.values() if parameter.kind is not parameter.VAR_KEYWORD]
        hints = get_type_hints(settings, include_extras=True)
        fields = {
            name: parameter.replace(annotation=hints[name])
            for name, parameter in inspect.signature(settings).parameters.items()
            if name not in own.parameters and name not in without
        }
        constructor.__signature__ = own.replace(parameters=[*named, *fields.values()])  # type: ignore[attr-defined]
        constructor.__annotations__ |= {name: hints[name] for name in fields}
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
            f"{error.name!r}, which does not exist at run time. Import it outside `if TYPE_CHECKING`."
        ) from error
    return {name: hints.get(name, Any) for name, parameter in parameters.items() if parameter.kind is not parameter.VAR_KEYWORD}


@cache
def validator_of(cls: Callable[..., Any]) -> TypeAdapter[Any]:
    """A strict validator for the keyword arguments of a constructor."""
    from pydantic import ConfigDict, TypeAdapter, with_config

    parameters = inspect.signature(cls).parameters
    takes_more = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    fields = {
        name: (Required if parameters[name].default is inspect.Parameter.empty else NotRequired)[annotation]
        for name, annotation in schema_of(cls).items()
    }
    config = ConfigDict(extra="allow" if takes_more else "forbid", strict=True, arbitrary_types_allowed=True)
    return TypeAdapter(with_config(config)(TypedDict(cls.__name__, fields)))  # type: ignore[operator]
