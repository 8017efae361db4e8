"""The manifest of a model that was just trained."""

from __future__ import annotations

import logging
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rm_plugins
from rm_plugins.models.golden import golden_scores
from rm_plugins.models.heads import Heads
from rm_plugins.models.manifest import Manifest, ScoreStatistics, file_digests
from rm_plugins.rendering.render import Renderer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["write_trained_manifest"]

logger = logging.getLogger(__name__)


def write_trained_manifest(
    folder: Path,
    model: PreTrainedModel | None,
    renderer: Renderer,
    *,
    heads: Heads,
    statistics: ScoreStatistics | None,
    training: dict[str, Any],
) -> Path:
    """Write the manifest of the model that was just saved into `folder`.

    Args:
        folder: Where the model's files are.
        model: The model in memory, whose golden scores are recorded; None where it cannot score by itself.
        renderer: What rendered the training data.
        heads: What the model's outputs are.
        statistics: The statistics of the model's scores.
        training: What the model was trained on and how.
    """
    packages = ("torch", "transformers", "trl", "datasets")
    manifest = Manifest(
        created_by={"rm-plugins": rm_plugins.__version__, **{name: version(name) for name in packages}},
        rendering=renderer.rendering,
        dtype="float32" if model is None else str(model.dtype).removeprefix("torch."),
        heads=heads if len(heads) > 1 else None,
        statistics=statistics,
        training=training,
        files=file_digests(folder),
        golden=[] if model is None else golden_scores(model, renderer, heads),
    )
    if model is None:
        logger.warning("The model's weights are sharded, so the manifest in %s has no golden scores to verify it by.", folder)
    return manifest.write(folder)
