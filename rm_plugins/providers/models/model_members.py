"""The members of an ensemble that are one model: heads, adapters, passes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from rm_plugins.aggregates import Mean
from rm_plugins.errors import SpecError, UnsupportedError
from rm_plugins.models.manifest import ScoreStatistics
from rm_plugins.provider import Aggregate, Provider, Transform
from rm_plugins.providers.combinators.members import bound_aggregate, combined, warn_without_common_scale
from rm_plugins.samples import Sample
from rm_plugins.scores import FloatArray, Scores

__all__ = ["ModelMembers"]


class ModelMembers:
    """How the rewards of members that are one model are reshaped and become one.

    Args:
        labels: What messages call each member, [K].
        statistics: Of each member's scores where they are known, [K].
        aggregate: How their scores become one, the mean by default.
        transforms: One for each member.
        common_scale: Whether they share a scale as they are.
        called: What messages call all of them together.

    Raises:
        SpecError: The aggregate does not fit the number of members, or there is not one transform for each.
    """

    def __init__(
        self,
        labels: Sequence[str],
        statistics: Sequence[ScoreStatistics | None],
        *,
        aggregate: Aggregate | None,
        transforms: Sequence[Transform] | None,
        common_scale: bool,
        called: str,
    ) -> None:
        self.aggregate = bound_aggregate(aggregate, len(labels))
        self.transforms = list(transforms or ())
        if transforms is not None and len(transforms) != len(labels):
            raise SpecError(
                f"there are {len(transforms)} for {len(labels)} members; give one a member, in their order.",
                key="member_transforms",
            )
        for place, (transform, label, found) in enumerate(zip(self.transforms, labels, statistics, strict=bool(transforms))):
            try:
                transform.bind(_Member(label, found))
            except SpecError as error:
                raise SpecError(error.message, key=".".join(filter(None, (f"member_transforms[{place}]", error.key)))) from None
        if not common_scale:
            warn_without_common_scale(self.aggregate, self.transforms or [None] * len(labels), called)

    @property
    def is_plain_mean(self) -> bool:
        """Whether the reward is the mean of the members as they are."""
        return isinstance(self.aggregate, Mean) and not self.transforms

    def combined(self, rewards: FloatArray, samples: Sequence[Sample], metadata: Mapping[str, Any]) -> Scores:
        """One score of the rewards of the members, float64 [K, N]; those before a transform are the details ``member/0/raw``."""
        if not self.transforms:
            return combined(rewards, samples, self.aggregate, metadata=metadata)
        members = np.stack([transform(row, samples) for transform, row in zip(self.transforms, rewards, strict=True)])
        scored = [Scores(row, {"raw": raw}) for row, raw in zip(members, rewards, strict=True)]
        return combined(members, samples, self.aggregate, scored=scored, metadata=metadata)


class _Member(Provider):
    """What a transform is bound to: a member does not score by itself."""

    name: ClassVar[str] = "member"

    def __init__(self, label: str, statistics: ScoreStatistics | None) -> None:
        self.label = label
        self.statistics = statistics

    def score_batch(self, samples: Sequence[Sample]) -> Scores:
        raise UnsupportedError(f"{self.label} is part of one model with others, and does not score without them.")
