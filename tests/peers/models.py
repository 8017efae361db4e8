"""The two models that all peers serve or ask for: a decoder whose padding is its EOS, and a cross-encoder.

Their heads are set so that the scores of the samples lie around 0 with a spread of 2: apart, and not lost in a sigmoid.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Qwen2Config, Qwen2ForSequenceClassification

from tests.conftest import make_tokenizer
from tests.peers import samples

_SPREAD = 2.0


def make_decoder(folder: Path) -> Path:
    """A random Qwen2 classifier with a chat template and ``pad == eos``; its heads are as wide as vLLM's kernels want."""
    tokenizer = make_tokenizer(pad="<|end|>")
    tokenizer.model_max_length = 2048
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=2048,
        initializer_range=0.2,  # wide, so that one different token shows in the score
        num_labels=1,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    torch.manual_seed(0)
    model = Qwen2ForSequenceClassification(config).eval()
    rows = [tokenizer(f"{sample.prompt}{sample.completion}")["input_ids"] for sample in samples.texts()]
    _spread(model, model.score, [{"input_ids": torch.tensor([row])} for row in rows])
    return _saved(model, tokenizer, folder)


def make_cross_encoder(minilm: Path, folder: Path) -> Path:
    """MiniLM with a head for pairs, in the form in which sentence-transformers saves its cross-encoders."""
    tokenizer = AutoTokenizer.from_pretrained(minilm)
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(minilm, num_labels=1, dtype=torch.float32).eval()
    pairs = [tokenizer(s.prompt, s.completion, return_tensors="pt", truncation=True, max_length=512) for s in samples.texts()]
    _spread(model, model.classifier, pairs)
    model.config.sentence_transformers = {"activation_fn": "torch.nn.modules.activation.Sigmoid", "version": "5.0.0"}
    return _saved(model, tokenizer, folder)


@torch.no_grad()
def _spread(model: Any, head: torch.nn.Linear, rows: Sequence[Any]) -> None:
    if head.bias is None:  # of a decoder: nothing can be shifted, and its scores lie around 0 already
        values = torch.cat([model(**row).logits[:, 0] for row in rows])
        head.weight.mul_(_SPREAD / values.std())
        return
    head.weight.normal_()
    values = torch.cat([model(**row).logits[:, 0] for row in rows])
    scale = _SPREAD / values.std()
    head.weight.mul_(scale)
    head.bias.copy_((head.bias - values.mean()) * scale)


def _saved(model: Any, tokenizer: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
