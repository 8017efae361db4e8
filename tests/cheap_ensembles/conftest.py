"""Models whose members are heads, adapters or passes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

import rm_plugins as rm
from rm_plugins.models.golden import golden_scores
from rm_plugins.models.heads import Heads
from rm_plugins.models.manifest import Manifest, ScoreStatistics, file_digests
from rm_plugins.providers.models.lora_ensemble import LoraEnsemble
from rm_plugins.providers.models.sequence_classifier import SequenceClassifier
from rm_plugins.scores import FloatArray

QUESTION = "The sea is salty because rivers carry dissolved minerals into it. Question: what is " * 3


SAMPLES = [
    # Shared prompts, one row of its own, a repetition, and lengths that need padding.
    *(rm.Sample(f"{QUESTION} col", completion) for completion in ("our", "our: blue", "d", "our")),
    *(rm.Sample([{"role": "user", "content": QUESTION}], completion) for completion in ("Two.", "Four, or two.")),
    rm.Sample("a", ""),
]


def written(folder: Path, *, heads: Heads | None = None, mean: float = 0.0, std: float = 1.0) -> Manifest:
    """Write a manifest beside a model as training does; returns it."""
    plain = SequenceClassifier(model=str(folder), head=None if heads is None else {0: 1.0})
    manifest = Manifest(
        created_by={"rm-plugins": rm.__version__},
        rendering=plain.renderer.rendering,
        dtype="float32",
        heads=heads,
        statistics=ScoreStatistics(mean=mean, std=std, min=-9.0, max=9.0, count=10, source="eval"),
        files=file_digests(folder),
        golden=golden_scores(plain.model, plain.renderer, heads or Heads()),
    )
    manifest.write(folder)
    return manifest


def values(spec: Any, samples: Sequence[rm.Sample] = SAMPLES, **settings: Any) -> FloatArray:
    return rm.load(spec, **settings).score(samples).values


def members(scores: rm.Scores, count: int) -> FloatArray:
    """The members' rewards, [K, N]."""
    assert f"member/{count}" not in scores.columns
    return np.stack([scores.columns[f"member/{number}"] for number in range(count)])


def near(actual: Any, expected: Any, tolerance: float = 1e-5) -> None:
    assert np.isfinite(expected).all()
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


def save_adapter(base: Path, folder: Path, seed: int, **settings: Any) -> Path:
    """Save a random adapter of a base model, its head included, with the base's tokenizer; returns its folder."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_pretrained(base, dtype=torch.float32)
        head, targets = ("score", ["q_proj", "v_proj"]) if hasattr(model, "score") else ("classifier", ["query", "value"])
        lora = LoraConfig(r=4, target_modules=targets, **{"modules_to_save": [head], "init_lora_weights": False, **settings})
        model = get_peft_model(model, lora)
        for name, parameter in model.named_parameters():
            if "modules_to_save" in name:
                parameter.data.normal_()
        model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


def lora(adapters: Sequence[str], **settings: Any) -> LoraEnsemble:
    provider = rm.load({"provider": "lora-ensemble", "adapters": list(adapters), **settings})
    assert isinstance(provider, LoraEnsemble)
    return provider


def adapters_of(base: Path, folder: Path, count: int = 3) -> list[str]:
    return [str(save_adapter(base, folder / f"adapter-{number}", number)) for number in range(count)]
