"""Dataset rows as samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rm_plugins.data.plain_values import plain_row
from rm_plugins.errors import DataError
from rm_plugins.samples import Message, Sample

_ROLES = ("prompt", "completion", "completions", "chosen", "rejected", "messages")


@dataclass(frozen=True, slots=True)
class RowSamples:
    """The samples of one row.

    Args:
        names: The column of each sample's score, where ``{}`` stands for what scores are called: ``{}``; ``chosen_{}`` and
            ``rejected_{}``; or ``{}s``, which is one list column for all.
        samples: The samples, as many as `names` unless the column is a list.
    """

    names: tuple[str, ...]
    samples: tuple[Sample, ...]

    def columns(self, scores: Sequence[float | None], called: str = "score") -> dict[str, Any]:
        """The score columns of the row."""
        names = [name.format(called) for name in self.names]
        return {names[0]: list(scores)} if self.names == ("{}s",) else dict(zip(names, scores, strict=True))


def row_samples(row: Mapping[str, Any], where: str = "row") -> RowSamples:
    """The samples to score in a row of any of TRL's formats, judged or not.

    ``chosen`` and ``rejected``; or what `completion_samples` takes. A null column counts as absent.

    Args:
        row: Columns by name.
        where: What an error message calls the row.

    Raises:
        DataError: The row has none of these, or a part of it is not text or messages.
    """
    row = plain_row(row)
    try:
        if row.get("chosen") is not None and row.get("rejected") is not None:
            return RowSamples(("chosen_{}", "rejected_{}"), preference_samples(row))
        if row.get("completions") is None:
            return RowSamples(("{}",), completion_samples(row))
        return RowSamples(("{}s",), completion_samples(row) if row["completions"] != [] else ())
    except DataError as error:
        raise DataError(f"{where}: {error}") from error


def preference_samples(row: Mapping[str, Any]) -> tuple[Sample, Sample]:
    """The chosen and the rejected sample of a preference row, in TRL's standard or conversational format.

    Without ``prompt``, the messages that both conversations begin with are the prompt; a text is all completion.

    Raises:
        DataError: A column is missing, or is not text or messages.
    """
    row = plain_row(row)
    for name in ("chosen", "rejected"):
        if row.get(name) is None:
            raise DataError(f"there is no {name!r}; it has the columns {', '.join(map(repr, row)) or 'none'}.")
    columns = {name: value for name, value in row.items() if name not in _ROLES}
    chosen, rejected = row["chosen"], row["rejected"]
    if row.get("prompt") is not None:
        return Sample(row["prompt"], chosen, columns), Sample(row["prompt"], rejected, columns)
    prompt, (chosen, rejected) = _shared_prompt((chosen, rejected))
    return Sample(prompt, chosen, columns), Sample(prompt, rejected, columns)


def completion_samples(row: Mapping[str, Any]) -> tuple[Sample, ...]:
    """The samples of a row that has ``completions``, a ``completion`` or ``messages``; ``prompt`` may be absent or null.

    Without ``prompt``, the messages that all `completions` begin with are the prompt. In a single conversation, the prompt is the
    messages before the last turns of the assistant. A text is all completion.

    Raises:
        DataError: The row has none of these, or both of the first two; or a part of it is not text or messages.
    """
    row = plain_row(row)
    columns = {name: value for name, value in row.items() if name not in _ROLES}
    prompt, completion, completions = (row.get(name) for name in ("prompt", "completion", "completions"))
    if completions is not None:
        if completion is not None:
            raise DataError("there are both 'completion' and 'completions'; a row has one of them.")
        if not isinstance(completions, Sequence) or isinstance(completions, str):
            raise DataError(f"'completions' must be a list, not {completions!r:.80}.")
        if not completions:
            raise DataError("'completions' is empty; a list of at least one text or message list is allowed.")
        if prompt is None:
            prompt, completions = _shared_prompt(completions)
        return tuple(Sample(prompt, text, columns) for text in completions)
    if completion is None and prompt is None:
        completion = row.get("messages")
    if completion is None:
        raise DataError(f"there is no 'completion' or 'completions'; it has the columns {', '.join(map(repr, row)) or 'none'}.")
    if prompt is not None or isinstance(completion, str):
        return (Sample("" if prompt is None else prompt, completion, columns),)
    return (_from_conversation(completion, columns),)


def _shared_prompt(conversations: Sequence[Any]) -> tuple[str | list[Message], Sequence[Any]]:
    """The messages that all conversations begin with, and the rest of each; for texts, nothing is common."""
    if not all(isinstance(turns, Sequence) and not isinstance(turns, str) for turns in conversations):
        return "", conversations
    first, *others = conversations
    shared = 0
    while shared < min(map(len, conversations)) - 1 and all(first[shared] == other[shared] for other in others):
        shared += 1
    return list(first[:shared]), [list(turns[shared:]) for turns in conversations]


def _from_conversation(messages: Sequence[Message], columns: Mapping[str, Any]) -> Sample:
    sample = Sample([], messages, columns)
    turns = [dict(turn) for turn in sample.messages]
    start = len(turns)
    while start > 0 and turns[start - 1]["role"] == "assistant":
        start -= 1
    if start == len(turns):
        raise DataError("'messages' must end with a turn of the assistant, which is scored.")
    return Sample(turns[:start], turns[start:], columns)
