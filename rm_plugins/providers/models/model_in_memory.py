"""Rewards from a sequence classifier that is in memory already, such as one that is being trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from rm_plugins.models.as_loaded import as_loaded
from rm_plugins.models.heads import Heads
from rm_plugins.models.settings import ModelSettings
from rm_plugins.models.trained_reward import TrainedReward
from rm_plugins.providers.models.model_provider import ModelProvider
from rm_plugins.rendering.render import Renderer
from rm_plugins.samples import Sample
from rm_plugins.scores import Scores

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["ModelInMemory"]


class ModelInMemory(ModelProvider):
    """A sequence classifier that was not loaded for scoring, with the scores that it has once it is saved and loaded.

    The model is not copied, and between batches it is as it was: its mode, and what mixed precision has put around it. It has no spec, so
    that it is made in Python alone.

    Args:
        model: The model, without wrappers such as DDP around it.
        renderer: How samples become its token ids.
        heads: What its outputs are, and how the reward is made of them.
        label: What to call it.
        max_batch_tokens: Padded tokens of a micro-batch; what suits the model's device if unset.
    """

    name: ClassVar[str] = "model-in-memory"

    def __init__(
        self,
        model: PreTrainedModel,
        renderer: Renderer,
        heads: Heads,
        *,
        label: str = name,
        max_batch_tokens: int | None = None,
    ) -> None:
        settings = ModelSettings(max_batch_tokens=max_batch_tokens)
        trained = TrainedReward(model, renderer, heads, source=label, settings=settings)
        super().__init__(trained, label=Path(label).name or self.name)

    def score_batch(self, samples: Sequence[Sample]) -> Scores:
        """Score each different row once, with the model as it is now."""
        with as_loaded(self.model):
            return super().score_batch(samples)
