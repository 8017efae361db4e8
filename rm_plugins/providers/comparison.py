"""Rewards from comparing the completions of a prompt with each other."""

from __future__ import annotations

import logging
import math
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np

from rm_plugins.comparisons.comparer import Comparer
from rm_plugins.comparisons.group_scores import GroupScores, ScoreName, scores_of_group
from rm_plugins.comparisons.players import Players
from rm_plugins.comparisons.schedules import SCHEDULES, Rounds, ScheduleName, least_pairs, rounds_of, single_round
from rm_plugins.comparisons.strengths import cyclic_triples
from rm_plugins.comparisons.tournament import Contradictions, GroupResults, Tally, Tournament
from rm_plugins.errors import DataError, RmPluginsError, ScoringError, SpecError
from rm_plugins.groups import groups_of
from rm_plugins.provider import Provider
from rm_plugins.samples import Sample
from rm_plugins.scores import Scores

logger = logging.getLogger(__name__)

Alone: TypeAlias = Literal["abstain", "error"]
"""What happens to an answer without another one to compare it with."""

_KEYS_OF_SCHEDULES = {"k": ("circular", "random"), "rounds": ("swiss",), "reference": ("reference",)}
_PRIORS = 1e-3, 1e3
"""The smallest and the largest prior: with others, strengths are below or above what double precision can tell apart."""
_MANY_VERDICTS = 40
_BIASED = 0.9
"""The share of verdicts for the same position above which a warning is given."""


class Comparison(Provider):
    """Scores of the completions of a prompt, which are compared with each other.

    The completions of each prompt in a batch are a group. A `comparer` chooses the better one of two answers, a `schedule` chooses the
    pairs, and the scores are strengths on one scale per group. Equal completions are compared as one and share its score. The scores do not
    depend on the order of the samples, or on the other groups of the batch.

    A completion that no comparison connects with the others of its group abstains, with the reason in `counts`. If that is because every
    comparison of it failed, it is an error. Details: ``standard_error``, ``comparisons`` (how many are known) and ``wins``.

    Args:
        comparer: Chooses the better one of two answers.
        schedule: ``all-pairs``. ``circular``: each with the `k` that follow it on a circle in drawn order. ``random``: drawn pairs, at
            least `k` per answer. ``swiss``: `rounds` in which answers with about as many wins meet. ``knock-out``. ``reference``: each
            answer with the reference answer of its row.
        k: For ``circular`` and ``random``; 2 if unset.
        rounds: For ``swiss``; log2 of the number of answers if unset, rounded up.
        budget: The most questions per group; without it, the schedule decides. A question is a pair in one order. A budget that cannot
            connect all answers of a group is an error of the group.
        both_orders: Whether each pair is asked in both orders, so that a preference for a position cancels out.
        contradictions: If each order prefers another answer, the pair has no result (``missing``), or the mean of both verdicts
            (``average``).
        score: ``bradley-terry``: strengths in logits with mean 0 in each group, or relative to the reference answer, whose strength is 0;
            ``win-rate``: the share of comparisons that an answer has won.
        prior: For ``bradley-terry``: the standard deviation of strengths before any comparison, in logits.
        group: A column whose values tell groups apart, for example of equal prompts; by default, the prompt does.
        reference: For the schedule ``reference``: the column with the reference answer.
        alone: What happens to the only answer of a prompt: ``abstain`` or ``error``.
        seed: Changes what schedules draw, which otherwise depends on the answers only.

    Raises:
        SpecError: A key does not fit the schedule, or a number is out of range.
    """

    name: ClassVar[str] = "comparison"
    depends_on_batch: ClassVar[bool] = True

    def __init__(
        self,
        *,
        comparer: Comparer,
        schedule: ScheduleName = "all-pairs",
        k: int | None = None,
        rounds: int | None = None,
        budget: int | None = None,
        both_orders: bool = True,
        contradictions: Contradictions = "missing",
        score: ScoreName = "bradley-terry",
        prior: float = 1.0,
        group: str | None = None,
        reference: str | None = None,
        alone: Alone = "abstain",
        seed: int = 0,
    ) -> None:
        _check_keys(schedule, {"k": k, "rounds": rounds, "reference": reference})
        for key, number in {"k": k, "rounds": rounds, "budget": budget}.items():
            if number is not None and number < 1:
                raise SpecError(f"must be at least 1, not {number}.", key=key)
        if not _PRIORS[0] <= prior <= _PRIORS[1]:
            raise SpecError(
                f"must be from {_PRIORS[0]:g} to {_PRIORS[1]:g}, the standard deviation of strengths in logits; not {prior}.",
                key="prior",
            )
        self.comparer = comparer
        self.schedule = schedule
        self.k = 2 if k is None else k
        self.rounds = rounds
        self.budget = budget
        self.both_orders = both_orders
        self.contradictions = contradictions
        self.score_name = score
        self.prior = prior
        self.group = group
        self.reference = reference
        self.alone = alone
        self.seed = seed
        self._warned = False

    @property
    def concurrent(self) -> bool:  # type: ignore[override]  # as the comparer
        """Whether the comparer waits."""
        return self.comparer.concurrent

    @property
    def metrics(self) -> tuple[str, ...]:  # type: ignore[override]  # the comparer's come after its own
        """What was asked, what came of it, and the comparer's own metrics."""
        own = ("calls", "position_bias", "intransitive", "ties", "missing", "contradictory")
        return (*own, *(name for name in self.comparer.metrics if name not in own))

    @property
    def children(self) -> dict[str, Provider]:
        """The comparer's providers, and the fallback."""
        inside = {f"comparer.{path}": child for path, child in self.comparer.children.items()}
        return {**inside, **super().children}

    @property
    def identity(self) -> list[Any]:
        """Its settings, and the comparer's identity."""
        settings = self._settings_with_effect("comparer")
        return [{**settings, "comparer": {"name": self.comparer.name, **self.comparer.identity}}, None, None]

    def close(self) -> None:
        """Free what the comparer holds."""
        self.comparer.close()
        super().close()

    def score_batch(self, samples: Sequence[Sample]) -> Scores:
        """Compare the answers of all groups, the questions of each round in one call, and score each group."""
        errors: dict[int, RmPluginsError] = {}
        abstained: Counter[str] = Counter()
        entered: list[tuple[Players, Rounds]] = []
        for rows in groups_of(samples, self.group):
            references = self._references(samples, rows, errors) if self.reference is not None else {}
            players = Players.of(samples, [row for row in rows if row not in errors], references, self.seed)
            if rounds := self._rounds(players, errors, abstained):
                entered.append((players, rounds))
        tournament = Tournament(self.comparer, both_orders=self.both_orders, contradictions=self.contradictions)
        played = tournament.play(entered)
        scored = [scores_of_group(group, score=self.score_name, prior=self.prior) for group in played]
        values, details = self._columns(len(samples), scored)
        failed = {row: reason for group in scored for row, reason in group.failed.items()}
        if failed:
            errors |= self._no_verdict(failed, len(samples)).by_row
        for group in scored:
            abstained.update(group.abstained.values())
        self._note_tally(tournament.tally, abstained)
        return Scores(values, details, self._facts(tournament.tally, played), errors=errors)

    def _references(
        self, samples: Sequence[Sample], rows: Sequence[int], errors: dict[int, RmPluginsError]
    ) -> dict[int, Sample]:
        """The reference answers of the rows that have one; the others get an error."""
        references = {}
        for row in rows:
            sample = samples[row]
            answer = sample.columns.get(str(self.reference))
            try:
                if answer is None:
                    raise DataError(
                        f"item {row} has no reference answer in the column {self.reference!r}. Its columns: "
                        f"{', '.join(map(repr, sample.columns)) or 'none'}."
                    )
                references[row] = Sample(sample.prompt, answer, sample.columns)
            except DataError as error:
                errors[row] = DataError(f"{self.called} cannot compare with a reference: {error}", rows=[row])
        return references

    def _rounds(self, players: Players, errors: dict[int, RmPluginsError], abstained: Counter[str]) -> Rounds | None:
        """The schedule of a group; None where there is nothing to compare, or the budget does not suffice."""
        pairs = players.reference_pairs()
        answers = len(pairs) if self.schedule == "reference" else len(players)
        if len(players) < 2 and not players.references:
            self._left_alone(players, errors, abstained)
            return None
        orders = 2 if self.both_orders else 1
        most = None if self.budget is None else self.budget // orders
        needed = least_pairs(self.schedule, answers)
        if most is not None and most < needed:
            rows = sorted(players.by_row)
            errors |= ScoringError(
                f"The budget of {self.budget} questions of {self.called} does not suffice for a group of {answers} different answers "
                f"(items {', '.join(map(str, rows[:8]))}{', ...' if len(rows) > 8 else ''}): the schedule {self.schedule!r} needs at least "
                f"{needed} pairs, which are {needed * orders} questions{' in both orders' if self.both_orders else ''}. Raise `budget`, "
                f"{'set `both_orders: false`, ' if self.both_orders else ''}or score fewer answers per prompt.",
                rows=rows,
            ).by_row
            return None
        if self.schedule == "reference":
            return single_round(pairs)
        return rounds_of(self.schedule, len(players), players.draw, most=most, k=self.k, rounds=self.rounds)

    def _left_alone(self, players: Players, errors: dict[int, RmPluginsError], abstained: Counter[str]) -> None:
        if self.alone == "abstain":
            abstained["alone"] += len(players.by_row)
            return
        for row in players.by_row:
            errors[row] = ScoringError(
                f"{self.called} has no other answer to compare item {row} with: it is the only one of its prompt in the batch, or all are "
                "equal. Score several answers per prompt together, or set `alone: abstain`.",
                rows=[row],
            )

    def _columns(
        self, size: int, scored: Sequence[GroupScores]
    ) -> tuple[np.ndarray[Any, Any], dict[str, np.ndarray[Any, Any]]]:
        values = np.full(size, np.nan)
        details = {name: np.full(size, np.nan) for name in ("standard_error", "comparisons", "wins")}
        for group in scored:
            for row, score in group.by_row.items():
                values[row], details["standard_error"][row] = score.value, score.error
            for row, (comparisons, wins) in group.known.items():
                details["comparisons"][row], details["wins"][row] = comparisons, wins
        return values, details

    def _no_verdict(self, failed: Mapping[int, str], size: int) -> ScoringError:
        reasons = Counter(failed.values())
        told = "; ".join(f"{reason} ({count} of them)" for reason, count in reasons.most_common(3))
        return ScoringError(
            f"Every comparison of {len(failed)} of {size} answers failed in {self.called} (first: item {min(failed)}): {told}.",
            rows=failed,
        )

    def _note_tally(self, tally: Tally, abstained: Counter[str]) -> None:
        """Count what happened, and warn where it shows a useless comparer."""
        failed = sum(tally.errors.values())
        counted = {
            "comparisons": tally.asked,
            "failed_comparisons": failed,
            "contradictory": tally.contradictory,
            "first_preferred": tally.first_preferred,
            "second_preferred": tally.second_preferred,
            **abstained,
        }
        for name, number in counted.items():
            if number:
                self._counted(name, number)
        if failed:
            reasons = "; ".join(f"{reason} ({count} times)" for reason, count in tally.errors.most_common(3))
            logger.warning("%s: %d of %d comparisons failed, and are missing: %s", self.called, failed, tally.asked, reasons)
        self._warn_of_position_bias()

    def _warn_of_position_bias(self) -> None:
        """Warn once of a comparer that nearly always prefers the answer in the same position, which says nothing about the answers."""
        with self.one_thread:
            first, second = self.counts["first_preferred"], self.counts["second_preferred"]
            biased = max(first, second) >= _BIASED * (first + second)
            if self._warned or first + second < _MANY_VERDICTS or not biased:
                return
            self._warned = True
        preferred = "first" if first > second else "second"
        warnings.warn(
            f"The comparer {self.comparer.name!r} of {self.called} prefers the answer that is shown {preferred} in {max(first, second)} of "
            f"{first + second} comparisons, although {'each pair is shown in both orders' if self.both_orders else 'the order is drawn'}. "
            "Its verdicts say little about the answers: check its template and model.",
            stacklevel=2,
        )

    def _facts(self, tally: Tally, played: Sequence[GroupResults]) -> dict[str, Any]:
        triples = [cyclic_triples(group.results) for group in played]
        decided = sum(of_group for _, of_group in triples)
        return {
            "calls": tally.asked,
            "position_bias": tally.position_bias,
            "intransitive": sum(cyclic for cyclic, _ in triples) / decided if decided else math.nan,
            "ties": tally.ties,
            "missing": tally.asked - tally.verdicts,
            "contradictory": tally.contradictory,
            **tally.metadata,
        }


def _check_keys(schedule: str, given: Mapping[str, object]) -> None:
    for key, schedules in _KEYS_OF_SCHEDULES.items():
        if given[key] is not None and schedule not in schedules:
            raise SpecError(
                f"is not a setting of the schedule {schedule!r}, only of {' and '.join(map(repr, schedules))}. Schedules: "
                f"{', '.join(SCHEDULES)}.",
                key=key,
            )
    if schedule == "reference" and given["reference"] is None:
        raise SpecError("the schedule 'reference' needs the column with the reference answers.", key="reference")
