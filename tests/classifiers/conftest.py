"""Classifiers, and what transformers itself makes of the same samples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

import rm_plugins as rm
from rm_plugins.providers.models.sequence_classifier import SequenceClassifier

SAMPLES = [
    rm.Sample("Q: 2+2?\nA:", " four"),
    rm.Sample("The sea is salty because rivers carry dissolved minerals into it. " * 3, "Yes, and that is all there is to it."),
    rm.Sample("a", ""),
    rm.Sample("", ""),
    rm.Sample("", "ends in EOS<|end|>"),
    rm.Sample([{"role": "user", "content": "Name a colour."}], "Blue."),
    rm.Sample([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Count."}], "naïve 東京 🙂"),
    rm.Sample([{"role": "user", "content": "Say nothing."}], ""),
]


def texts_alone(model: Any, tokenizer: Any, texts: Sequence[str], special: bool = True) -> Any:
    """What transformers itself gives for each text by itself, float64 [N, num_labels]."""
    with torch.no_grad():
        rows = [model(**tokenizer(text, return_tensors="pt", add_special_tokens=special)).logits[0] for text in texts]
    return torch.stack(rows).double().numpy()


def reference(folder: Path, samples: Sequence[rm.Sample]) -> Any:
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = []
    for sample in samples:
        if sample.is_conversational and tokenizer.chat_template:
            text = tokenizer.apply_chat_template(sample.messages, tokenize=False)
            rows.append(texts_alone(model, tokenizer, [text], special=False))
            continue
        if sample.is_conversational:
            text = "\n\n".join(f"{message['role'].capitalize()}: {message['content']}" for message in sample.messages)
        else:
            text = f"{sample.prompt}{sample.completion}"
        eos = tokenizer.eos_token or ""
        rows.append(texts_alone(model, tokenizer, [text if text.endswith(eos) else text + eos]))
    return np.concatenate(rows)


def classifier(provider: rm.Provider) -> SequenceClassifier:
    assert isinstance(provider, SequenceClassifier)
    return provider


def close(scores: Any, expected: Any) -> None:
    assert np.isfinite(expected).all()
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-4)
