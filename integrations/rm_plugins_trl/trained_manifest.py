"""The manifest of a model that was just trained."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import rm_plugins
from rm_plugins.errors import DataError
from rm_plugins.scoring import GoldenScore, Manifest, Renderer, ScoreStatistics
from rm_plugins.scoring.engine import ScoringEngine
from rm_plugins.scoring.heads import Heads
from rm_plugins.scoring.manifest import GOLDEN_SAMPLES, file_digests, token_digest
from rm_plugins.wire import sample_to_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["score_statistics", "write_trained_manifest"]

logger = logging.getLogger(__name__)

_GOLDEN_BATCH_TOKENS = 2_048


def score_statistics(rewards: Sequence[float], source: str) -> ScoreStatistics | None:
    """The statistics of rewards seen on `source`; None where there are none."""
    if not rewards:
        return None
    return ScoreStatistics(
        mean=statistics.fmean(rewards),
        std=statistics.pstdev(rewards),
        min=min(rewards),
        max=max(rewards),
        count=len(rewards),
        source=source,
    )


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
        golden=[] if model is None else _golden_scores(model, renderer, heads),
    )
    if model is None:
        logger.warning("The model's weights are sharded, so the manifest in %s has no golden scores to verify it by.", folder)
    return manifest.write(folder)


def _golden_scores(model: PreTrainedModel, renderer: Renderer, heads: Heads) -> list[GoldenScore]:
    samples = []
    for sample in GOLDEN_SAMPLES:
        try:
            renderer.text(sample)
        except DataError:
            continue  # a chat template may refuse some conversations, such as those without a system message
        samples.append(sample)
    ids, _ = renderer.token_ids(samples)
    training = model.training
    model.eval()
    try:
        with torch.autocast(model.device.type, enabled=False):
            outputs, _ = ScoringEngine(model, _GOLDEN_BATCH_TOKENS, share_prefixes=False).outputs(ids)
    finally:
        model.train(training)
    return [
        GoldenScore(sample=sample_to_json(sample), token_ids=token_digest(row_ids), score=float(score))
        for sample, row_ids, score in zip(samples, ids, outputs @ np.array(heads.reward_weights), strict=True)
    ]
