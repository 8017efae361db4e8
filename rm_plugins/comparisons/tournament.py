"""Asks a comparer what the schedules of several groups want to know, and collects the results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np

from rm_plugins.comparisons.comparer import Comparer, Comparison
from rm_plugins.comparisons.players import Players, content_key
from rm_plugins.comparisons.schedules import Pair, Rounds, next_pairs
from rm_plugins.comparisons.strengths import Results
from rm_plugins.samples import Sample

Contradictions: TypeAlias = Literal["missing", "average"]
"""What a pair becomes if each order prefers another answer."""

CONTRADICTORY = "each order of the two answers prefers another one"
UNDECIDED = "the comparer abstained"

_Key: TypeAlias = tuple[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is known of a question.

    Args:
        share: The probability that the first answer is better; NaN where there is no verdict.
        error: Why there is none, if the comparison failed.
    """

    share: float
    error: str = ""


@dataclass(slots=True)
class GroupResults:
    """The results of a group.

    Args:
        players: The group.
        pairs: The pairs with a result.
        shares: The first player's share of the wins of each pair.
        weights: The part of each pair's orders that has a verdict.
        missing: For each player, the reasons of its pairs without a result, each with whether it is a failure.
    """

    players: Players
    pairs: list[Pair] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    missing: dict[int, list[tuple[str, bool]]] = field(default_factory=dict)

    @property
    def results(self) -> Results:
        """The known results."""
        return Results.of(len(self.players), self.pairs, self.shares, self.weights)

    def add(self, pair: Pair, verdicts: Sequence[Verdict], contradictions: Contradictions) -> float:
        """Add the verdicts on a pair, in the order of its players and perhaps in the other; returns the first player's share."""
        shares = [
            verdict.share if number == 0 else 1 - verdict.share
            for number, verdict in enumerate(verdicts)
            if not np.isnan(verdict.share)
        ]
        if not shares:
            errors = [verdict.error for verdict in verdicts if verdict.error]
            return self._without(pair, errors[0] if errors else UNDECIDED, bool(errors))
        if contradictions == "missing" and min(shares) < 0.5 < max(shares):
            return self._without(pair, CONTRADICTORY, False)
        self.pairs.append(pair)
        self.shares.append(sum(shares) / len(shares))
        self.weights.append(len(shares) / len(verdicts))
        return self.shares[-1]

    def _without(self, pair: Pair, reason: str, failed: bool) -> float:
        for player in pair:
            self.missing.setdefault(player, []).append((reason, failed))
        return float("nan")


@dataclass(slots=True)
class Tally:
    """What was asked in a tournament, and what came of it.

    Args:
        asked: The number of questions to the comparer.
        verdicts: The number of questions with a verdict.
        first_wins: The sum of the probabilities that the answer shown first is better.
        first_preferred: The number of verdicts that prefer the answer shown first.
        second_preferred: The number of verdicts that prefer the other one.
        ties: The number of verdicts that prefer neither.
        contradictory: The number of pairs whose orders contradict each other.
        errors: The reasons of failed comparisons.
        metadata: The sums of the comparer's own facts.
    """

    asked: int = 0
    verdicts: int = 0
    first_wins: float = 0.0
    first_preferred: int = 0
    second_preferred: int = 0
    ties: int = 0
    contradictory: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    metadata: Counter[str] = field(default_factory=Counter)

    def add(self, verdict: Verdict) -> None:
        """Count the answer to a question."""
        self.asked += 1
        if verdict.error:
            self.errors[verdict.error] += 1
        if np.isnan(verdict.share):
            return
        self.verdicts += 1
        self.first_wins += verdict.share
        self.first_preferred += verdict.share > 0.5
        self.second_preferred += verdict.share < 0.5
        self.ties += verdict.share == 0.5

    @property
    def position_bias(self) -> float:
        """The share of wins of the answers shown first; NaN without a verdict."""
        return self.first_wins / self.verdicts if self.verdicts else float("nan")


class Tournament:
    """Plays the schedules of several groups at the same time: the questions of a round of all groups are one call of the comparer.

    A question that is already known is not asked again.

    Args:
        comparer: Gives the verdicts.
        both_orders: Whether each pair is asked in both orders.
        contradictions: What a pair becomes if its orders contradict each other.
    """

    def __init__(self, comparer: Comparer, *, both_orders: bool, contradictions: Contradictions) -> None:
        self._comparer = comparer
        self._both_orders = both_orders
        self._contradictions = contradictions
        self._known: dict[_Key, Verdict] = {}
        self.tally = Tally()

    def play(self, groups: Sequence[tuple[Players, Rounds]]) -> list[GroupResults]:
        """Play until every schedule ends; returns the results of each group."""
        played = [GroupResults(players) for players, _ in groups]
        keys = [[content_key(sample) for sample in players.samples] for players, _ in groups]
        shown = [Counter[int]() for _ in groups]
        pending = {number: next(rounds, []) for number, (_, rounds) in enumerate(groups)}
        while pending := {number: pairs for number, pairs in pending.items() if pairs}:
            orders = {number: [list(self._orders(pair, shown[number])) for pair in pairs] for number, pairs in pending.items()}
            questions: dict[_Key, tuple[Sample, Sample]] = {}
            for number, of_pairs in orders.items():
                samples = groups[number][0].samples
                for first, second in (order for of_pair in of_pairs for order in of_pair):
                    questions[keys[number][first], keys[number][second]] = (samples[first], samples[second])
            self._ask({key: pair for key, pair in questions.items() if key not in self._known})
            following = {}
            for number, of_pairs in orders.items():
                shares = [self._result(played[number], of_pair, keys[number]) for of_pair in of_pairs]
                by_pair = [
                    share if pair == of_pair[0] else 1 - share
                    for pair, of_pair, share in zip(pending[number], of_pairs, shares, strict=True)
                ]
                following[number] = next_pairs(groups[number][1], by_pair)
            pending = following
        return played

    def _orders(self, pair: Pair, shown: Counter[int]) -> Iterator[Pair]:
        """The orders in which a pair is asked; of one order only, the answer that was shown first less often is first."""
        first, second = pair
        if self._both_orders:
            yield from ((first, second), (second, first))
            return
        if shown[second] < shown[first]:
            first, second = second, first
        shown[first] += 1
        shown[second] -= 1
        yield first, second

    def _ask(self, questions: Mapping[_Key, tuple[Sample, Sample]]) -> None:
        if not questions:
            return
        places: dict[bytes, int] = {}
        samples: list[Sample] = []
        for key, pair in questions.items():
            for content, sample in zip(key, pair, strict=True):
                if content not in places:
                    places[content] = len(samples)
                    samples.append(sample)
        asked = [Comparison(places[first], places[second]) for first, second in questions]
        verdicts = self._comparer.compare(samples, asked)
        verdicts.check_answers(len(asked), self._comparer.name)
        for place, (key, share) in enumerate(zip(questions, verdicts.probabilities.tolist(), strict=True)):
            self._known[key] = Verdict(share, verdicts.errors.get(place, ""))
            self.tally.add(self._known[key])
        self.tally.metadata.update(verdicts.metadata)

    def _result(self, group: GroupResults, orders: Sequence[Pair], keys: Sequence[bytes]) -> float:
        verdicts = [self._known[keys[first], keys[second]] for first, second in orders]
        if len(verdicts) == 2:
            one, other = verdicts
            self.tally.contradictory += min(one.share, 1 - other.share) < 0.5 < max(one.share, 1 - other.share)
        return group.add(orders[0], verdicts, self._contradictions)
