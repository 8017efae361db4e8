"""Keys of a spec that one provider's constructor hands on to its parent's."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from typing import TypeVar, get_type_hints

__all__ = ["hands_on"]

Constructor = TypeVar("Constructor", bound=Callable[..., None])


def hands_on(parent: Callable[..., None], *, without: Collection[str]) -> Callable[[Constructor], Constructor]:
    """Says of a constructor whose ``**settings`` go to its parent's which these are.

    Its signature then has the parent's keyword arguments, with their defaults and types, for specs, `help` and documentation.

    Args:
        parent: The parent's constructor.
        without: Those of its arguments that the constructor gives itself.

    >>> class Parent:
    ...     def __init__(self, *, model, limit: int = 3): ...
    >>> class Child(Parent):
    ...     @hands_on(Parent.__init__, without=["model"])
    ...     def __init__(self, *, models, **settings): ...
    >>> inspect.signature(Child)
    <Signature (*, models, limit: int = 3)>
    """

    def decorate(constructor: Constructor) -> Constructor:
        own = inspect.signature(constructor)
        hints = get_type_hints(parent, include_extras=True)
        handed_on = {
            name: parameter.replace(annotation=hints.get(name, parameter.annotation))
            for name, parameter in inspect.signature(parent).parameters.items()
            if parameter.kind is parameter.KEYWORD_ONLY and name not in without and name not in own.parameters
        }
        kept = [parameter for parameter in own.parameters.values() if parameter.kind is not parameter.VAR_KEYWORD]
        constructor.__signature__ = own.replace(parameters=[*kept, *handed_on.values()])  # type: ignore[attr-defined]
        constructor.__annotations__ |= {name: hints[name] for name in handed_on if name in hints}
        return constructor

    return decorate
