"""The scores of a group's answers from the results of their comparisons, and the reasons where there is none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from rm_plugins.comparisons.connections import Connections
from rm_plugins.comparisons.strengths import Results, bradley_terry, win_rates
from rm_plugins.comparisons.tournament import CONTRADICTORY, GroupResults

ScoreName: TypeAlias = Literal["bradley-terry", "win-rate"]

Abstention: TypeAlias = Literal["contradictory_answers", "undecided_answers", "disconnected"]
"""Why an answer has no score: every pair of it was contradictory; no pair of it has a verdict, though not all failed; no comparison
connects it with most of the others."""


class Score(NamedTuple):
    """A score with its standard error."""

    value: float
    error: float


@dataclass(frozen=True, slots=True)
class GroupScores:
    """The scores of a group.

    Args:
        by_row: The scores of the rows that have one.
        known: For every row, the number of its comparisons with a result, and how many of them it won.
        abstained: Why a row has no score.
        failed: The first reason of the rows whose comparisons all failed.
    """

    by_row: Mapping[int, Score]
    known: Mapping[int, tuple[float, float]]
    abstained: Mapping[int, Abstention]
    failed: Mapping[int, str]


def scores_of_group(group: GroupResults, *, score: ScoreName, prior: float) -> GroupScores:
    """Score the answers of a group.

    Strengths are comparable only within a part of the group that comparisons connect. The largest part has scores; if two parts are the
    largest, no answer has one. With references, answers that are connected with their reference have scores.

    Args:
        group: The results.
        score: The kind of score.
        prior: See `rm_plugins.comparisons.strengths.bradley_terry`.
    """
    players, results = group.players, group.results
    wins, comparisons = results.wins, results.comparisons
    by_player: dict[int, Score]
    if players.references:
        scored = _relative(group, results, score, prior)
    else:
        by_player = _win_rates(results) if score == "win-rate" else _strengths(results, group, prior)
        scored = {row: by_player[player] for row, player in players.by_row.items() if player in by_player}
    abstained: dict[int, Abstention] = {}
    failed: dict[int, str] = {}
    for row, player in players.by_row.items():
        if row in scored:
            continue
        reasons = group.missing.get(player, [])
        if comparisons[player] or not reasons:
            abstained[row] = "disconnected"
        elif all(is_failure for _, is_failure in reasons):
            failed[row] = reasons[0][0]
        else:
            contradicts = any(reason == CONTRADICTORY for reason, _ in reasons)
            abstained[row] = "contradictory_answers" if contradicts else "undecided_answers"
    known = {row: (float(comparisons[player]), float(wins[player])) for row, player in players.by_row.items()}
    return GroupScores(scored, known, abstained, failed)


def _win_rates(results: Results) -> dict[int, Score]:
    rates, errors = win_rates(results)
    return {
        player: Score(float(rates[player]), float(errors[player]))
        for player in range(results.players)
        if not np.isnan(rates[player])
    }


def _strengths(results: Results, group: GroupResults, prior: float) -> dict[int, Score]:
    """The strengths of the largest connected part, with mean 0 in it."""
    parts = sorted(Connections(results.players, group.pairs).parts(), key=len, reverse=True)
    largest = parts[0]
    if len(largest) < 2 or (len(parts) > 1 and len(parts[1]) == len(largest)):
        return {}
    places = {player: place for place, player in enumerate(largest)}
    inside = [number for number, (first, _) in enumerate(group.pairs) if first in places]
    pairs = [(places[group.pairs[number][0]], places[group.pairs[number][1]]) for number in inside]
    strengths = bradley_terry(
        Results.of(len(largest), pairs, results.shares[inside].tolist(), results.weights[inside].tolist()), prior
    )
    return {
        player: Score(float(value), float(error))
        for player, value, error in zip(largest, strengths.values, strengths.errors, strict=True)
    }


def _relative(group: GroupResults, results: Results, score: ScoreName, prior: float) -> dict[int, Score]:
    """The scores of rows relative to their reference answers; an answer that equals its reference is a tie with it."""
    players = group.players
    connections = Connections(results.players, group.pairs)
    by_player = _win_rates(results) if score == "win-rate" else {}
    strengths = bradley_terry(results, prior)
    scored: dict[int, Score] = {}
    for row, reference in players.references.items():
        player = players.by_row[row]
        if player == reference:
            scored[row] = Score(0.5 if score == "win-rate" else 0.0, 0.0)
        elif not connections.are_connected(player, reference):
            continue
        elif score == "win-rate":
            scored[row] = by_player[player]
        else:
            difference = strengths.values[player] - strengths.values[reference]
            others = [reference] * results.players
            scored[row] = Score(float(difference), float(strengths.errors_of_differences(others)[player]))
    return scored
