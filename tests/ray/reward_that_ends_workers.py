"""A reward whose import ends the worker processes of Ray, as one for which a node has too little memory."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import rm_plugins as rm

if sys.argv[0].endswith("default_worker.py"):
    os._exit(1)


def nothing(samples: Sequence[rm.Sample]) -> list[float]:
    """Zero for each sample."""
    return [0.0] * len(samples)
