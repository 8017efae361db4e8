"""What the providers of trained models share: each holds one model, and combines its members if it has several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from rm_plugins.aggregates import Mean
from rm_plugins.component import Aggregate, Transform
from rm_plugins.errors import SpecError
from rm_plugins.models.identity import WHERE_A_MODEL_IS, model_facts
from rm_plugins.models.manifest import Manifest, ScoreStatistics
from rm_plugins.models.trained_reward import ModelOutputs, TrainedReward
from rm_plugins.provider import Provider
from rm_plugins.providers.combinators.members import bound_aggregate, combined, warn_without_common_scale
from rm_plugins.rendering.render import Renderer
from rm_plugins.samples import Sample
from rm_plugins.scores import Scores

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class ModelMember(Provider):
    """A single member of a trained model: the provider that the transform of its rewards is bound to.

    Args:
        trained: The model.
        number: The number of the member.
        label: Its name in messages.
        statistics: The statistics of its rewards, where they are known.
    """

    name: ClassVar[str] = "model-member"

    def __init__(self, trained: TrainedReward, number: int, *, label: str, statistics: ScoreStatistics | None = None) -> None:
        self.trained = trained
        self.number = number
        self.label = label
        self.statistics = statistics

    def score_batch(self, samples: Sequence[Sample]) -> Scores:
        """Score with the whole model, and return this member's reward."""
        outputs = self.trained.outputs(samples)
        rewards = self.trained.heads.rewards_of_members(outputs.values)[self.number]
        return Scores(rewards, metadata=outputs.metadata, errors=outputs.errors, tokens=outputs.tokens)


class ModelProvider(Provider):
    """A provider that scores with the trained model that it holds.

    Args:
        trained: The model.
        label: Its name.
        members: The model's members, if they have their own names or statistics of their rewards are known.
        aggregate: How the members' rewards are combined; their mean if unset.
        member_transforms: One per member, applied before aggregating.
        common_scale: Whether the members are known to share a scale.

    Raises:
        SpecError: The aggregate or the transforms do not fit the members, or there is only one member.
    """

    name: ClassVar[str] = "model"
    keys_without_effect: ClassVar[frozenset[str]] = frozenset(
        ("cache", "compile", "device", "device_map", "max_batch_tokens", "tp_plan", "verify")
    )
    metrics: ClassVar[tuple[str, ...]] = ("tokens_per_second", "duplicate_share", "cached")

    def __init__(
        self,
        trained: TrainedReward,
        *,
        label: str,
        members: Sequence[ModelMember] = (),
        aggregate: Aggregate | None = None,
        member_transforms: Sequence[Transform] | None = None,
        common_scale: bool = False,
    ) -> None:
        self.trained = trained
        self.label = label
        count = trained.heads.members
        if count == 1 and (aggregate is not None or member_transforms is not None):
            raise SpecError(
                f"{trained.source} has a single member here, so there is nothing to combine. Leave the key out (and the key `head`, if the "
                "model has several members), train the model with `RewardConfig(members=5)`, or combine several models with "
                "`provider: ensemble`.",
                key="member_transforms" if aggregate is None else "aggregate",
            )
        self._aggregate = bound_aggregate(aggregate, count)
        self.member_transforms = list(member_transforms or ())
        if count == 1:
            return
        if member_transforms is not None and len(member_transforms) != count:
            raise SpecError(
                f"there are {len(member_transforms)} for {count} members; give one per member, in their order.",
                key="member_transforms",
            )
        members = members or [ModelMember(trained, number, label=f"member {number} of {label}") for number in range(count)]
        for number, (transform, member) in enumerate(zip(self.member_transforms, members, strict=False)):
            try:
                transform.bind(member)
            except SpecError as error:
                raise error.inside(f"member_transforms[{number}]") from None
        if not common_scale:
            warn_without_common_scale(self._aggregate, self.member_transforms or [None] * count, repr(label))

    @property
    def models(self) -> Mapping[str, TrainedReward]:
        """The model that it holds."""
        return {"model": self.trained}

    @property
    def model(self) -> PreTrainedModel:
        """The transformers model itself."""
        return self.trained.model

    @property
    def renderer(self) -> Renderer:
        """How samples become the model's token ids."""
        return self.trained.renderer

    @property
    def manifest(self) -> Manifest | None:
        """The manifest that was written beside the model when it was trained, if there is one."""
        return self.trained.manifest

    @property
    def statistics(self) -> ScoreStatistics | None:
        """The statistics in the model's manifest, if they apply: members must be averaged without transforms."""
        return self.trained.statistics if self.is_weighted_sum else None

    @property
    def is_weighted_sum(self) -> bool:
        """Whether the reward, before its transform, is the sum of the model's outputs with the weights `Heads.reward_weights`."""
        return isinstance(self._aggregate, Mean) and not self.member_transforms

    @property
    def identity(self) -> list[Any]:
        """Its settings, the weights and the rendering, and the digest of its manifest."""
        manifest = None if self.manifest is None else self.manifest.digest
        return [self._settings_with_effect(*WHERE_A_MODEL_IS), model_facts(self.renderer, self.model), manifest]

    def verify(self) -> list[str]:
        """Compare the manifest with the model, as `TrainedReward.verify` does."""
        return self.trained.verify()

    @property
    def part_names(self) -> tuple[str, ...]:
        """The numbers of its members, or the names of its heads if there are several."""
        heads = self.trained.heads
        if heads.members > 1:
            return tuple(map(str, range(heads.members)))
        return heads.names if len(heads) > 1 else ()

    def score_batch(self, samples: Sequence[Sample]) -> Scores:
        """Score each distinct row once, in micro-batches within the token budget; shared prefixes are computed once where it pays."""
        outputs = self.trained.outputs(samples)
        self.counts.update({name: outputs.metadata[name] for name in ("truncated", "cached", "duplicates")})
        if other_format := outputs.metadata.get("other_format"):
            self.counts["other_format"] += other_format
        scores = self._of_members(samples, outputs) if self.trained.heads.members > 1 else self._of_heads(outputs)
        return replace(scores, errors=outputs.errors, tokens=outputs.tokens)

    def _of_heads(self, outputs: ModelOutputs) -> Scores:
        heads = self.trained.heads
        columns = zip(heads.names, outputs.values.T, strict=True) if len(heads) > 1 else ()
        parts = {name: Scores(column, kind="head") for name, column in columns}
        return Scores(outputs.values @ np.array(heads.weights), metadata=outputs.metadata, parts=parts)

    def _of_members(self, samples: Sequence[Sample], outputs: ModelOutputs) -> Scores:
        """The combined rewards of the members; their rewards before a transform are the members' details ``raw``."""
        rewards = self.trained.heads.rewards_of_members(outputs.values)
        if not self.member_transforms:
            return combined(rewards, samples, self._aggregate, metadata=outputs.metadata)
        members = np.stack([reshape(row, samples) for reshape, row in zip(self.member_transforms, rewards, strict=True)])
        scored = [Scores(row, {"raw": raw}) for row, raw in zip(members, rewards, strict=True)]
        return combined(members, samples, self._aggregate, scored=scored, metadata=outputs.metadata)
