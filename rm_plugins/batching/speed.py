"""Measures how fast batches are run."""

from __future__ import annotations

_HALF_LIFE_SECONDS = 10.0
"""The half-life of the weight of a batch in the measured speed."""


class Speed:
    """The recent speed, as an average that is weighted by time."""

    def __init__(self) -> None:
        self._size = self._seconds = 0.0

    @property
    def rate(self) -> float:
        """Size per second; 0 if nothing was measured."""
        return self._size / self._seconds if self._seconds else 0.0

    def saw(self, size: int, seconds: float) -> None:
        """Record a batch."""
        decay = 0.5 ** (seconds / _HALF_LIFE_SECONDS)
        self._size, self._seconds = decay * self._size + size, decay * self._seconds + max(seconds, 1e-6)
