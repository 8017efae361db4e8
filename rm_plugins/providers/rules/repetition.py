"""A penalty for completions that repeat themselves."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from rm_plugins.errors import SpecError
from rm_plugins.row_provider import RowProvider
from rm_plugins.samples import Sample, Turns

_MOST_WORDS = 100  # of an n-gram, each of which is kept


class Repetition(RowProvider):
    """-weight * (1 - distinct n-grams / all n-grams) of a completion's words; 0 where nothing repeats.

    The penalty of appendix C.2 of Yeo et al., "Demystifying Long Chain-of-Thought Reasoning in LLMs" (arXiv 2502.03373), over
    words instead of tokens: separated by white space, in lower case. A completion of fewer than n words scores 0.

    Args:
        n: Words per n-gram.
        weight: The size of the penalty for a completion that only repeats itself.
        completion: Which messages are read; see `rm_plugins.Sample.text_of_turns`.

    Raises:
        SpecError: `n` is less than 1 or more than 100, or `weight` is negative.
    """

    name: ClassVar[str] = "repetition"

    def __init__(self, *, n: int = 3, weight: float = 1.0, completion: Turns = "assistant") -> None:
        if not 1 <= n <= _MOST_WORDS:
            raise SpecError(f"an n-gram has 1 to {_MOST_WORDS} words; got {n}.", key="n")
        if not 0 <= weight < np.inf:
            raise SpecError(f"must be a finite number, 0 or more; got {weight}.", key="weight")
        self.n = n
        self.weight = weight
        self.completion = completion

    def score_sample(self, sample: Sample) -> float:
        """Count the completion's n-grams."""
        return 0.0 - self.weight * self._repeated(sample.text_of_turns(self.completion))

    def _repeated(self, text: str) -> float:
        words = text.lower().split()
        total = len(words) - self.n + 1
        if total <= 0:
            return 0.0
        return 1 - len({tuple(words[start : start + self.n]) for start in range(total)}) / total
