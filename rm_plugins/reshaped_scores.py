"""A provider's scores after its transform, and the rows whose scores cannot be used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rm_plugins.component import Transform
from rm_plugins.errors import DataError, RmPluginsError, ScoringError
from rm_plugins.samples import Sample
from rm_plugins.scores import Scores


def reshaped_scores(scores: Scores, samples: Sequence[Sample], transform: Transform, called: str) -> Scores:
    """The scores with the values that a transform makes of them, and with the earlier ones as the detail ``raw``.

    Rows that the transform refuses fail, and the others are reshaped without them; no sample is scored again.

    Args:
        scores: The scores of the samples, [N].
        samples: The samples, [N].
        transform: The transform.
        called: The provider's name in messages.

    Raises:
        ScoringError: The transform refuses scores and names no rows, or returns another number of scores.
        DataError: Likewise, because of what a sample holds.
    """
    rows = list(range(len(samples)))
    refused: dict[int, RmPluginsError] = {}
    found = Scores(np.empty(0))
    while rows:
        try:
            values = transform(scores.values[rows], [samples[row] for row in rows])
            found = finite_scores(Scores(values), len(rows), f"The provider {called}")
            break
        except (ScoringError, DataError) as error:
            named = {rows[place] for place in error.rows or () if 0 <= place < len(rows)}
            if not named:
                raise
            refused |= dict.fromkeys(named, error)
            rows = [row for row in rows if row not in named]
    reshaped = found.scattered(rows, len(samples))
    errors = {**refused, **scores.errors, **reshaped.errors}
    revived = np.flatnonzero(scores.abstained & ~reshaped.abstained).tolist()
    if revived:
        revival = ScoringError(
            f"The transform {transform.name!r} of the provider {called} turned {len(revived)} abstentions into scores (first: "
            f"item {revived[0]}). NaN must stay NaN.",
            rows=revived,
        )
        errors = revival.by_row | errors
    return replace(scores, values=reshaped.values, details={**scores.details, "raw": scores.values}, errors=errors)


def finite_scores(scores: Scores, size: int, called: str) -> Scores:
    """The scores, with an error for each infinite one.

    Args:
        scores: The scores.
        size: The number of samples.
        called: What returned them, as the beginning of a sentence.

    Raises:
        ScoringError: Their number is another.
    """
    if len(scores) != size:
        raise ScoringError(
            f"{called} returned {len(scores)} scores for {size} samples; it must return exactly one per sample, NaN where it abstains."
        )
    infinite = np.flatnonzero(np.isinf(scores.values)).tolist()
    if not infinite:
        return scores
    error = ScoringError(
        f"{called} returned an infinite score for {len(infinite)} of {size} samples (first: item {infinite[0]}). A reward must be finite, "
        "or NaN to abstain.",
        rows=infinite,
    )
    return replace(scores, errors=error.by_row | dict(scores.errors))
