"""Whole conversations in one text, as ``\\n\\nHuman: ...\\n\\nAssistant: ...``, and their messages."""

from __future__ import annotations

import re

from rm_plugins.errors import DataError
from rm_plugins.samples import Message

_TURN = re.compile(r"(?:\A|\n\n)(Human|Assistant): ?")
_ROLES = {"Human": "user", "Assistant": "assistant"}


def is_transcript(text: object) -> bool:
    """Whether a text is a conversation that begins with a human turn.

    >>> is_transcript("\\n\\nHuman: 2+2?\\n\\nAssistant: 4"), is_transcript("Human: beings are odd.")
    (True, False)
    """
    return isinstance(text, str) and text.startswith("\n\nHuman:") and "\n\nAssistant:" in text


def turns_of_transcript(text: str, column: str) -> list[Message]:
    """The messages of a conversation.

    An empty assistant turn at the end, as in prompts, is left out.

    Args:
        text: Begins with ``\\n\\nHuman:``; the first line breaks may be missing.
        column: What an error calls it.

    Raises:
        DataError: The text does not begin with a turn, or has no assistant turn and is not a prompt.

    >>> turns_of_transcript("\\n\\nHuman: 2+2?\\n\\nAssistant: 4", "chosen")
    [{'role': 'user', 'content': '2+2?'}, {'role': 'assistant', 'content': '4'}]
    """
    before, *turns = _TURN.split(text.replace("\r\n", "\n"))
    if before.strip() or not turns or (column != "prompt" and "Assistant" not in turns[::2]):
        raise DataError(
            f"{column!r} is not a conversation with turns 'Human:' and 'Assistant:', each after an empty line: {text!r:.80}."
        )
    messages: list[Message] = [
        {"role": _ROLES[speaker], "content": said.strip()} for speaker, said in zip(turns[::2], turns[1::2], strict=True)
    ]
    return messages[:-1] if messages[-1] == {"role": "assistant", "content": ""} and column == "prompt" else messages
