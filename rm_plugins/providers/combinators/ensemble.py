"""Several rewards combined into one, with their disagreement."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from rm_plugins.component import Aggregate
from rm_plugins.errors import RmPluginsError, ScoringError, SpecError
from rm_plugins.provider import OnError, Provider
from rm_plugins.providers.combinators.members import bound_aggregate, combined, warn_without_common_scale
from rm_plugins.providers.combinators.parts import Combinator, failures_of, score_side_by_side, summed_work
from rm_plugins.samples import Sample
from rm_plugins.scores import FloatArray, Scores


class Ensemble(Combinator):
    """The combined score of several members, with each member's scores as parts and their disagreement in the details.

    Members that compute here run one after another; members that wait (remote ones) run at the same time.

    Args:
        members: Any providers, optionally each with its own `transform` and `on_error`.
        aggregate: How their scores are combined.
        quorum: The number of members that must give a score where others fail or abstain. By default a member's failure is the
            ensemble's, subject to its `on_error`, and where a member abstains, the ensemble does.
        common_scale: Whether the members are known to share a scale; if not, aggregates that need one warn.

    Raises:
        SpecError: There is no member, the quorum exceeds the number of members, or the aggregate does not fit this number.
    """

    name: ClassVar[str] = "ensemble"
    metrics: ClassVar[tuple[str, ...]] = ("missing_members",)

    def __init__(
        self,
        *,
        members: Sequence[Provider],
        aggregate: Aggregate | None = None,
        quorum: int | None = None,
        common_scale: bool = False,
    ) -> None:
        if not members:
            raise SpecError("an ensemble needs at least one member.", key="members")
        if quorum is not None and not 1 <= quorum <= len(members):
            raise SpecError(f"quorum must be from 1 to the number of members, {len(members)}; not {quorum}.", key="quorum")
        self.members = list(members)
        self.aggregate = bound_aggregate(aggregate, len(members))
        self.quorum = quorum
        if not common_scale:
            warn_without_common_scale(self.aggregate, [member.transform for member in self.members], repr(self.label))

    @property
    def part_providers(self) -> dict[str, Provider]:
        """The members by their numbers."""
        return {str(number): member for number, member in enumerate(self.members)}

    def score_batch(self, samples: Sequence[Sample]) -> Scores:
        """Let every member score the batch, and combine the scores."""
        on_error: OnError | None = None if self.quorum is None else "abstain"
        scored = score_side_by_side([(member, samples) for member in self.members], on_error=on_error)
        members = np.stack([scores.values for scores in scored])
        errors = failures_of(zip(self.members, scored, strict=True)) if self.quorum is None else self._short(scored, members)
        if len(errors) < len(samples):
            self._counted("missing_members", int(np.isnan(np.delete(members, list(errors), axis=1)).sum()))
        return combined(
            members, samples, self.aggregate, quorum=self.quorum, scored=scored, errors=errors, metadata=summed_work(scored)
        )

    def _short(self, scored: Sequence[Scores], members: FloatArray) -> dict[int, RmPluginsError]:
        """The errors of the rows that have fewer scores than the quorum because members failed."""
        failed = np.any([scores.failed for scores in scored], axis=0)
        short = np.flatnonzero(((~np.isnan(members)).sum(axis=0) < self.quorum) & failed).tolist()
        if not short:
            return {}
        return ScoringError(
            f"The ensemble {self.called} has the scores of fewer than {self.quorum} of its {len(self.members)} members for "
            f"{len(short)} of {members.shape[1]} samples (first: item {short[0]}), because members failed.",
            rows=short,
        ).by_row
