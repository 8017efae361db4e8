"""A reward for completions whose length is within limits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from rm_plugins.component import ModelSource
from rm_plugins.errors import SpecError
from rm_plugins.provider import Provider
from rm_plugins.providers.rules.window import Window
from rm_plugins.samples import Sample, Turns, completion_texts
from rm_plugins.scores import Scores

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class LengthWindow(Provider):
    """1 for a completion whose length is within a window, 0 for any other.

    With `soft`, a length that is d units outside scores max(0, 1 - d / soft).

    Args:
        low: The lowest length inside, in units.
        high: The highest length inside, in units.
        unit: What is counted: characters, words (separated by white space), or tokens (without those that a tokenizer adds).
        soft: The distance outside, in units, at which the score reaches 0; 0 for an abrupt limit.
        tokenizer: The tokenizer for tokens.
        trust_remote_code: Whether the tokenizer's own code may run.
        completion: Which messages are read; see `rm_plugins.Sample.text_of_turns`.

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
        trust_remote_code: bool = False,
        completion: Turns = "assistant",
    ) -> None:
        self._window = Window(self.name, unit, low=low, high=high, soft=soft)
        if unit == "tokens" and tokenizer is None:
            raise SpecError("`unit: tokens` needs a tokenizer: the folder or model id of the policy.", key="tokenizer")
        if unit != "tokens" and tokenizer is not None:
            raise SpecError(f"only `unit: tokens` uses a tokenizer; unit is {unit!r}.", key="tokenizer")
        self.low = 0 if low is None else low
        self.high = np.inf if high is None else high
        self.unit = unit
        self.soft = soft
        self.completion = completion
        self._tokenizer: PreTrainedTokenizerBase | None = None
        if tokenizer is not None:
            from rm_plugins.models.model_folder import load_tokenizer

            self._tokenizer = load_tokenizer([tokenizer], self.name, trust_remote_code=trust_remote_code)

    @property
    def identity(self) -> list[Any]:
        """Its settings, with a digest of the tokenizer instead of its path."""
        if self._tokenizer is None:
            return super().identity
        from rm_plugins.models.identity import tokenizer_digest

        return [self._settings_with_effect("tokenizer", "_tokenizer"), tokenizer_digest(self._tokenizer), None]

    def score_batch(self, samples: Sequence[Sample]) -> Scores:
        """Measure every completion."""
        texts, errors = completion_texts(samples, self.completion)
        lengths = np.full(len(samples), np.nan)
        lengths[list(texts)] = self._lengths(list(texts.values()))
        return Scores(self._window.scores(lengths), errors=errors)

    def _lengths(self, texts: list[str]) -> list[int]:
        if self._tokenizer is not None and texts:
            return [len(ids) for ids in self._tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]]
        return [len(text.split() if self.unit == "words" else text) for text in texts]
