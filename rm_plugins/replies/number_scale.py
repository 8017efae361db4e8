"""Number grades of a judge, read from the text of the answer."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rm_plugins.errors import SpecError
from rm_plugins.replies.chat_choice import chat_text
from rm_plugins.replies.grade import Grade
from rm_plugins.replies.reasoning import after_reasoning

_SCORE_LINE = re.compile(
    r"^[ \t*_]*Score(?:[ \t*_]*[:=])?[ \t*_]*([-+]?\d+(?:\.\d+)?)[ \t*_.]*\r?$", re.IGNORECASE | re.MULTILINE
)
"""A line that consists of a score, perhaps in bold markdown."""

_NUMBER = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:e[-+]?\d+)?", re.IGNORECASE)
"""A decimal number. Python's `float` also takes "nan", "infinity" and "1_0"."""


class NumberScale:
    """Grades that are numbers in the answer's text.

    Args:
        bounds: The lowest and the highest grade; the key ``range`` of the spec.
        pattern: A regular expression with one group, the number; None if the last line must be ``Score: NUMBER``. An answer in which it
            finds different numbers has no grade.

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
        written = chat_text(choice)
        return Grade(error=written.error) if written.error else self.of_text(written.text)

    def of_text(self, text: str) -> Grade:
        """The number in a complete answer, or the error why there is none."""
        text = after_reasoning(text) or ""
        matches = (self.pattern or _SCORE_LINE).findall(text)
        if not matches or (self.pattern is None and not _SCORE_LINE.fullmatch(text.rpartition("\n")[2])):
            return Grade(error=f"the judge's answer has no score where one was expected: {text[-200:]!r}")
        numbers = {match: float(match) if _NUMBER.fullmatch(match.strip()) else math.nan for match in matches}
        for match, number in numbers.items():
            if not math.isfinite(number):
                return Grade(error=f"the judge's score {match!r:.80} is not a number")
        number, *others = dict.fromkeys(numbers.values())
        if others:
            return Grade(error=f"the judge's answer has different scores, {number:g} and {others[0]:g}")
        if not self.low <= number <= self.high:
            return Grade(error=f"the judge's score {number:g} is not between {self.low:g} and {self.high:g}")
        return Grade(number)
