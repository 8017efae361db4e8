"""A reward for completions that call tools as often as they should."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from rm_plugins.errors import SpecError
from rm_plugins.providers.rules.tool_calls import tool_calls_of
from rm_plugins.providers.rules.window import Window
from rm_plugins.row_provider import RowProvider
from rm_plugins.samples import Sample


class ToolCount(RowProvider):
    """1 for a completion whose number of tool calls is within bounds, 0 for any other.

    With `soft`, a number that is d outside scores max(0, 1 - d / soft). A completion without calls has 0 of them. A completion that is
    text is an error, because text does not say what is a call.

    Args:
        low: The fewest calls inside.
        high: The most calls inside.
        soft: The distance outside at which the score reaches 0; 0 for an abrupt limit.
        tool: The name of the tool whose calls are counted; those of all tools if unset.

    Raises:
        SpecError: There is no bound, `low` is above `high`, a number is negative, or the name of the tool is empty.
    """

    name: ClassVar[str] = "tool-count"

    def __init__(self, *, low: int | None = None, high: int | None = None, soft: int = 0, tool: str | None = None) -> None:
        if tool is not None and not tool.strip():
            raise SpecError(f"the name of a tool must not be empty; got {tool!r}.", key="tool")
        self._window = Window(self.name, "calls", low=low, high=high, soft=soft)
        self.low = low
        self.high = high
        self.soft = soft
        self.tool = tool

    def score_sample(self, sample: Sample) -> float:
        """Count the calls."""
        count = sum(self.tool in (None, call.name) for call in tool_calls_of(sample, self.called))
        return float(self._window.scores(np.array([count], dtype=np.float64))[0])
