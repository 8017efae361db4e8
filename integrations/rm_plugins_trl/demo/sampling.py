"""Policies: loading one, and what it writes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, set_seed

from rm_plugins_trl.demo.world import Row

__all__ = ["load_policy", "sampled_completions"]


def load_policy(source: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A language model and its tokenizer, from a folder or a model id."""
    tokenizer = AutoTokenizer.from_pretrained(source)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32), tokenizer


def sampled_completions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Row],
    completion_tokens: int,
    seed: int,
    batch_size: int = 64,
) -> list[str]:
    """One completion for each prompt, drawn as GRPO draws them: at temperature 1 from the whole distribution."""
    set_seed(seed)
    model.eval()
    completions: list[str] = []
    for start in range(0, len(prompts), batch_size):
        batch = [row["prompt"] for row in prompts[start : start + batch_size]]
        conversational = not isinstance(batch[0], str)
        texts = tokenizer.apply_chat_template(batch, add_generation_prompt=True, tokenize=False) if conversational else batch
        inputs = tokenizer(
            texts, add_special_tokens=not conversational, padding=True, padding_side="left", return_tensors="pt"
        ).to(model.device)
        with torch.inference_mode():
            outputs = model.generate(
                **inputs,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                max_new_tokens=completion_tokens,
                pad_token_id=tokenizer.pad_token_id,
            )
        completions += tokenizer.batch_decode(outputs[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return completions
