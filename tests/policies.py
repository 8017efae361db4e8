"""A policy of a moment: a random causal language model of one layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

from tests.conftest import make_tokenizer


def make_policy(folder: Path, *, generation: dict[str, Any] | None = None, positions: int = 256, **tokenizer: Any) -> str:
    """Save a policy; returns its folder.

    Args:
        folder: Where to.
        generation: Its own settings for sampling.
        positions: How many tokens it can look at.
        tokenizer: Arguments of `make_tokenizer`.
    """
    made = make_tokenizer(**tokenizer)
    config = Qwen2Config(
        vocab_size=len(made),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=positions,
        initializer_range=0.3,  # wide, so that some tokens are much likelier than others
        pad_token_id=made.pad_token_id,
        eos_token_id=made.eos_token_id,
        bos_token_id=made.bos_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Qwen2ForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=made.eos_token_id, **(generation or {}))
    model.save_pretrained(folder)
    made.save_pretrained(folder)
    return str(folder)
