"""The texts that are scored: real ones, read where they lie beside the project."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import rm_plugins as rm
from rm_plugins.data.rows import preference_samples, row_samples


class Texts:
    """What the benchmark scores, cut from two data files.

    Args:
        folder: Where ``llmbar.jsonl.gz`` and ``gsm8k_solutions_labelled.jsonl.gz`` are.
    """

    def __init__(self, folder: Path) -> None:
        self._llmbar = [sample for row in data_rows(folder, "llmbar") for sample in preference_samples(row)]
        self._gsm8k = [row_samples(row).samples for row in data_rows(folder, "gsm8k_solutions_labelled")]

    def corpus(self) -> list[str]:
        """Every text, for a tokenizer to be trained on."""
        return [_text(sample) for sample in [*self._llmbar, *(sample for group in self._gsm8k for sample in group)]]

    def answers(self, renderer: Any, number: int, most_tokens: int) -> list[rm.Sample]:
        """LLMBar's first answers of at most `most_tokens` tokens, [number]: longer ones are cut at different ends by others."""
        ids = renderer.untruncated_ids(self._llmbar)
        return [sample for sample, row in zip(self._llmbar, ids, strict=True) if len(row) <= most_tokens][:number]

    def solutions(self, prompts: int) -> list[rm.Sample]:
        """The four solutions of each of gsm8k's first prompts, [prompts * 4]."""
        return [sample for group in self._gsm8k[:prompts] for sample in group]

    def prompts(self, tokenizer: Any, number: int, tokens: int) -> list[str]:
        """LLMBar's text in stretches of about `tokens` tokens, [number]."""
        ids = token_stream(tokenizer, [_text(sample) for sample in self._llmbar], number * tokens)
        return [tokenizer.decode(ids[start : start + tokens]) for start in range(0, number * tokens, tokens)]

    def groups(self, tokenizer: Any, prompts: int, prompt_tokens: int, lengths: Sequence[int]) -> list[rm.Sample]:
        """Long prompts, each with completions of gsm8k's text of `lengths` tokens, [prompts * len(lengths)]."""
        ids = token_stream(tokenizer, [_text(sample) for group in self._gsm8k for sample in group], prompts * sum(lengths))
        samples, start = [], 0
        for prompt in self.prompts(tokenizer, prompts, prompt_tokens):
            for length in lengths:
                # A line of its own keeps the completion's first letters from merging with the prompt's last token.
                samples.append(rm.Sample(prompt, "\n" + tokenizer.decode(ids[start : start + length - 1])))
                start += length - 1
        return samples


def random_rows(prompts: int, completions: int, vocabulary: int) -> list[list[int]]:
    """Token ids of prompts of 180 to 220 tokens with completions of 60 to 140, [prompts * completions] lists."""
    choose = random.Random(0)
    ids = list(range(vocabulary))  # one object a token id, as a list of each row's own would take gigabytes
    rows = []
    for _ in range(prompts):
        prompt = choose.choices(ids, k=choose.randint(180, 220))
        rows += [prompt + choose.choices(ids, k=choose.randint(60, 140)) for _ in range(completions)]
    return rows


def spread(shortest: int, longest: int, number: int) -> list[int]:
    """Whole numbers at equal distances, [number]."""
    return [round(length) for length in np.linspace(shortest, longest, number)]


def data_rows(folder: Path, name: str) -> list[dict[str, Any]]:
    """The rows of a data file."""
    path = folder / f"{name}.jsonl.gz"
    if not path.is_file():
        raise SystemExit(f"There is no {path}: the benchmark scores real text. Say with --data where it is.")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _text(sample: rm.Sample) -> str:
    return "\n".join(str(message["content"]) for message in sample.messages)


def token_stream(tokenizer: Any, texts: Sequence[str], tokens: int) -> list[int]:
    """The first token ids of the texts, one after the other, [tokens]; fewer where the texts end."""
    ids: list[int] = []
    for text in texts:
        if len(ids) >= tokens:
            break
        ids += tokenizer(text + "\n\n", add_special_tokens=False, verbose=False)["input_ids"]
    return ids[:tokens]
