"""A reward for completions of a wanted length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from rm_plugins.errors import ModelError, SpecError
from rm_plugins.provider import ModelSource, Provider
from rm_plugins.samples import Sample, completion_texts
from rm_plugins.scores import Scores

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["LengthWindow"]


class LengthWindow(Provider):
    """1 for a completion whose length is within a window, 0 for any other.

    With `soft`, a length that is d units outside scores max(0, 1 - d / soft).

    Args:
        low: The least length within, in units.
        high: The greatest length within, in units.
        unit: What is counted: characters, words (what white space separates), or tokens (without special ones that a
            tokenizer adds).
        soft: How many units outside the score reaches 0; 0 for at once.
        tokenizer: Whose tokens are counted.

    Raises:
        SpecError: There is no bound, `low` is above `high`, a number is negative, or `tokenizer` does not fit `unit`.
        ModelError: The tokenizer cannot be loaded.
    """

    name: ClassVar[str] = "length-window"

    def __init__(
        self,
        *,
        low: int | None = None,
        high: int | None = None,
        unit: Literal["characters", "words", "tokens"] = "characters",
        soft: int = 0,
        tokenizer: ModelSource | None = None,
    ) -> None:
        for key, number in {"low": low, "high": high, "soft": soft}.items():
            if number is not None and number < 0:
                raise SpecError(f"a number of {unit} must not be negative; got {number}.", key=key)
        if low is None and high is None:
            raise SpecError("length-window needs `low`, `high`, or both.")
        if low is not None and high is not None and low > high:
            raise SpecError(f"must not be above high, which is {high}; got {low}.", key="low")
        if unit == "tokens" and tokenizer is None:
            raise SpecError("`unit: tokens` needs a tokenizer: the folder or model id of the policy.", key="tokenizer")
        if unit != "tokens" and tokenizer is not None:
            raise SpecError(f"only `unit: tokens` has a use for a tokenizer; unit is {unit!r}.", key="tokenizer")
        self.low = 0 if low is None else low
        self.high = np.inf if high is None else high
        self.unit = unit
        self.soft = soft
        self._tokenizer = None if tokenizer is None else _loaded(tokenizer)

    def score_batch(self, samples: Sequence[Sample]) -> Scores:
        """Measure every completion."""
        texts, errors = completion_texts(samples)
        lengths = np.full(len(samples), np.nan)
        lengths[list(texts)] = self._lengths(list(texts.values()))
        outside = np.maximum(0, np.maximum(self.low - lengths, lengths - self.high))
        values = np.maximum(0, 1 - outside / self.soft) if self.soft else (outside == 0).astype(np.float64)
        return Scores(values, errors=errors)

    def _lengths(self, texts: list[str]) -> list[int]:
        if self._tokenizer is not None and texts:
            return [len(ids) for ids in self._tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]]
        return [len(text.split() if self.unit == "words" else text) for text in texts]


def _loaded(source: str) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(source)
    except Exception as error:  # the hub, transformers and tokenizers each have their own
        reason = str(error).partition("\n")[0]
        raise ModelError(f"No tokenizer could be loaded from {source!r}: {type(error).__name__}: {reason}") from error
