"""What the providers of trained models share: each holds one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from rm_plugins.errors import SpecError
from rm_plugins.models.identity import WHERE_A_MODEL_IS, model_facts
from rm_plugins.models.manifest import Manifest, ScoreStatistics
from rm_plugins.models.trained_reward import TrainedReward
from rm_plugins.provider import Aggregate, Provider, Transform
from rm_plugins.providers.models.model_members import ModelMember, ModelMembers
from rm_plugins.rendering.render import Renderer
from rm_plugins.samples import Sample
from rm_plugins.scores import Scores

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from rm_plugins.engine.engine import ScoringEngine

__all__ = ["ModelProvider"]


class ModelProvider(Provider):
    """A provider that scores with the trained model that it holds.

    Args:
        trained: The model.
        label: What to call it.
        members: The model's members, where messages have a better name for them or statistics of their rewards are known.
        aggregate: How the members' rewards become one; their mean if unset.
        member_transforms: One for each member, before they are aggregated.
        common_scale: Whether the members are known to share a scale.

    Raises:
        SpecError: The aggregate or the transforms do not fit the members, or there is one member only.
    """

    keys_without_effect: ClassVar[frozenset[str]] = frozenset(("cache", "compile", "device", "max_batch_tokens", "verify"))
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
        self._members: ModelMembers | None = None
        if (count := trained.heads.members) > 1:
            self._members = ModelMembers(
                members or [ModelMember(trained, number, label=f"member {number} of {label}") for number in range(count)],
                aggregate=aggregate,
                transforms=member_transforms,
                common_scale=common_scale,
                called=repr(label),
            )
            return
        for key, value in {"aggregate": aggregate, "member_transforms": member_transforms}.items():
            if value is not None:
                raise SpecError(
                    f"{self.source} is used as one member, so that there is nothing to combine. Leave the key out (and the key `head`, "
                    "if the model has several members), train the model with `RewardConfig(members=5)`, or combine several models "
                    "with `provider: ensemble`.",
                    key=key,
                )

    @property
    def models(self) -> Mapping[str, TrainedReward]:
        """The model that it holds."""
        return {"model": self.trained}

    @property
    def model(self) -> PreTrainedModel:
        """The model itself, as transformers has it."""
        return self.trained.model

    @property
    def engine(self) -> ScoringEngine:
        """What runs the model."""
        return self.trained.engine

    @property
    def renderer(self) -> Renderer:
        """How samples become the model's token ids."""
        return self.trained.renderer

    @property
    def manifest(self) -> Manifest | None:
        """What was written beside the model when it was trained."""
        return self.trained.manifest

    @property
    def source(self) -> str:
        """What the model was loaded from."""
        return self.trained.source

    @property
    def dtype(self) -> str:
        """The name of the dtype that the model runs in."""
        return self.trained.dtype

    @property
    def statistics(self) -> ScoreStatistics | None:
        """The statistics of the model's scores in its manifest, if these are the scores that they are of."""
        return self.trained.statistics if self._members is None or self._members.is_plain_mean else None

    @property
    def member_transforms(self) -> Sequence[Transform]:
        """What each member's rewards are reshaped with; empty if nothing."""
        return [] if self._members is None else self._members.transforms

    @property
    def identity(self) -> list[Any]:
        """Its settings, the weights and the rendering, and the digest of its manifest."""
        manifest = None if self.manifest is None else self.manifest.digest
        return [self._settings_with_effect(*WHERE_A_MODEL_IS), model_facts(self.renderer, self.model), manifest]

    def render(self, sample: Sample) -> str:
        """The text of a sample, before truncation."""
        return self.renderer.text(sample)

    def verify(self) -> list[str]:
        """Compare the manifest with the model, as `TrainedReward.verify` does."""
        return self.trained.verify()

    def score_batch(self, samples: Sequence[Sample]) -> Scores:
        """Score each different row once, in micro-batches under the token budget; shared prefixes are computed once where it pays."""
        outputs = self.trained.outputs(samples)
        self.counts.update({name: outputs.metadata[name] for name in ("truncated", "cached", "duplicates")})
        heads, values = self.trained.heads, outputs.values
        if self._members is not None:
            scores = self._members.combined(heads.rewards_of_members(values), samples, outputs.metadata)
        else:
            columns = zip(heads.names, values.T, strict=True) if len(heads) > 1 else ()
            parts = {name: Scores(column, kind="head") for name, column in columns}
            scores = Scores(values @ np.array(heads.weights), metadata=outputs.metadata, parts=parts)
        return replace(scores, errors=outputs.errors, tokens=outputs.tokens)
