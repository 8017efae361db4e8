"""Rewards that workers import by name."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from rm_plugins.errors import ScoringError
from rm_plugins.samples import Sample


def process(samples: Sequence[Sample]) -> list[float]:
    """The number of the process that scores, after as long as a small model takes."""
    time.sleep(0.02)
    return [float(os.getpid())] * len(samples)


def slow(samples: Sequence[Sample]) -> list[float]:
    """Ten seconds for a batch."""
    time.sleep(10)
    return [0.0] * len(samples)


class OwnError(ScoringError):
    """An error of a plug-in, which cannot be sent to another process."""

    def __init__(self, place: int, of: int) -> None:
        super().__init__(f"sample {place} of {of} is bad", rows=[place])
        self.remedy = lambda: None


def _bad(samples: Sequence[Sample]) -> list[int]:
    return [place for place, sample in enumerate(samples) if "bad" in sample.completion_text]


def raises_its_own(samples: Sequence[Sample]) -> list[float]:
    """An error that cannot be pickled where a completion has `bad` in it."""
    for place in _bad(samples):
        raise OwnError(place, len(samples))
    return [0.0] * len(samples)


def infinite(samples: Sequence[Sample]) -> list[float]:
    """An infinite score where a completion has `bad` in it."""
    return [float("inf") if "bad" in sample.completion_text else 0.0 for sample in samples]


def too_few(samples: Sequence[Sample]) -> list[float]:
    """No score where a completion has `bad` in it."""
    return [0.0] * (len(samples) - len(_bad(samples)))


def leaves(samples: Sequence[Sample]) -> list[float]:
    """Python is to exit where a completion has `bad` in it."""
    if _bad(samples):
        raise SystemExit(3)
    return [0.0] * len(samples)


def ends(samples: Sequence[Sample]) -> list[float]:
    """The process ends at once where a completion has `bad` in it."""
    if _bad(samples):
        os._exit(1)
    return [0.0] * len(samples)
