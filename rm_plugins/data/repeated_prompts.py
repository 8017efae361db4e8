"""Rows whose completions begin with their prompt, which would be rendered twice."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rm_plugins.data.plain_values import plain_row
from rm_plugins.samples import Message, message_text

_PAIR = ("chosen", "rejected")
_SUSPICIOUS = 0.5
"""If at least this share of rows begins with the prompt, it is not a coincidence."""


@dataclass(slots=True)
class RepeatedPrompts:
    """Counts the rows that repeat their prompt in every completion: ``chosen`` and ``rejected``, ``completion``, or ``completions``.

    Args:
        rows: The rows that have a prompt, N.
        texts: The rows where every completion is a text that begins with the prompt, which may be a coincidence.
        conversations: The rows where every completion is a conversation that begins with the prompt's turns, which is never a coincidence.

    >>> counted = RepeatedPrompts()
    >>> counted.add({"prompt": "2+2?", "chosen": "2+2? 4", "rejected": "2+2? 5"}), counted.is_suspicious
    (True, True)
    """

    rows: int = 0
    texts: int = 0
    conversations: int = 0

    def add(self, row: Mapping[str, Any]) -> bool:
        """Count a row; true if it repeats its prompt."""
        row = plain_row(row)
        if not row.get("prompt"):
            return False
        self.rows += 1
        if split_prompt(row) is row:
            return False
        is_text = all(isinstance(completion, str) for completion in _completions(row))
        self.texts, self.conversations = self.texts + is_text, self.conversations + (not is_text)
        return True

    @property
    def is_suspicious(self) -> bool:
        """Whether the data repeats its prompts: a conversation does, or at least half of the rows do."""
        return self.conversations > 0 or (self.texts > 0 and self.texts >= _SUSPICIOUS * self.rows)

    @property
    def warning(self) -> str:
        """The warning for the user; empty if nothing is suspicious."""
        return (
            f"{self.texts + self.conversations} of {self.rows} rows with a prompt have completions that begin with it, so it is "
            "rendered twice. --map split-prompt removes it. If answers only happen to begin with the same words, "
            "leave them as they are."
            if self.is_suspicious
            else ""
        )


def split_prompt(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The row with its prompt removed from the beginning of every completion; the row itself if not all begin with it.

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


def _read(row: Mapping[str, Any]) -> list[str]:
    """The columns with the row's completions; beside a pair no others are read."""
    if all(row.get(name) is not None for name in _PAIR):
        return [*_PAIR]
    names = [name for name in (*_PAIR, "completion") if row.get(name) is not None]
    return [*names, "completions"] if isinstance(row.get("completions"), (list, tuple)) else names


def _completions(row: Mapping[str, Any]) -> list[Any]:
    return [completion for name in _read(row) for completion in (row[name] if name == "completions" else [row[name]])]


def _replaced(row: Mapping[str, Any], cut: Callable[[Any], Any]) -> dict[str, Any]:
    return {name: [cut(each) for each in row[name]] if name == "completions" else cut(row[name]) for name in _read(row)}


def _is_conversation(turns: Any) -> bool:
    return isinstance(turns, Sequence) and all(isinstance(turn, Mapping) and "role" in turn for turn in turns)


def _opening(turns: Sequence[Message]) -> Sequence[Message]:
    """The turns before the assistant's first."""
    return turns[: next((place for place, turn in enumerate(turns) if turn["role"] == "assistant"), 0)]


def _begins(completion: Sequence[Message], turns: Sequence[Message]) -> bool:
    """Whether a conversation begins with these turns, and has more."""
    told = [(turn["role"], message_text(turn)) for turn in turns]
    return len(completion) > len(turns) and [(turn["role"], message_text(turn)) for turn in completion[: len(turns)]] == told
