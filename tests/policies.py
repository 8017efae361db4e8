"""A policy of a moment: a random causal language model of one layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers.processors import TemplateProcessing
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel, Qwen2Config, Qwen2ForCausalLM

from tests.conftest import make_tokenizer


def make_policy(
    folder: Path,
    *,
    generation: dict[str, Any] | None = None,
    positions: int = 256,
    absolute: bool = False,
    appends_eos: bool = False,
    **tokenizer: Any,
) -> str:
    """Save a policy; returns its folder.

    Args:
        folder: Where to.
        generation: Its own settings for sampling.
        positions: How many tokens it can look at.
        absolute: Whether each position has an embedding of its own (GPT-2), rather than a rotation (Qwen2).
        appends_eos: Whether the tokenizer ends every text with ``<|end|>``.
        tokenizer: Arguments of `make_tokenizer`.
    """
    made = make_tokenizer(**tokenizer)
    if appends_eos:
        ending = TemplateProcessing(single="$A <|end|>", special_tokens=[("<|end|>", made.eos_token_id)])
        made.backend_tokenizer.post_processor = ending
    shared = {
        "vocab_size": len(made),
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": positions,
        "initializer_range": 0.3,  # wide, so that some tokens are much likelier than others
        "pad_token_id": made.pad_token_id,
        "eos_token_id": made.eos_token_id,
        "bos_token_id": made.bos_token_id,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: Any = (
            GPT2LMHeadModel(GPT2Config(**shared))
            if absolute
            else Qwen2ForCausalLM(Qwen2Config(**shared, intermediate_size=64, num_key_value_heads=1))
        )
    model.generation_config = GenerationConfig(eos_token_id=made.eos_token_id, **(generation or {}))
    model.save_pretrained(folder)
    made.save_pretrained(folder)
    return str(folder)
