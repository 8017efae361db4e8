"""A reward that knows which answers of the published rows are good."""

from __future__ import annotations

from collections.abc import Sequence

import rm_plugins as rm


def goodness(samples: Sequence[rm.Sample]) -> list[float]:
    """1 for an answer that says good, less what it is longer than that."""
    return [float("good" in sample.completion_text) - len(sample.completion_text) / 1000 for sample in samples]
