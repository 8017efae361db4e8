"""An ensemble of LoRA adapters of one base model, which is loaded once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from rm_plugins.component import Aggregate, ModelSource, Transform
from rm_plugins.constructor_schema import takes_settings
from rm_plugins.errors import SpecError
from rm_plugins.models.settings import ModelSettings
from rm_plugins.models.trained_reward import TrainedReward
from rm_plugins.providers.models.model_provider import ModelMember, ModelProvider


class LoraEnsemble(ModelProvider):
    """An ensemble whose members are LoRA adapters of one base model; it takes the memory of one model.

    A batch is rendered once and scored by one adapter after the other. The other keys are those of a `SequenceClassifier`.

    Args:
        adapters: Folders or hub ids, two or more, trained on the same base model with the same rendering and labels.
        aggregate: How the members' rewards are combined; their mean if unset.
        member_transforms: One per adapter, applied before aggregating; ``zscore`` uses the statistics in the adapter's own manifest.
        common_scale: Whether the members are known to share a scale; if not, aggregates that need one warn.

    Raises:
        SpecError: There are fewer than two adapters, or one differs from the first in its base model, rendering or labels.
        ModelError: The base model or an adapter cannot be loaded.
        ManifestError: An adapter's manifest does not match it.
    """

    name: ClassVar[str] = "lora-ensemble"

    @takes_settings(ModelSettings, without=["revision"])
    def __init__(
        self,
        *,
        adapters: Sequence[ModelSource],
        aggregate: Aggregate | None = None,
        member_transforms: Sequence[Transform] | None = None,
        common_scale: bool = False,
        **settings: Any,
    ) -> None:
        if len(adapters) < 2:
            raise SpecError("there must be two or more; use a `sequence-classifier` for a single one.", key="adapters")
        from rm_plugins.models.adapter_rewards import load_adapter_rewards

        self.adapters = list(adapters)
        trained = load_adapter_rewards(self.adapters, ModelSettings(**settings), self.name)
        statistics = [trained.settings.statistics_in(origin.manifest) for origin in trained.origins]
        super().__init__(
            trained,
            label=self.name,
            members=[
                ModelMember(trained, number, label=adapter, statistics=known)
                for number, (adapter, known) in enumerate(zip(self.adapters, statistics, strict=True))
            ],
            aggregate=aggregate,
            member_transforms=member_transforms,
            common_scale=common_scale,
        )

    @property
    def models(self) -> Mapping[str, TrainedReward]:
        """The model of all adapters."""
        return {"adapters": self.trained}
