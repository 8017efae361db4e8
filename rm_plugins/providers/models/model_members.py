"""The members of an ensemble that are one model: heads, adapters, passes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from rm_plugins.aggregates import Mean
from rm_plugins.errors import SpecError
from rm_plugins.models.manifest import ScoreStatistics
from rm_plugins.models.trained_reward import TrainedReward
from rm_plugins.provider import Aggregate, Provider, Transform
from rm_plugins.providers.combinators.members import bound_aggregate, combined, warn_without_common_scale
from rm_plugins.samples import Sample
from rm_plugins.scores import FloatArray, Scores

__all__ = ["ModelMember", "ModelMembers"]


class ModelMember(Provider):
    """One member of a trained model by itself: what the transform of its rewards is bound to.

    Args:
        trained: The model.
        number: Which member it is.
        label: What messages call it.
        statistics: Of its rewards, where they are known.
    """

    name: ClassVar[str] = "model-member"

    def __init__(self, trained: TrainedReward, number: int, *, label: str, statistics: ScoreStatistics | None = None) -> None:
        self.trained = trained
        self.number = number
        self.label = label
        self.statistics = statistics

    def score_batch(self, samples: Sequence[Sample]) -> Scores:
        """Score with the whole model, of which this is the one member's reward."""
        outputs = self.trained.outputs(samples)
        rewards = self.trained.heads.rewards_of_members(outputs.values)[self.number]
        return Scores(rewards, metadata=outputs.metadata, errors=outputs.errors, tokens=outputs.tokens)


class ModelMembers:
    """How the rewards of members that are one model are reshaped and become one.

    Args:
        members: The members, [K].
        aggregate: How their scores become one, the mean by default.
        transforms: One for each member.
        common_scale: Whether they share a scale as they are.
        called: What messages call all of them together.

    Raises:
        SpecError: The aggregate does not fit the number of members, or there is not one transform for each.
    """

    def __init__(
        self,
        members: Sequence[ModelMember],
        *,
        aggregate: Aggregate | None,
        transforms: Sequence[Transform] | None,
        common_scale: bool,
        called: str,
    ) -> None:
        self.aggregate = bound_aggregate(aggregate, len(members))
        self.transforms = list(transforms or ())
        if transforms is not None and len(transforms) != len(members):
            raise SpecError(
                f"there are {len(transforms)} for {len(members)} members; give one a member, in their order.",
                key="member_transforms",
            )
        for number, (transform, member) in enumerate(zip(self.transforms, members, strict=bool(transforms))):
            try:
                transform.bind(member)
            except SpecError as error:
                raise SpecError(
                    error.message, key=".".join(filter(None, (f"member_transforms[{number}]", error.key)))
                ) from None
        if not common_scale:
            warn_without_common_scale(self.aggregate, self.transforms or [None] * len(members), called)

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
