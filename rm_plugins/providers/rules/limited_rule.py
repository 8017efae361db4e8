"""A rule on texts with limits on time and size."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from rm_plugins.errors import RmPluginsError, ScoringError, SpecError
from rm_plugins.provider import Provider
from rm_plugins.providers.rules.limited_process import LimitExceededError
from rm_plugins.samples import Sample, Turns, completion_texts
from rm_plugins.scores import Scores

SECONDS = 5.0
"""How long one text may take by default."""
MOST_CHARACTERS = 1_000_000
"""How many characters one may have by default."""


class LimitedRule(Provider):
    """A rule on a completion's text. A completion that exceeds the limits is an error of its row; the others keep their scores.

    Args:
        timeout: Seconds that one completion may take.
        max_characters: How long a completion may be.
        completion: Which messages are read; see `rm_plugins.Sample.text_of_turns`.

    Raises:
        SpecError: One of them is not positive.
    """

    keys_without_effect: ClassVar[frozenset[str]] = frozenset({"timeout", "max_characters"})

    def __init__(self, timeout: float, max_characters: int, completion: Turns) -> None:
        check_limits(timeout, max_characters)
        self.timeout = timeout
        self.max_characters = max_characters
        self.completion = completion

    @abstractmethod
    def answers(self, texts: Sequence[str]) -> list[Any]:
        """The score of each text, or the exception where there is none."""

    def score_batch(self, samples: Sequence[Sample]) -> Scores:
        """Apply the rule to every completion."""
        values = np.full(len(samples), np.nan)
        texts, errors = short_texts(samples, self.max_characters, self.called, self.completion)
        for row, answer in zip(texts, self.answers(list(texts.values())), strict=True):
            if isinstance(answer, Exception):
                self.counts["timeouts"] += isinstance(answer, LimitExceededError)
                message = (
                    f"{self.called} has no score for item {row}: {answer} (the completion ends with {texts[row][-80:]!r})."
                )
                errors[row] = ScoringError(message, rows=[row]).caused_by(answer)
            else:
                values[row] = answer
        return Scores(values, errors=errors)


def check_limits(timeout: float, max_characters: int) -> None:
    """Refuse limits that are not positive.

    Raises:
        SpecError: One of them is not positive.
    """
    if not 0 < timeout < np.inf:
        raise SpecError(f"must be a positive number of seconds; got {timeout}.", key="timeout")
    if max_characters < 1:
        raise SpecError(f"must be a positive number of characters; got {max_characters}.", key="max_characters")


def short_texts(
    samples: Sequence[Sample], max_characters: int, called: str, turns: Turns
) -> tuple[dict[int, str], dict[int, RmPluginsError]]:
    """The text of each completion by row, and the error of each row that has none or is too long."""
    texts, errors = completion_texts(samples, turns)
    for row in [row for row, text in texts.items() if len(text) > max_characters]:
        length = len(texts.pop(row))
        errors[row] = ScoringError(
            f"{called} has no score for item {row}: the completion has {length:,} characters, and at most {max_characters:,} are allowed. "
            "Raise the key 'max_characters' for longer ones.",
            rows=[row],
        )
    return texts, errors
