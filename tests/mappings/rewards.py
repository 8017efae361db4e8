"""A reward that knows which answers of the published rows are good."""

from __future__ import annotations

import os
from collections.abc import Sequence

import rm_plugins as rm


def goodness(samples: Sequence[rm.Sample]) -> list[float]:
    """1 for an answer that says good, less what it is longer than that."""
    return [float("good" in sample.completion_text) - len(sample.completion_text) / 1000 for sample in samples]


def has_reference(samples: Sequence[rm.Sample]) -> list[float]:
    """The answer's length, or less than nothing where the row has no reference."""
    return [len(sample.completion_text) * (1.0 if "ref" in sample.columns else -1.0) for sample in samples]


def flaky(samples: Sequence[rm.Sample]) -> list[float]:
    """The answer's length; fails on one answer while the environment says so."""
    if os.environ.get("FLAKY") and any(sample.completion_text == "boom" for sample in samples):
        raise RuntimeError("boom")
    return [float(len(sample.completion_text)) for sample in samples]
