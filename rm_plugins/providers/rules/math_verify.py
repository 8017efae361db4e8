"""A reward for completions whose final answer is mathematically right."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib.util import find_spec
from numbers import Real
from typing import ClassVar

import numpy as np

from rm_plugins.errors import DataError, MissingDependencyError, ScoringError
from rm_plugins.provider import Provider
from rm_plugins.providers.rules.limited_process import LimitedProcess, LimitExceededError
from rm_plugins.providers.rules.limited_rule import MOST_CHARACTERS, SECONDS, check_limits, short_texts
from rm_plugins.samples import Sample, Turns
from rm_plugins.scores import Scores

logger = logging.getLogger(__name__)


class MathVerify(Provider):
    """1 for a completion whose final answer equals the gold answer in a dataset column, 0 for any other.

    If there is an ``<answer>``, only the last one is read. The final answer is the last ``\\boxed{}``, with those listed right before
    it. Otherwise it is the last line's ``#### ANSWER``, else the text after the word "answer", else the last formula or number. If the
    whole text is mathematics, all of it is the answer. The gold answer is found in its column in the same way. Where it is null or not
    mathematical, the provider abstains, unless the completion is literally the same.

    Args:
        column: The column with the gold answer: text or a number.
        timeout: Seconds that one comparison may take. An answer that takes longer, such as ``9^{9^{9^9}}``, counts as wrong, with a
            warning and in ``counts["timeouts"]``; so does one that takes too much memory or is nested too deeply.
        max_characters: How long a completion, or a gold answer, may be.
        completion: Which messages are read; see `rm_plugins.Sample.text_of_turns`.

    Raises:
        SpecError: A limit is not positive.
        MissingDependencyError: math-verify is not installed.
    """

    name: ClassVar[str] = "math-verify"
    concurrent: bool = True  # another process computes

    def __init__(
        self,
        *,
        column: str = "solution",
        timeout: float = SECONDS,
        max_characters: int = MOST_CHARACTERS,
        completion: Turns = "assistant",
    ) -> None:
        check_limits(timeout, max_characters)
        if find_spec("math_verify") is None:
            raise MissingDependencyError("math-verify needs the package math-verify: pip install 'rm-plugins[rules]'.")
        self.column = column
        self.max_characters = max_characters
        self.completion = completion
        self._comparison = LimitedProcess("rm_plugins.providers.rules.math_comparison:comparing", None, timeout)

    def score_batch(self, samples: Sequence[Sample]) -> Scores:
        """Compare every completion's answer.

        A row gets an error if it lacks the gold answer's column, if that holds something other than text, a number or null, or if the
        comparing process crashed or could not be started.
        """
        values = np.full(len(samples), np.nan)
        broken: dict[int, str] = {}
        texts, errors = short_texts(samples, self.max_characters, self.called, self.completion)
        golds: dict[int, str] = {}
        for row in texts:
            try:
                gold = self._gold(row, samples[row])
            except DataError as error:
                errors[row] = error
            else:
                golds |= {} if gold is None else {row: gold}
        answers = self._comparison([(gold, texts[row]) for row, gold in golds.items()])
        for (row, gold), equal in zip(golds.items(), answers, strict=True):
            text = texts[row]
            if isinstance(equal, LimitExceededError):
                self._counted("timeouts")
                logger.warning("%s: comparing %s; the answer counts as wrong: %.80r", self.called, equal, text[-80:])
                values[row] = 0.0
            elif isinstance(equal, ChildProcessError):
                broken[row] = str(equal)
            elif equal is not None:
                values[row] = equal
            elif gold.strip() and gold.strip() == text.strip():
                values[row] = 1.0
        if broken:
            first, reason = next(iter(broken.items()))
            errors |= ScoringError(
                f"{self.called} could not compare {len(broken)} of {len(samples)} answers (first: item {first}): {reason}. See "
                "the process's own output above.",
                rows=broken,
            ).by_row
        return Scores(values, errors=errors)

    def _gold(self, row: int, sample: Sample) -> str | None:
        if self.column not in sample.columns:
            there = ", ".join(map(repr, sample.columns)) or "none"
            raise DataError(
                f"{self.called} needs the gold answer in the column {self.column!r}, which item {row} does not have. Its columns: "
                f"{there}. Name the right one with the key 'column'.",
                rows=[row],
            )
        gold = sample.columns[self.column]
        if isinstance(gold, str) and len(gold) > self.max_characters:
            raise DataError(
                f"{self.called} reads gold answers of at most {self.max_characters:,} characters; item {row} has {len(gold):,} in "
                f"the column {self.column!r}. Set the key 'max_characters' for more.",
                rows=[row],
            )
        if gold is not None and not isinstance(gold, (str, Real)):
            raise DataError(
                f"{self.called} needs text or a number as the gold answer; item {row} has {type(gold).__name__} in the column "
                f"{self.column!r}: {gold!r:.80}.",
                rows=[row],
            )
        if isinstance(gold, (float, np.floating)) and np.isfinite(gold):
            return np.format_float_positional(gold, trim="-")
        return None if gold is None else str(gold)

    def close(self) -> None:
        """End the comparing process."""
        self._comparison.close()
