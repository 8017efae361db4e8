"""Scores the samples of several requests together, so that what fails in one of them changes nothing in another."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from rm_plugins.errors import DataError, ScoringError
from rm_plugins.provider import Provider
from rm_plugins.providers.combinators.parts import failures_in
from rm_plugins.samples import Sample
from rm_plugins.scores import Scores, merged

__all__ = ["Isolated", "score_requests"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Isolated:
    """What a reward says of the samples of one request, [N].

    Args:
        scores: The scores, NaN where there is none.
        errors: By row, why there is none, where it failed; in words that a client may read.
        invalid: The rows among them that cannot be scored for what they are.
        is_broken: Whether the reward failed for all rows, and not for what they are.
    """

    scores: Scores
    errors: dict[int, str] = field(default_factory=dict)
    invalid: frozenset[int] = frozenset()
    is_broken: bool = False


def score_requests(
    provider: Provider,
    requests: Sequence[Sequence[Sample]],
    names: Sequence[str],
    *,
    merges: bool = True,
    by_row: bool = True,
) -> list[Isolated]:
    """Score each request's samples, all that have the same columns in one batch as long as nothing fails.

    What the provider's own `on_error` makes up for is made up for in each request by itself. Where it raises, it is found out by
    halves whose sample is at fault: the requests that the error may be about first, then the rows of each of these. What is left
    to fail has an error.

    Args:
        provider: The reward.
        requests: The samples of each request, none of them empty.
        names: What the log calls each request.
        merges: Whether samples of several requests may be scored together.
        by_row: Whether a request's rows may be scored apart from each other, which they may not where a score depends on the others.
    """
    found: dict[int, Isolated] = {}
    groups = _alike(requests) if merges else [[number] for number in range(len(requests))]
    while groups:
        group = groups.pop()
        if len(group) == 1:
            found[group[0]] = _Rows(provider, requests[group[0]], names[group[0]], by_row).score()
            continue
        failures = failures_in(provider)
        try:
            scores = _scored(provider, [sample for number in group for sample in requests[number]])
        except Exception as error:
            concerned = _concerned(error, group, [len(requests[number]) for number in group])
            logger.warning(
                "%d requests were scored together and failed; %d are looked at: %s", len(group), len(concerned), error
            )
            others = [number for number in group if number not in concerned] or group
            if others is not group:
                groups += [[number] for number in concerned]
            groups += _halves(others)
        else:
            if failures_in(provider) != failures:  # what made up for it may have done so for everybody's samples
                groups += [[number] for number in group]
                continue
            start = 0
            for number in group:
                stop = start + len(requests[number])
                found[number] = Isolated(_part(scores, start, stop))
                start = stop
    return [found[number] for number in range(len(requests))]


def _alike(requests: Sequence[Sequence[Sample]]) -> list[list[int]]:
    """The requests by the names of their columns: a function may be called otherwise where another one's sample has more."""
    groups: dict[frozenset[str], list[int]] = {}
    for number, samples in enumerate(requests):
        groups.setdefault(frozenset(name for sample in samples for name in sample.columns), []).append(number)
    return list(groups.values())


def _scored(provider: Provider, samples: Sequence[Sample]) -> Scores:
    """The scores; whatever a reward raises, even what is meant to end a program, is a failure of it."""
    try:
        return provider.score(samples)
    except Exception:
        raise
    except BaseException as error:
        raise ScoringError(f"The reward raised {type(error).__name__}: {error}") from error


def _concerned(error: Exception, group: Sequence[int], sizes: Sequence[int]) -> set[int]:
    """The requests that have a row which the error names; all of them where it names none."""
    rows = (error.rows if isinstance(error, ScoringError) else None) or ()
    owners = [number for number, size in zip(group, sizes, strict=True) for _ in range(size)]
    return {owners[row] for row in rows if 0 <= row < len(owners)} or set(group)


def _halves(items: list[int]) -> list[list[int]]:
    middle = (len(items) + 1) // 2
    return [half for half in (items[:middle], items[middle:]) if half]


def _part(scores: Scores, start: int, stop: int) -> Scores:
    details = {name: column[start:stop] for name, column in scores.details.items()}
    return Scores(scores.values[start:stop], details, scores.metadata, scores.failed[start:stop])


class _Rows:
    """The rows of one request, of which some may fail."""

    def __init__(self, provider: Provider, samples: Sequence[Sample], name: str, by_row: bool) -> None:
        self._provider = provider
        self._samples = samples
        self._name = name
        self._by_row = by_row
        self._errors: dict[int, Exception] = {}
        self._parts: list[Scores] = []

    def score(self) -> Isolated:
        """Score what can be scored."""
        size = len(self._samples)
        self._score(list(range(size)))
        errors = {row: _told(self._errors[row]) for row in sorted(self._errors)}
        invalid = frozenset(row for row, error in self._errors.items() if isinstance(error, DataError))
        nothing = Scores(np.full(size, np.nan))
        return Isolated(merged([nothing, *self._parts]), errors, invalid, is_broken=len(errors) == size and not invalid)

    def _score(self, rows: list[int]) -> None:
        try:
            scores = _scored(self._provider, [self._samples[row] for row in rows])
        except Exception as error:
            is_first = len(rows) == len(self._samples)
            logger.warning(
                "Request %s: %d samples failed: %s", self._name, len(rows), error, exc_info=error if is_first else None
            )
            named = {rows[place] for place in getattr(error, "rows", None) or () if 0 <= place < len(rows)}
            if not named and (len(rows) == 1 or not self._by_row):
                named = set(rows)
            self._errors.update(dict.fromkeys(named, error))
            others = [row for row in rows if row not in named]
            for some in _halves(others) if self._by_row else [others]:
                if some:
                    self._score(some)
        else:
            self._parts.append(scores.scattered(rows, len(self._samples)))


def _told(error: Exception) -> str:
    """What a client may read of an error: all of what is said of its own sample, and of others no more than the kind."""
    if isinstance(error, DataError):
        return str(error)
    return f"the reward failed ({type(error).__name__}); the server's log has the reason"
