"""Number grades of a judge, read from the text of the answer."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rm_plugins.errors import SpecError
from rm_plugins.replies.grade import Grade
from rm_plugins.replies.reasoning import after_reasoning

_SCORE_LINE = re.compile(r"^[\s*_]*Score(?:[\s*_]*[:=])?[\s*_]*(-?\d+(?:\.\d+)?)[\s*_.]*$", re.IGNORECASE)
"""A line that consists of a score, perhaps in bold markdown."""


class NumberScale:
    """Grades that are numbers in the answer's text.

    Args:
        bounds: The lowest and the highest grade; the key ``range`` of the spec.
        pattern: A regular expression with one group, the number; None if the last line must be ``Score: NUMBER``.

    Raises:
        SpecError: An argument is invalid.

    >>> NumberScale([1, 10], None).of_text("It is correct, but long.\\nScore: 7").value
    7.0
    """

    def __init__(self, bounds: Sequence[float], pattern: str | None) -> None:
        if len(bounds) != 2 or not bounds[0] < bounds[1]:
            raise SpecError(f"must be the lowest and the highest number, such as [1, 10], not {list(bounds)}.", key="range")
        try:
            compiled = None if pattern is None else re.compile(pattern, re.MULTILINE)
        except re.error as error:
            raise SpecError(f"{pattern!r} is not a valid regular expression: {error}.", key="pattern") from None
        if compiled is not None and compiled.groups != 1:
            raise SpecError(f"must have one group, the number; {pattern!r} has {compiled.groups}.", key="pattern")
        self.low, self.high = bounds
        self.pattern = compiled

    @property
    def instruction(self) -> str:
        """The sentence that tells the judge the form of the answer."""
        return (
            f"Think about it briefly. Then end with one line that reads `Score: N`, with a number from {self.low:g} (worst) to "
            f"{self.high:g} (best) for N."
        )

    def grade(self, choice: Mapping[str, Any]) -> Grade:
        """The number in a choice of the chat completions API, or the error why there is none."""
        if choice.get("finish_reason") == "length":
            return Grade(error="the judge's answer was cut off at max_tokens; raise max_tokens")
        text = choice["message"].get("content")
        return self.of_text(text if isinstance(text, str) else "")

    def of_text(self, text: str) -> Grade:
        """The number in a complete answer, or the error why there is none."""
        text = after_reasoning(text) or ""
        last_line = text.rpartition("\n")[2]
        matches = _SCORE_LINE.findall(last_line) if self.pattern is None else self.pattern.findall(text)
        if not matches:
            return Grade(error=f"the judge's answer has no score where one was expected: {text[-200:]!r}")
        try:
            number = float(matches[-1])
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            return Grade(error=f"the judge's score {matches[-1]!r:.80} is not a number")
        if not self.low <= number <= self.high:
            return Grade(error=f"the judge's score {number:g} is not between {self.low:g} and {self.high:g}")
        return Grade(number)
