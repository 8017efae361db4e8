"""Metrics in plain loops."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

NAN = math.nan


def rows(*values: float) -> NDArray[np.float64]:
    return np.array(values, dtype=np.float64)


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def pearson_in_a_loop(x: Sequence[float], y: Sequence[float]) -> float:
    mean_x, mean_y = math.fsum(x) / len(x), math.fsum(y) / len(y)
    over = math.fsum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return over / math.sqrt(math.fsum((a - mean_x) ** 2 for a in x) * math.fsum((b - mean_y) ** 2 for b in y))


def ece_in_a_loop(delta: Sequence[float], bins: int) -> float:
    points = [(sigmoid(d), 1) for d in delta] + [(sigmoid(-d), 0) for d in delta]
    total = 0.0
    for number in range(bins):
        last = number == bins - 1
        found = [(p, y) for p, y in points if number / bins <= p and (p < (number + 1) / bins or last)]
        total += abs(math.fsum(p - y for p, y in found))
    return total / len(points)
