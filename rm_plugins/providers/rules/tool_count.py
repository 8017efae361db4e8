"""A reward for completions that call tools as often as they should."""

from __future__ import annotations

from typing import ClassVar

from rm_plugins.errors import SpecError
from rm_plugins.providers.rules.tool_calls import tool_calls_of
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
        for key, number in {"low": low, "high": high, "soft": soft}.items():
            if number is not None and number < 0:
                raise SpecError(f"a number of calls must not be negative; got {number}.", key=key)
        if tool is not None and not tool.strip():
            raise SpecError(f"the name of a tool must not be empty; got {tool!r}.", key="tool")
        if low is None and high is None:
            raise SpecError("tool-count needs `low`, `high`, or both.")
        if low is not None and high is not None and low > high:
            raise SpecError(f"must not be above high, which is {high}; got {low}.", key="low")
        self.low = low
        self.high = high
        self.soft = soft
        self.tool = tool

    def score_sample(self, sample: Sample) -> float:
        """Count the calls."""
        count = sum(self.tool in (None, call.name) for call in tool_calls_of(sample, self.called))
        below = 0 if self.low is None else self.low - count
        above = 0 if self.high is None else count - self.high
        outside = max(0, below, above)
        return max(0.0, 1 - outside / self.soft) if self.soft else float(outside == 0)
