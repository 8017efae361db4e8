"""Golden samples: their scores are recorded with a model, so that changes of the model can be detected."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np

from rm_plugins.engine.engine import ScoringEngine
from rm_plugins.engine.readout import LastToken
from rm_plugins.errors import DataError, ModelError, ScoringError
from rm_plugins.models.as_loaded import as_loaded
from rm_plugins.models.manifest import GoldenScore, token_digest
from rm_plugins.samples import Sample
from rm_plugins.wire import sample_to_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from rm_plugins.models.heads import Heads
    from rm_plugins.rendering.render import Renderer

_BATCH_TOKENS = 2_048

GOLDEN_SAMPLES = (
    Sample("Name a colour.", " Blue."),
    Sample("Q: What is 2 + 2?\nA:", " 4"),
    Sample("Q: What is 2 + 2?\nA:", " Fish swim — naïve 東京 🙂"),
    Sample("Say nothing.", ""),
    Sample([{"role": "user", "content": "Name a colour."}], "Blue."),
    Sample([{"role": "user", "content": "Write one sentence about rain."}], "Rain falls softly on the roof.\n"),
    Sample(
        [
            {"role": "user", "content": "Is the sea salty?"},
            {"role": "assistant", "content": "Yes."},
            {"role": "user", "content": "Why?"},
        ],
        "Rivers carry dissolved minerals into it, and water leaves by evaporation while the salt stays.",
    ),
    Sample([{"role": "user", "content": "Count. " * 400}], "One, two, three."),
)
"""Made-up samples of every form, with whose recorded scores a model is verified."""


def golden_rows(renderer: Renderer) -> tuple[list[Sample], list[list[int]]]:
    """The golden samples that a renderer accepts, and their token ids, [N] lists.

    A chat template may refuse some conversations, such as those without a system message, and ``truncation: error`` refuses long ones.
    """
    rows = {}
    for place, sample in enumerate(GOLDEN_SAMPLES):
        with suppress(DataError, ModelError, ScoringError):
            renderer.text(sample)
            [rows[place]], _ = renderer.token_ids([sample])
    return [GOLDEN_SAMPLES[place] for place in rows], [*rows.values()]


def golden_scores(model: PreTrainedModel, renderer: Renderer, heads: Heads) -> list[GoldenScore]:
    """The golden samples with the scores that a model in memory gives them.

    Args:
        model: The model; its mode is restored.
        renderer: The model's renderer.
        heads: The meaning of its outputs.
    """
    samples, ids = golden_rows(renderer)
    with as_loaded(model):
        readout = LastToken.of(model, renderer.rendering.read)
        outputs, _ = ScoringEngine(model, _BATCH_TOKENS, share_prefixes=False, readout=readout).outputs(ids)
    return [
        GoldenScore(sample=sample_to_json(sample), token_ids=token_digest(row_ids), score=float(score))
        for sample, row_ids, score in zip(samples, ids, outputs @ np.array(heads.reward_weights), strict=True)
    ]
