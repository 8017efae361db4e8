"""What a training of a reward leaves beside the model: its manifest, and in checkpoints what its losses remember."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rm_plugins
from rm_plugins.files import write_atomically
from rm_plugins.models.golden import golden_scores
from rm_plugins.models.heads import Heads
from rm_plugins.models.manifest import Manifest, ScoreStatistics, file_digests
from rm_plugins.rendering.render import Renderer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from rm_plugins.losses import Loss

__all__ = ["load_loss_states", "save_loss_states", "write_trained_manifest"]

logger = logging.getLogger(__name__)

_LOSS_STATE = "loss_state.json"


def write_trained_manifest(
    folder: Path,
    model: PreTrainedModel | None,
    renderer: Renderer,
    *,
    heads: Heads,
    statistics: ScoreStatistics | None,
    training: dict[str, Any],
) -> None:
    """Write the manifest of the model that was just saved into `folder`, if one was: of sharded weights, none may be.

    Args:
        folder: Where the model's files are.
        model: The model in memory, whose golden scores are recorded; None where it cannot score by itself.
        renderer: What rendered the training data.
        heads: What the model's outputs are.
        statistics: The statistics of the model's scores.
        training: What the model was trained on and how.
    """
    files = file_digests(folder)
    if not files:
        return
    packages = ("torch", "transformers", "trl", "datasets")
    if model is None:
        logger.warning("The model's weights are sharded, so the manifest in %s has no golden scores to verify it by.", folder)
    Manifest(
        created_by={"rm-plugins": rm_plugins.__version__, **{name: version(name) for name in packages}},
        rendering=renderer.rendering,
        dtype="float32" if model is None else str(model.dtype).removeprefix("torch."),
        heads=heads if len(heads) > 1 else None,
        statistics=statistics,
        training=training,
        files=files,
        golden=[] if model is None else golden_scores(model, renderer, heads),
    ).write(folder)


def save_loss_states(losses: Sequence[Loss], checkpoint: Path) -> None:
    """Write what losses remember, if they do, into a checkpoint's folder."""
    states = [dict(loss.state()) for loss in losses]
    if any(states):
        write_atomically(checkpoint / _LOSS_STATE, json.dumps(states))


def load_loss_states(losses: Sequence[Loss], checkpoint: Path) -> None:
    """Have losses go on from what `save_loss_states` wrote."""
    path = checkpoint / _LOSS_STATE
    if path.is_file():
        for loss, state in zip(losses, json.loads(path.read_text(encoding="utf-8")), strict=True):
            loss.load_state(state)
