"""A reward for completions that match a regular expression."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

from rm_plugins.errors import SpecError
from rm_plugins.providers.rules.limited_process import LimitedProcess
from rm_plugins.providers.rules.limited_rule import MOST_CHARACTERS, SECONDS, LimitedRule
from rm_plugins.samples import Turns


class Format(LimitedRule):
    """1 for a completion that matches a regular expression, 0 for any other.

    Args:
        pattern: In the syntax of Python's `re`.
        match: Whether the pattern describes the whole completion (``full``) or is found anywhere in it (``search``).
        dotall: Whether ``.`` matches line breaks too.
        multiline: Whether ``^`` and ``$`` match at every line.
        ignore_case: Whether upper and lower case count as equal.
        timeout: Seconds that one completion may take. On some texts, patterns such as ``(a+)+b`` never end.
        max_characters: How long a completion may be.
        completion: Which messages are read; see `rm_plugins.Sample.text_of_turns`.

    Raises:
        SpecError: The pattern is not a regular expression, or a limit is not positive.
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
        timeout: float = SECONDS,
        max_characters: int = MOST_CHARACTERS,
        completion: Turns = "assistant",
    ) -> None:
        super().__init__(timeout, max_characters, completion)
        flags = (dotall and re.DOTALL) | (multiline and re.MULTILINE) | (ignore_case and re.IGNORECASE)
        try:
            re.compile(pattern, flags)
        except (re.error, OverflowError, RecursionError) as error:
            place = getattr(error, "pos", None)
            where = "" if place is None else f" (character {place}, at {pattern[place : place + 20]!r})"
            reason = getattr(error, "msg", str(error))
            raise SpecError(f"{pattern!r} is not a regular expression: {reason}{where}.", key="pattern") from error
        setting = {"pattern": pattern, "flags": int(flags), "match": match}
        self._process = LimitedProcess(f"{__name__}:matcher", setting, timeout)

    def answers(self, texts: Sequence[str]) -> list[Any]:
        """Match every completion."""
        return self._process(texts)

    def close(self) -> None:
        """End the process that matches."""
        self._process.close()


def matcher(setting: Mapping[str, Any]) -> Callable[[str], float]:
    """Makes the function that matches a text; it runs in its own process."""
    pattern = re.compile(setting["pattern"], setting["flags"])
    matches = pattern.fullmatch if setting["match"] == "full" else pattern.search
    return lambda text: float(matches(text) is not None)
