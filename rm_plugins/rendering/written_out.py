"""Prompts and completions as text that a judge reads."""

from __future__ import annotations

import json
from collections.abc import Sequence

from rm_plugins.samples import Message, message_text


def written_out(part: str | Sequence[Message]) -> str:
    r"""Text unchanged, a single message as its text, several messages as ``Role: content`` paragraphs.

    Raises:
        DataError: A content has a part that is not text.

    >>> written_out([{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}])
    'User: 2+2?\n\nAssistant: 4'
    """
    if isinstance(part, str):
        return part
    contents = [
        message_text(message, strict=True) or json.dumps(message.get("tool_calls") or "", ensure_ascii=False)
        for message in part
    ]
    if len(part) == 1:
        return str(contents[0])
    roles = [str(message["role"]).capitalize() for message in part]
    return "\n\n".join(f"{role}: {content}" for role, content in zip(roles, contents, strict=True))
