"""Statistics that are updated while scoring, the same in every process of a training."""

from __future__ import annotations

import math
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np

from rm_plugins.component import Transform
from rm_plugins.processes import all_gathered
from rm_plugins.provider import Provider, transforms_of
from rm_plugins.scores import FloatArray

_PURPOSE = "scores for running statistics"


class RunningStatistics:
    """Number, mean and sum of squared deviations of all scores so far.

    They are merged batch by batch (Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample
    Variances", 1979). The sums over a batch are exactly rounded, so they depend neither on the order of its scores nor on how these are
    distributed over processes.

    >>> seen = RunningStatistics()
    >>> seen.update(np.array([1.0, 3.0, np.nan]))
    >>> seen.moments(mean=0.0, std=1.0, weight=0)
    (2.0, 1.0)
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = 0.0
        self.squares = 0.0

    def update(self, values: FloatArray) -> None:
        """Add a batch: the scores of all processes.

        Args:
            values: This process's scores, float64 [N], NaN where abstained, which does not count.
        """
        known = values[~np.isnan(values)].tolist()
        batch = _batch.get()
        if batch is None:
            self._merge(_joined(all_gathered(known, _PURPOSE)))
        else:
            batch.update(self, known)

    def moments(self, *, mean: float, std: float, weight: float) -> tuple[float, float]:
        """Mean and standard deviation (ddof 0) of the scores so far and a prior.

        Args:
            mean: The prior's mean.
            std: The prior's standard deviation.
            weight: How many scores the prior counts as.

        Returns:
            Those of the prior where there is nothing else.
        """
        count = self.count + weight
        if not count:
            return mean, std
        gap = self.mean - mean
        squares = self.squares + weight * std**2 + gap**2 * self.count * weight / count
        return mean + gap * self.count / count, math.sqrt(squares / count)

    def state(self) -> dict[str, Any]:
        """The statistics as JSON values."""
        return {"count": self.count, "mean": self.mean, "squares": self.squares}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned."""
        self.count, self.mean, self.squares = int(state["count"]), float(state["mean"]), float(state["squares"])

    def _merge(self, scores: Sequence[float]) -> None:
        if not scores:
            return
        # The mean of equal scores must be exactly that score, whatever the rounding.
        mean = min(max(math.fsum(scores) / len(scores), min(scores)), max(scores))
        squares = math.fsum((score - mean) ** 2 for score in scores)
        count, gap = self.count + len(scores), mean - self.mean
        self.squares += squares + gap**2 * self.count * len(scores) / count
        self.mean += gap * len(scores) / count
        self.count = count


@contextmanager
def shared_batch(provider: Provider) -> Iterator[None]:
    """Within it, this process's part of one batch is scored; every process scores a part, which may be empty.

    Processes gather the scores once per batch for all running statistics of the provider, in one fixed order. They do so even if this
    process did not use a statistic, so that a reward that failed here, or got no sample, does not make other processes wait. Scores
    that come out of order (from a member that runs in its own thread, or that scores twice) are reshaped with the earlier statistics,
    and are added at the end of the batch.

    Args:
        provider: The provider that scores; its spec must be the same in every process.
    """
    batch = _Batch(list(dict.fromkeys(_in_order(provider))))
    token = _batch.set(batch)
    try:
        yield
        batch.finish()
    finally:
        _batch.reset(token)


class _Batch:
    """The running statistics of a tree of providers, in the order in which they are used, and how many were gathered so far."""

    def __init__(self, order: Sequence[RunningStatistics]) -> None:
        self.order = order
        self.done = 0
        self.late: dict[int, list[float]] = defaultdict(list)
        self.thread = threading.get_ident()

    def update(self, statistics: RunningStatistics, scores: list[float]) -> None:
        place = next((place for place, other in enumerate(self.order) if other is statistics), None)
        if place is None:  # it is not in the tree, such as inside a function, whose processes must gather in the same order
            statistics._merge(_joined(all_gathered(scores, _PURPOSE)))
            return
        if place < self.done or threading.get_ident() != self.thread:
            self.late[place] += scores
            return
        self._skip_to(place)
        self._gather(scores)

    def finish(self) -> None:
        if not self.order:
            return
        self._skip_to(len(self.order))
        late = all_gathered(dict(self.late), "the late scores of a batch")
        for place, statistics in enumerate(self.order):
            statistics._merge(_joined(share.get(place, []) for share in late))

    def _skip_to(self, place: int) -> None:
        while self.done < place:
            self._gather([])

    def _gather(self, scores: list[float]) -> None:
        statistics = self.order[self.done]
        self.done += 1
        statistics._merge(_joined(all_gathered(scores, _PURPOSE)))


_batch: ContextVar[_Batch | None] = ContextVar("rm_plugins_shared_batch", default=None)


def _joined(parts: Iterable[Sequence[float]]) -> list[float]:
    return [score for part in parts for score in part]


def _in_order(provider: Provider) -> Iterator[RunningStatistics]:
    """The running statistics of a tree of providers; those of its parts come before its own."""
    for child in provider.children.values():
        if child is not provider.fallback:
            yield from _in_order(child)
    for transform in transforms_of(provider).values():
        yield from _of_transform(transform)
    if provider.fallback is not None:
        yield from _in_order(provider.fallback)


def _of_transform(transform: Transform) -> Iterator[RunningStatistics]:
    yield from (value for value in vars(transform).values() if isinstance(value, RunningStatistics))
    for inner in transforms_of(transform).values():
        yield from _of_transform(inner)
