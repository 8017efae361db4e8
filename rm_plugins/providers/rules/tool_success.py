"""A reward for completions whose tool calls succeed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import FiniteFloat

from rm_plugins.errors import SpecError
from rm_plugins.providers.rules.tool_calls import tool_calls_of
from rm_plugins.row_provider import RowProvider
from rm_plugins.samples import Sample


class ToolSuccess(RowProvider):
    """The share of a completion's tool calls that succeeded: those with a result that is not an error.

    An error is a result that is a mapping whose key ``error`` is neither null nor false, as TRL writes it for a tool that raised or does
    not exist. A completion without calls abstains unless `no_calls` is set. A completion that is text is an error, because text does not
    say what is a call.

    Args:
        failures: What other errors begin with, such as ``Error:``.
        no_calls: The score of a completion without calls; None abstains.

    Raises:
        SpecError: A beginning is empty.
    """

    name: ClassVar[str] = "tool-success"

    def __init__(self, *, failures: Sequence[str] = (), no_calls: FiniteFloat | None = None) -> None:
        for place, beginning in enumerate(failures):
            if not beginning.strip():
                raise SpecError("an empty beginning would make every result an error.", key=f"failures[{place}]")
        self.failures = tuple(failures)
        self.no_calls = no_calls

    def score_sample(self, sample: Sample) -> float | None:
        """Look at the result of every call."""
        calls = tool_calls_of(sample, self.called)
        if not calls:
            return self.no_calls
        return sum(call.has_succeeded(self.failures) for call in calls) / len(calls)
