"""Rewards from a sequence classifier that is already in memory, such as one that is being trained."""

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


class ModelInMemory(ModelProvider):
    """A sequence classifier in memory; it gives the scores that the model has after it is saved and loaded.

    The model is not copied, and after each batch it is in its earlier state: its mode, and the wrappers of mixed precision. It has no
    spec, so it can only be made in Python.

    Args:
        model: The model, without wrappers such as DDP.
        renderer: How samples become its token ids.
        heads: What its outputs are, and how the reward is computed from them.
        label: Its name.
        max_batch_tokens: Padded tokens per micro-batch; by default what suits the model's device.
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
