"""Combines the scores of several members into one, and measures their disagreement."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from rm_plugins.aggregates import Mean
from rm_plugins.component import Aggregate, Transform
from rm_plugins.errors import RmPluginsError, ScoringError, SpecError
from rm_plugins.groups import groups_of
from rm_plugins.providers.combinators.parts import summed_tokens
from rm_plugins.samples import Sample
from rm_plugins.scores import FloatArray, Scores
from rm_plugins.statistics.ranks import ranks_in_groups


def combined(
    members: FloatArray,
    samples: Sequence[Sample],
    aggregate: Aggregate,
    *,
    quorum: int | None = None,
    scored: Sequence[Scores] | None = None,
    errors: Mapping[int, RmPluginsError] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Scores:
    """The combined scores of several members.

    Args:
        members: float64 [K, N], NaN where a member gave no score.
        samples: [N]; completions of the same prompt are compared.
        aggregate: How they are combined.
        quorum: How many members must have given a score, all K by default; a sample with fewer gets none.
        scored: The members' full scores, [K], for the parts; only their values if unset.
        errors: By row, why there is no score.
        metadata: Facts about the batch.

    Returns:
        The combined scores, with the members as parts ``0``, ``1`` and so on. The details are ``std`` (over members, ddof 0) and
        ``rank_disagreement`` (see `rank_disagreement`). The metadata has ``missing_members``, the share of member scores that are
        missing.

    Raises:
        ScoringError: The aggregate does not return one number per sample.
    """
    present = ~np.isnan(members)
    enough = present.sum(axis=0) >= (len(members) if quorum is None else quorum)
    values = np.full(len(samples), np.nan)
    if enough.any():
        aggregated = np.asarray(aggregate(members[:, enough]), dtype=np.float64)
        if aggregated.shape != (enough.sum(),):
            raise ScoringError(
                f"The aggregate {aggregate.name!r} returned an array of shape {aggregated.shape} for the scores of {len(members)} members "
                f"and {enough.sum()} samples; one score per sample was expected."
            )
        values[enough] = aggregated
    spread = np.full(len(samples), np.nan)
    some = present.any(axis=0)
    spread[some] = np.nanstd(members[:, some], axis=0)
    parts = {str(number): replace(scores, kind="member") for number, scores in enumerate(scored or map(Scores, members))}
    return Scores(
        values,
        {"std": spread, "rank_disagreement": rank_disagreement(members, samples)},
        {**(metadata or {}), "missing_members": float((~present).mean())},
        errors=errors or {},
        parts=parts,
        tokens=summed_tokens(parts.values()),
    )


def rank_disagreement(members: FloatArray, samples: Sequence[Sample]) -> FloatArray:
    """How much members disagree about the rank of a completion among those of its prompt, float64 [N].

    Each member ranks the completions of a prompt from 0, the worst, to 1, the best; ties share their mean rank. The disagreement
    is the standard deviation over members (ddof 0) of a completion's rank: 0 where all agree, 0.5 where half of them rank it best
    and half worst. It does not depend on the members' scales.

    Args:
        members: float64 [K, N], NaN where a member gave no score.
        samples: [N]; completions of equal prompts are compared, and those without a prompt are not.

    Returns:
        NaN for a completion without another one to compare, or without the scores of two members.
    """
    groups = groups_of(samples)
    ranks = np.stack([ranks_in_groups(scores, groups) for scores in members])
    comparable = (~np.isnan(ranks)).sum(axis=0) > 1
    disagreement = np.full(len(samples), np.nan)
    disagreement[comparable] = np.nanstd(ranks[:, comparable], axis=0)
    return disagreement


def bound_aggregate(aggregate: Aggregate | None, members: int) -> Aggregate:
    """The aggregate, bound to this number of members; the mean if it is None.

    Raises:
        SpecError: It does not fit this number.
    """
    bound = aggregate or Mean()
    try:
        bound.bind(members)
    except SpecError as error:
        raise error.inside("aggregate") from None
    return bound


def warn_without_common_scale(aggregate: Aggregate, transforms: Sequence[Transform | None], called: str) -> None:
    """Warn where an aggregate needs a common scale, and members have no transform."""
    bare = [number for number, transform in enumerate(transforms) if transform is None]
    if aggregate.needs_common_scale and bare and len(transforms) > 1:
        warnings.warn(
            f"The aggregate {aggregate.name!r} of {called} needs a common scale, but {'all' if len(bare) == len(transforms) else 'some'} "
            f"of its members have no transform ({', '.join(map(str, bare))}). "
            "Rewards learned from preferences are only defined up to a shift, so one member may always be the lowest. Give each "
            "member `transform: zscore` (in one model: `member_transforms`), use `rm-plugins calibrate`, or set "
            "`common_scale: true` if they share a scale.",
            stacklevel=3,
        )
