"""A reward for completions that call certain tools."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from rm_plugins.errors import SpecError
from rm_plugins.providers.rules.tool_calls import tool_calls_of
from rm_plugins.row_provider import RowProvider
from rm_plugins.samples import Sample


class ToolCalled(RowProvider):
    """The share of the required tools that a completion calls (1 if none is required), and 0 if it calls a forbidden one.

    Without any names, 1 for a completion that calls a tool, and 0 for any other. A completion that is text is an error, because text does
    not say what is a call.

    Args:
        required: Names of tools that should be called.
        forbidden: Names of tools that must not be called.

    Raises:
        SpecError: A name is empty, or both required and forbidden.
    """

    name: ClassVar[str] = "tool-called"

    def __init__(self, *, required: Sequence[str] = (), forbidden: Sequence[str] = ()) -> None:
        for key, names in {"required": required, "forbidden": forbidden}.items():
            for place, name in enumerate(names):
                if not name.strip():
                    raise SpecError(f"the name of a tool must not be empty; got {name!r}.", key=f"{key}[{place}]")
        if both := set(required) & set(forbidden):
            raise SpecError(f"a tool cannot be both required and forbidden: {', '.join(sorted(both))}.", key="forbidden")
        self.required = frozenset(required)
        self.forbidden = frozenset(forbidden)

    def score_sample(self, sample: Sample) -> float:
        """Look for every tool among the calls."""
        called = {call.name for call in tool_calls_of(sample, self.called)}
        if not self.required and not self.forbidden:
            return float(bool(called))
        if called & self.forbidden:
            return 0.0
        return len(called & self.required) / len(self.required) if self.required else 1.0
