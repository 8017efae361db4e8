"""Scores the samples of several requests together; a failure in one request does not affect the others."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rm_plugins.errors import RmPluginsError, ScoringError
from rm_plugins.provider import Provider
from rm_plugins.providers.combinators.parts import unnamed_failures_in
from rm_plugins.samples import Sample
from rm_plugins.scores import Scores, joined

logger = logging.getLogger(__name__)


def score_requests(
    provider: Provider,
    requests: Sequence[Sequence[Sample]],
    names: Sequence[str],
    *,
    merges: bool = True,
    by_row: bool = True,
) -> list[Scores]:
    """Score the samples of each request, together as long as failures name their rows.

    A failure that names its rows does not affect other rows. A failure without rows is located by bisection: first the request, then its
    rows. Then the provider's own `on_error` is applied to each request separately.

    Args:
        provider: The reward.
        requests: The samples of each request, at least one per request.
        names: The name of each request in the log.
        merges: Whether samples of several requests may be scored together.
        by_row: Whether the rows of a request may be scored separately; not if a score depends on the other rows.

    Returns:
        The scores of each request; the errors are those that the provider does not turn into abstentions.
    """
    scored: dict[int, Scores] = {}
    groups = [[*range(len(requests))]] if merges and requests else [[number] for number in range(len(requests))]
    while groups:
        group = groups.pop()
        if len(group) == 1:
            (number,) = group
            scored[number] = _scored_rows(provider, requests[number], by_row=by_row)
            continue
        scores, is_named = _attempted(provider, [sample for number in group for sample in requests[number]])
        if not is_named:
            logger.warning("%d requests failed together; scoring them in halves to find the cause.", len(group))
            groups += _halves(group)
            continue
        start = 0
        for number in group:
            stop = start + len(requests[number])
            scored[number] = scores.rows(range(start, stop))
            start = stop
    for number, name in enumerate(names):
        _log(scored[number], name)
    return [scored[number] for number in range(len(requests))]


def _scored_rows(provider: Provider, samples: Sequence[Sample], *, by_row: bool) -> Scores:
    """The scores of one request, in which some rows may fail."""
    scores, is_named = _attempted(provider, samples)
    if is_named or not by_row or len(samples) == 1 or len(scores.errors) < len(samples):
        return scores
    parts = [
        _scored_rows(provider, [samples[row] for row in rows], by_row=True).scattered(rows, len(samples))
        for rows in _halves(list(range(len(samples))))
    ]
    return joined(parts)


def _attempted(provider: Provider, samples: Sequence[Sample]) -> tuple[Scores, bool]:
    """The scores with the errors that the provider does not handle, and whether all failures named their rows.

    Any exception of a reward counts as a failure, even one that normally ends a program.
    """
    before = unnamed_failures_in(provider)
    try:
        scores = provider.attempt(samples)
    except BaseException as error:
        return _all_failed(error, len(samples)), len(samples) == 1
    return replace(scores, errors=provider.unhandled(scores)), unnamed_failures_in(provider) == before


def _all_failed(error: BaseException, size: int) -> Scores:
    failure = (
        error
        if isinstance(error, RmPluginsError)
        else ScoringError(f"The reward raised {type(error).__name__}: {error}").caused_by(error)
    )
    return Scores(np.full(size, np.nan), errors=dict.fromkeys(range(size), failure))


def _log(scores: Scores, name: str) -> None:
    """Log one record for a request with failed samples: the first failure, and the number of different other ones."""
    if scores.errors:
        first = scores.errors[min(scores.errors)]
        others = len({str(error) for error in scores.errors.values()}) - 1
        more = f" (and {others} other failures)" if others else ""
        logger.warning("Request %s: %d samples failed: %s%s", name, len(scores.errors), first, more, exc_info=first)


def _halves(items: list[int]) -> list[list[int]]:
    middle = (len(items) + 1) // 2
    return [half for half in (items[:middle], items[middle:]) if half]
