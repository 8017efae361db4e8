"""Functions that compare two samples, and comparers that record what they are asked."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, ClassVar

import numpy as np

import rm_plugins as rm
from rm_plugins.comparisons import Comparer, Comparison, Verdicts


def longer(first: rm.Sample, second: rm.Sample) -> float:
    """The longer answer is better."""
    gap = len(first.completion_text) - len(second.completion_text)
    return 0.5 if gap == 0 else float(gap > 0)


def shown_first(first: rm.Sample, second: rm.Sample) -> bool:
    """The answer that is shown first is better, whatever it is."""
    return True


def chance(*texts: str) -> float:
    """A number from 0 to 1 that depends on texts alone."""
    return int.from_bytes(blake2b("|".join(texts).encode(), digest_size=4).digest(), "big") / 2**32


def noisy(first: rm.Sample, second: rm.Sample) -> float | None:
    """A judge with an opinion, noise, a preference for the first answer, and refusals; it gives the same verdict again."""
    texts = (first.completion_text, second.completion_text)
    if chance("refuses", *texts) < 0.1:
        return None
    if chance("fails", *texts) < 0.05:
        raise TimeoutError("too slow")
    gap = 4 * (chance(texts[0]) - chance(texts[1])) + 0.3
    return float(chance("verdict", *texts) < 1 / (1 + np.exp(-gap)))


class Recorder(Comparer):
    """Prefers longer answers, and keeps every call."""

    name: ClassVar[str] = "recorder"

    def __init__(self) -> None:
        self.calls: list[list[tuple[str, str]]] = []

    def compare(self, samples: Sequence[rm.Sample], asked: Sequence[Comparison]) -> Verdicts:
        pairs = [(samples[question.first], samples[question.second]) for question in asked]
        self.calls.append([(first.completion_text, second.completion_text) for first, second in pairs])
        return Verdicts(np.array([longer(*pair) for pair in pairs]), metadata={"seconds": 1.0})


def answers(*texts: str, prompt: str = "Q", **columns: Any) -> list[rm.Sample]:
    """Samples of one prompt."""
    return [rm.Sample(prompt, text, columns) for text in texts]
