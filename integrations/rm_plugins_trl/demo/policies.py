"""Policies: creating a tiny one, loading another, and sampling from it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    BatchEncoding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    set_seed,
)

from rm_plugins.models.model_folder import load_tokenizer
from rm_plugins_trl.demo.world import Row
from rm_plugins_trl.language_models import load_language_model

PAD, EOS = "<pad>", "<eos>"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | capitalize }}:\n{{ message['content'] }}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:\n{% endif %}"
)
NO_SETTING = "a setting that the demonstration lacks"
LARGEST_VOCABULARY = 2_048
POSITIONS = 1_024
HIDDEN_SIZE = 64
# With transformers' default of 0.02, attention in such a narrow model takes too long to learn to copy from the prompt.
INITIAL_SPREAD = 0.08


def make_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerBase:
    """A byte-level BPE tokenizer trained on the texts, with padding and EOS tokens and a plain chat template; it can encode any text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=LARGEST_VOCABULARY,
        special_tokens=[PAD, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        chat_template=CHAT_TEMPLATE,
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=POSITIONS,
    )


def make_language_model(tokenizer: PreTrainedTokenizerBase, seed: int) -> Qwen2ForCausalLM:
    """A decoder of two layers with random weights."""
    set_seed(seed)
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=HIDDEN_SIZE,
            intermediate_size=3 * HIDDEN_SIZE,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=POSITIONS,
            initializer_range=INITIAL_SPREAD,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
        )
    )


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread: for models this small, several threads are slower, by minutes on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def load_policy(source: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A language model and its tokenizer, from a folder or a model id."""
    tokenizer = load_tokenizer([source], f"the policy {source!r}", code_setting=NO_SETTING)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return load_language_model(source, code_setting=NO_SETTING), tokenizer


def sampled_completions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Row],
    completion_tokens: int,
    seed: int,
    batch_size: int = 64,
) -> list[str]:
    """One completion for each prompt, sampled as GRPO does: at temperature 1 from the whole distribution."""
    set_seed(seed)
    return [
        completion
        for start in range(0, len(prompts), batch_size)
        for completion in tokenizer.batch_decode(
            sampled_ids(model, tokenizer, prompts[start : start + batch_size], completion_tokens)[1], skip_special_tokens=True
        )
    ]


def sampled_ids(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Row], completion_tokens: int
) -> tuple[BatchEncoding, torch.Tensor]:
    """The prompts' encoding, padded on the left, and the ids of one completion for each, padded on the right: one batch."""
    model.eval()
    batch = [row["prompt"] for row in prompts]
    conversational = not isinstance(batch[0], str)
    texts = tokenizer.apply_chat_template(batch, add_generation_prompt=True, tokenize=False) if conversational else batch
    inputs = tokenizer(texts, add_special_tokens=not conversational, padding=True, padding_side="left", return_tensors="pt").to(
        model.device
    )
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
    return inputs, outputs[:, inputs["input_ids"].shape[1] :]
