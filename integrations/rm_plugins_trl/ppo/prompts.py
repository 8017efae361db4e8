"""The prompts that PPO trains and evaluates on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from datasets import Dataset, IterableDataset

import rm_plugins as rm
from rm_plugins.errors import DataError, UnsupportedError
from rm_plugins_trl.reward_model import decoded_texts, prompt_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_OF_A_ROW = ("input_ids", "tools", "chat_template_kwargs")
"""Columns that say how the prompt of their row becomes token ids."""


@dataclass(frozen=True)
class PromptDatasets:
    """The datasets of a training, as TRL's GRPO trainer takes them."""

    train: Dataset | IterableDataset | None
    evaluation: Any


def prompt_datasets(
    train: Any, evaluation: Any, tokenizer: PreTrainedTokenizerBase, *, has_environment: bool = False
) -> PromptDatasets:
    """The datasets of a training, each with a ``prompt`` in every row.

    Args:
        train: Rows to train on: a dataset, a stream, or a list of mappings; None for none.
        evaluation: Rows of the same kind, or several by name; None or no rows for no evaluation.
        tokenizer: The policy's tokenizer, which decodes the prompts of rows that have only ``input_ids``.
        has_environment: Whether an environment may make the prompts, so that rows need none.

    Raises:
        DataError: A dataset is empty, or its first row has no prompt.
        UnsupportedError: Something is not a dataset.
    """
    trained = None if train is None else _prompts(train, "train_dataset", tokenizer, has_environment)
    if isinstance(evaluation, Mapping):
        named = {
            name: _prompts(rows, f"eval_dataset[{name!r}]", tokenizer, has_environment) for name, rows in evaluation.items()
        }
        return PromptDatasets(trained, named or None)
    is_empty = evaluation is None or (isinstance(evaluation, Sized) and len(evaluation) == 0)
    return PromptDatasets(trained, None if is_empty else _prompts(evaluation, "eval_dataset", tokenizer, has_environment))


def placeholder(rows: int) -> Dataset:
    """Prompts for a trainer that is made without any; TRL's trainer wants some."""
    return Dataset.from_dict({"prompt": [""] * rows})


def not_a_dataset(rows: Any, name: str, needed: str) -> UnsupportedError:
    """The error for something that does not hold prompts as PPO needs them.

    Args:
        rows: What was given.
        name: The argument.
        needed: What it must be.
    """
    return UnsupportedError(f"{name} must be {needed} of rows with a 'prompt' column, not {type(rows).__name__}.")


def no_rows(name: str) -> DataError:
    """The error for an argument that holds no prompts."""
    return DataError(f"{name} has no rows. PPO needs rows with a 'prompt' column.")


def no_prompts() -> DataError:
    """The error for a training without prompts."""
    return DataError("PPO needs prompts to train on: PPOTrainer(..., train_dataset=DATASET), rows with a 'prompt' column.")


def too_few_prompts(rows: int, prompts: int, factors: str) -> DataError:
    """The error for a dataset that does not fill one rollout.

    Args:
        rows: The number of its rows.
        prompts: The number of prompts of a rollout.
        factors: The arguments whose product that is.
    """
    return DataError(
        f"train_dataset has {rows} rows, fewer than the {prompts} prompts of one rollout ({factors}). PPO drops an incomplete rollout, "
        "so there is nothing to train on. Give more rows, or make the rollout smaller."
    )


def _prompts(rows: Any, name: str, tokenizer: PreTrainedTokenizerBase, has_environment: bool) -> Dataset | IterableDataset:
    if isinstance(rows, Sequence) and not isinstance(rows, str):
        rows = Dataset.from_list([dict(row) for row in rows])
    if not isinstance(rows, (Dataset, IterableDataset)):
        raise not_a_dataset(rows, name, "a dataset")
    if isinstance(rows, IterableDataset) or rows.format["type"] != "custom":
        rows = rows.with_format(None)  # the reward gets Python's values
    first = next(iter(rows), None)
    if first is None:
        raise no_rows(name)
    if has_environment:
        return rows
    if not {"prompt", "input_ids"} & first.keys() and (close := get_close_matches("prompt", list(first))):
        raise DataError(
            f"{name} has no column 'prompt'. Did you mean {close[0]!r}? Then rename it: DATASET.rename_column({close[0]!r}, 'prompt')."
        )
    if first.get("prompt") is None and first.get("input_ids") is not None:
        rows = rows.map(
            lambda batch: {"prompt": decoded_texts([list(map(int, ids)) for ids in batch["input_ids"]], tokenizer)},
            batched=True,
        )
        first = next(iter(rows))
    prompt_ids(first, tokenizer, f"Row 0 (counted from 0) of {name}")  # an error in every row shows before training
    return rows


def given_prompt_ids(
    rows: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, dataset: str
) -> list[list[int]] | None:
    """The token ids of the rows' prompts, where a row says how they are made; None where the trainer makes them as of any prompt.

    A row may have ``input_ids``, or ``tools`` and ``chat_template_kwargs`` for the chat template.

    Raises:
        DataError: A row has no prompt, or an empty one; or some prompts are text and others are messages.
    """
    if len({isinstance(row["prompt"], str) for row in rows if row.get("prompt") is not None}) > 1:
        raise DataError(
            f"Some prompts of {dataset} are text and others are messages, and a rollout has prompts of one kind. Write a text as messages: "
            '[{"role": "user", "content": TEXT}].'
        )
    if not any(row.get(name) for row in rows for name in _OF_A_ROW) and all(row.get("prompt") for row in rows):
        return None
    return [prompt_ids(row, tokenizer, f"A row of {dataset}") for row in rows]


def prompt_ids(row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, where: str) -> list[int]:
    """The policy's token ids of a row's prompt.

    Args:
        row: Columns by name: ``input_ids``, or ``prompt`` and perhaps ``tools`` and ``chat_template_kwargs``.
        tokenizer: The policy's tokenizer.
        where: What an error message calls the row.

    Raises:
        DataError: The row has no prompt, the chat template refuses it, or it has no token.
    """
    ids = given_ids(row) or tokenized_prompt(prompt_of(row, where), tokenizer, where)
    if not ids:
        raise DataError(f"{where} has a prompt of 0 tokens, which a policy cannot continue.")
    return ids


def given_ids(row: Mapping[str, Any]) -> list[int]:
    """The token ids that a row has; none if it has no ``input_ids``."""
    return [] if row.get("input_ids") is None else list(map(int, row["input_ids"]))


def tokenized_prompt(prompt: rm.Sample, tokenizer: PreTrainedTokenizerBase, where: str) -> list[int]:
    """The token ids of a prompt: of its text, or of what the chat template makes of its messages.

    Raises:
        DataError: The chat template refuses it.
    """
    if isinstance(prompt.prompt, str):
        return list(tokenizer(prompt.prompt)["input_ids"])
    tools = prompt.columns.get("tools")
    try:
        text = tokenizer.apply_chat_template(
            [dict(message) for message in prompt.prompt],
            tools=json.loads(tools) if isinstance(tools, str) else tools or None,
            tokenize=False,
            add_generation_prompt=True,
            **(prompt.columns.get("chat_template_kwargs") or {}),
        )
    except Exception as error:  # a template is a program and raises whatever its author wrote
        raise DataError(f"{where}: the policy's chat template refused the prompt: {error}") from error
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def refuse_unreadable(prompts: Sequence[Sequence[int]], longest_row: int | None, completion_tokens: int, where: str) -> None:
    """Refuse a prompt without a token, and one that leaves the policy no room for its completion.

    Args:
        prompts: Token ids per prompt.
        longest_row: The number of positions that the policy has; None for no limit.
        completion_tokens: The most tokens of a completion.
        where: What an error message calls a row.

    Raises:
        DataError: A prompt has no token, or it and its completion may be longer than the policy's positions.
    """
    if not all(prompts):
        raise DataError(f"{where} has a prompt of 0 tokens, which a policy cannot continue.")
    longest = max(map(len, prompts), default=0)
    if longest_row is not None and longest + completion_tokens > longest_row:
        raise DataError(
            f"A prompt of {longest} tokens and a completion of up to {completion_tokens} (response_length) are longer than the "
            f"{longest_row} positions of the policy. Shorten or drop long prompts, or lower response_length."
        )
