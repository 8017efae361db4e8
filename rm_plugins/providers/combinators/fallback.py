"""Rewards that are tried one after another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from rm_plugins.errors import SpecError
from rm_plugins.provider import Provider
from rm_plugins.providers.combinators.parts import Combinator, numbered, score_rows
from rm_plugins.samples import Sample
from rm_plugins.scores import Scores


class Fallback(Combinator):
    """The score of the first member that gives one.

    Samples for which a member abstains or fails go to the next one; a failure is counted in that member's `counts` and logged.
    The last member's outcome is final: its score, its abstention, or its error. `counts["member/0"]` and so on count the scores that
    came from each member.

    Args:
        members: Any providers, in the order in which they are tried.

    Raises:
        SpecError: There is no member.
    """

    name: ClassVar[str] = "fallback"

    def __init__(self, *, members: Sequence[Provider]) -> None:
        if not members:
            raise SpecError("a fallback needs at least one member.", key="members")
        self.members = list(members)

    @property
    def part_providers(self) -> dict[str, Provider]:
        """The members by their numbers."""
        return {str(number): member for number, member in enumerate(self.members)}

    def score_batch(self, samples: Sequence[Sample]) -> Scores:
        """Let one member after another score the samples that have no score yet."""
        values = np.full(len(samples), np.nan)
        scored: list[Scores] = []
        for number, member in enumerate(self.members):
            rows = np.flatnonzero(np.isnan(values)).tolist()
            is_last = number == len(self.members) - 1
            (scores,) = score_rows(samples, [(member, rows)], on_error=None if is_last else "abstain")
            values[rows] = scores.values[rows]
            self._counted(f"member/{number}", int((~scores.abstained).sum()))
            scored.append(scores)
        errors = self.members[-1].unhandled(scored[-1])
        return self.whole(values, numbered(self.members, scored), kind="member", errors=errors)
