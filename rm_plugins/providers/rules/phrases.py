"""A reward for completions with required phrases and without forbidden ones."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import ClassVar

from rm_plugins.errors import SpecError
from rm_plugins.row_provider import RowProvider
from rm_plugins.samples import Sample, Turns


class Phrases(RowProvider):
    """The share of the required phrases in a completion (1 if none is required), and 0 if it has a forbidden one.

    Args:
        required: Phrases that should occur. White space in a phrase matches any white space.
        forbidden: Phrases that must not occur.
        ignore_case: Whether upper and lower case count as equal.
        whole_words: Whether a phrase only counts without a letter, digit or underscore beside it: ``art`` is not in ``start``.
        completion: Which messages are read; see `rm_plugins.Sample.text_of_turns`.

    Raises:
        SpecError: There is no phrase, or one is empty.
    """

    name: ClassVar[str] = "phrases"

    def __init__(
        self,
        *,
        required: Sequence[str] = (),
        forbidden: Sequence[str] = (),
        ignore_case: bool = True,
        whole_words: bool = True,
        completion: Turns = "assistant",
    ) -> None:
        for key, phrases in {"required": required, "forbidden": forbidden}.items():
            for place, phrase in enumerate(phrases):
                if not phrase.strip():
                    raise SpecError(f"a phrase must not be empty; got {phrase!r}.", key=f"{key}[{place}]")
        if not required and not forbidden:
            raise SpecError("phrases needs at least one phrase in `required` or `forbidden`.")

        def pattern(phrase: str) -> re.Pattern[str]:
            text = r"\s+".join(map(re.escape, phrase.split()))
            return re.compile(rf"(?<!\w){text}(?!\w)" if whole_words else text, re.IGNORECASE if ignore_case else 0)

        self.completion = completion
        self._required = [pattern(phrase) for phrase in required]
        self._forbidden = [pattern(phrase) for phrase in forbidden]

    def score_sample(self, sample: Sample) -> float:
        """Look for every phrase in the completion."""
        text = sample.text_of_turns(self.completion)
        if any(phrase.search(text) for phrase in self._forbidden):
            return 0.0
        if not self._required:
            return 1.0
        return sum(phrase.search(text) is not None for phrase in self._required) / len(self._required)
