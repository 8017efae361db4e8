"""A reward for completions of a wanted form."""

from __future__ import annotations

import re
from typing import ClassVar, Literal

from rm_plugins.errors import SpecError
from rm_plugins.row_provider import RowProvider
from rm_plugins.samples import Sample

__all__ = ["Format"]


class Format(RowProvider):
    """1 for a completion that matches a regular expression, 0 for any other.

    Args:
        pattern: In the syntax of Python's `re`.
        match: Whether the pattern describes the whole completion (``full``) or is found anywhere in it (``search``).
        dotall: Whether ``.`` matches line breaks too.
        multiline: Whether ``^`` and ``$`` match at every line.
        ignore_case: Whether upper and lower case are alike.

    Raises:
        SpecError: The pattern is no regular expression.
    """

    name: ClassVar[str] = "format"

    def __init__(
        self,
        *,
        pattern: str,
        match: Literal["full", "search"] = "full",
        dotall: bool = False,
        multiline: bool = False,
        ignore_case: bool = False,
    ) -> None:
        flags = (dotall and re.DOTALL) | (multiline and re.MULTILINE) | (ignore_case and re.IGNORECASE)
        try:
            self.pattern = re.compile(pattern, flags)
        except (re.error, OverflowError, RecursionError) as error:
            place = getattr(error, "pos", None)
            where = "" if place is None else f" (character {place}, at {pattern[place : place + 20]!r})"
            reason = getattr(error, "msg", str(error))
            raise SpecError(f"{pattern!r} is no regular expression: {reason}{where}.", key="pattern") from error
        self.match = match

    def score_sample(self, sample: Sample) -> float:
        """Match the completion."""
        matches = self.pattern.fullmatch if self.match == "full" else self.pattern.search
        return float(matches(sample.completion_text) is not None)
