"""A small world with a rule that a judge can learn: of two answers, the one with the word "blue" is better."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM, set_seed

TEMPLATE = "A : {{ first }} B : {{ second }}"
WORDS = (
    "the",
    "a",
    "red",
    "green",
    "grey",
    "moon",
    "sea",
    "road",
    "tree",
    "stone",
    "house",
    "river",
    "old",
    "new",
    "far",
    "near",
    "quick",
    "slow",
)
BETTER = "blue"
CHAT = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}=> {{ message['content'] }}<|end|>"
    "{% else %}{{ message['content'] }} {% endif %}{% endfor %}{% if add_generation_prompt %}=>{% endif %}"
)


def preferences(count: int, seed: int = 0) -> Iterator[dict[str, str]]:
    """Pairs of answers of four words, each to a prompt of its own."""
    chance = random.Random(seed)
    for number in range(count):
        rejected = chance.choices(WORDS, k=4)
        chosen = chance.choices(WORDS, k=4)
        chosen[chance.randrange(4)] = BETTER
        yield {"prompt": f"Question {number}", "chosen": " ".join(chosen), "rejected": " ".join(rejected)}


def make_judge(folder: Path, seed: int = 0) -> Path:
    """Save a random language model of two layers, whose tokens are the words of this world; returns its folder."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator([f"A : {' '.join([*WORDS, BETTER])} B : => [[A]] => [[B]]"] * 2, trainer)
    tokenizer: Any = PreTrainedTokenizerFast(
        tokenizer_object=made, chat_template=CHAT, pad_token="<|pad|>", eos_token="<|end|>"
    )
    set_seed(seed)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
