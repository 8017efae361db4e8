"""How far the training of a policy has progressed, for rewards that change during training."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from rm_plugins.errors import SpecError, did_you_mean

_progress: ContextVar[float | None] = ContextVar("rm_plugins_training_progress", default=None)

_REQUIRED = ("from", "to")
_OPTIONAL = ("start", "end")


@contextmanager
def training_progress(value: float) -> Iterator[None]:
    """Within it, samples are scored at this point of the training: 0 is its beginning, 1 its end.

    >>> with training_progress(0.25):
    ...     current_progress()
    0.25
    """
    token = _progress.set(value)
    try:
        yield
    finally:
        _progress.reset(token)


def current_progress() -> float | None:
    """The current progress of the training, from 0 to 1; None outside training."""
    return _progress.get()


@dataclass(frozen=True, slots=True)
class Schedule:
    """A number that changes linearly from one value to another as the training progresses.

    Args:
        first: The value up to `start`.
        last: The value from `end` on, and outside training.
        start: The progress, from 0 to 1, at which the change begins.
        end: The progress at which the change is complete.

    >>> ramp = Schedule(first=0.0, last=2.0, end=0.5)
    >>> ramp.value()
    2.0
    >>> with training_progress(0.25):
    ...     ramp.value()
    1.0
    """

    first: float
    last: float
    start: float = 0.0
    end: float = 1.0

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Schedule:
        """The schedule that ``{from: 0.0, to: 1.0, start: 0.0, end: 1.0}`` describes; the last two are optional.

        Raises:
            SpecError: A key is unknown or missing, a value is not a finite number, or `start` is not before `end`.
        """
        allowed = (*_REQUIRED, *_OPTIONAL)
        for key, value in spec.items():
            if key not in allowed:
                raise SpecError(f"unknown key {key!r} for a schedule. {did_you_mean(str(key), allowed)}", key=str(key))
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise SpecError(f"must be a finite number, not {value!r:.80}.", key=key)
        for key in _REQUIRED:
            if key not in spec:
                raise SpecError(f"a schedule needs the key {key!r}, which is missing.", key=key)
        schedule = cls(spec["from"], spec["to"], spec.get("start", 0.0), spec.get("end", 1.0))
        if not 0 <= schedule.start < schedule.end <= 1:
            raise SpecError(
                "a schedule's `start` must lie before its `end`, both between 0 (the training begins) and 1 (it ends); got "
                f"{schedule.start} and {schedule.end}."
            )
        return schedule

    def value(self) -> float:
        """The number at the current progress of the training."""
        progress = current_progress()
        if progress is None:
            return self.last
        share = (progress - self.start) / (self.end - self.start)
        return self.first + (self.last - self.first) * min(max(share, 0.0), 1.0)
