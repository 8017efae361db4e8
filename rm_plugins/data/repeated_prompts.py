"""Rows whose completions begin with their prompt, which would be rendered twice."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rm_plugins.samples import Message, message_text

_COMPLETIONS = ("chosen", "rejected", "completion")
_SUSPICIOUS = 0.5
"""The share of rows from which on texts that begin with their prompt are no coincidence."""


@dataclass(frozen=True, slots=True)
class RepeatedPrompts:
    """How many rows repeat their prompt.

    Args:
        rows: The rows that have a prompt, N.
        texts: The rows all of whose completions are texts that begin with their prompt, as a text may by coincidence.
        conversations: The rows all of whose completions are conversations that begin with the prompt's turns, as no answer does.
        first: The number of the first row that repeats its prompt, from 0; None for none.
    """

    rows: int
    texts: int
    conversations: int
    first: int | None

    @property
    def is_suspicious(self) -> bool:
        """Whether the data repeats its prompts: a conversation does, or at least half of the rows do."""
        return self.conversations > 0 or 0 < _SUSPICIOUS * self.rows <= self.texts

    def message(self, name: str, option: str) -> str:
        """What to tell the user.

        Args:
            name: What the data is called.
            option: What splits the rows, such as ``--split-prompt``.
        """
        return (
            f"{self.texts + self.conversations} of {self.rows} rows of {name} have completions that begin with their prompt (first: row "
            f"{self.first}), so that the prompt is rendered twice. {option} takes it off the completions. Where they only continue with "
            "the same words, leave them as they are."
        )


def repeated_prompts(rows: Iterable[Mapping[str, Any]]) -> RepeatedPrompts:
    """Count the rows that repeat their prompt in every completion: ``chosen`` and ``rejected``, ``completion``, or ``completions``.

    >>> repeated_prompts([{"prompt": "2+2?", "chosen": "2+2? 4", "rejected": "2+2? 5"}]).is_suspicious
    True
    """
    total, texts, conversations, first = 0, 0, 0, None
    for number, row in enumerate(rows):
        if not row.get("prompt"):
            continue
        total += 1
        if split_prompt(row) is row:
            continue
        first = number if first is None else first
        is_text = all(isinstance(completion, str) for completion in _completions(row))
        texts, conversations = texts + is_text, conversations + (not is_text)
    return RepeatedPrompts(total, texts, conversations, first)


def split_prompt(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The row with its prompt taken off the beginning of every completion; the row itself where not all begin with it.

    Where the prompt is text and the completions are conversations, the turns that hold it become the prompt.

    >>> split_prompt({"prompt": "2+2?", "chosen": "2+2? 4", "rejected": "2+2? 5"})
    {'prompt': '2+2?', 'chosen': ' 4', 'rejected': ' 5'}
    """
    prompt, completions = row.get("prompt"), _completions(row)
    if not prompt or not completions:
        return row
    if all(isinstance(completion, str) for completion in completions):
        if not isinstance(prompt, str) or not prompt.strip() or not all(text.startswith(prompt) for text in completions):
            return row
        return {**row, **_replaced(row, lambda text: text[len(prompt) :])}
    if any(isinstance(completion, str) or not _is_conversation(completion) for completion in completions):
        return row
    turns = _opening(completions[0]) if isinstance(prompt, str) else prompt
    if isinstance(prompt, str) and (not turns or message_text(turns[-1]).strip() != prompt.strip()):
        return row
    if not _is_conversation(turns) or not all(_begins(completion, turns) for completion in completions):
        return row
    return {**row, "prompt": list(turns), **_replaced(row, lambda completion: list(completion[len(turns) :]))}


def _completions(row: Mapping[str, Any]) -> list[Any]:
    several = row.get("completions")
    listed = list(several) if isinstance(several, Sequence) and not isinstance(several, str) else []
    return [row[name] for name in _COMPLETIONS if row.get(name) is not None] + listed


def _replaced(row: Mapping[str, Any], cut: Callable[[Any], Any]) -> dict[str, Any]:
    cuts = {name: cut(row[name]) for name in _COMPLETIONS if row.get(name) is not None}
    return cuts if row.get("completions") is None else {**cuts, "completions": [cut(each) for each in row["completions"]]}


def _is_conversation(turns: Any) -> bool:
    return isinstance(turns, Sequence) and all(isinstance(turn, Mapping) and "role" in turn for turn in turns)


def _opening(turns: Sequence[Message]) -> Sequence[Message]:
    """The turns before the assistant's first."""
    return turns[: next((place for place, turn in enumerate(turns) if turn["role"] == "assistant"), 0)]


def _begins(completion: Sequence[Message], turns: Sequence[Message]) -> bool:
    """Whether a conversation begins with these turns, and has more."""
    told = [(turn["role"], message_text(turn)) for turn in turns]
    return len(completion) > len(turns) and [(turn["role"], message_text(turn)) for turn in completion[: len(turns)]] == told
