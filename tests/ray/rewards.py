"""Rewards that workers import by name."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from rm_plugins.samples import Sample


def process(samples: Sequence[Sample]) -> list[float]:
    """The number of the process that scores, after as long as a small model takes."""
    time.sleep(0.02)
    return [float(os.getpid())] * len(samples)


def slow(samples: Sequence[Sample]) -> list[float]:
    """Ten seconds for a batch."""
    time.sleep(10)
    return [0.0] * len(samples)
