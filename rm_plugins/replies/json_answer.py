"""The JSON object in an answer."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from rm_plugins.replies.reasoning import after_reasoning

_FENCE = re.compile(r" {0,3}```[ \t]*([\w+-]*)[ \t]*\r?")
"""The first or last line of a code block, with the language if there is one."""


@dataclass(frozen=True, slots=True)
class JsonAnswer:
    """A JSON object, or why there is none.

    Args:
        content: The object; empty if there is an error.
        error: Why there is none; empty if there is one.
    """

    content: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""


class _Doubled(ValueError):
    pass


def json_in(text: str) -> JsonAnswer:
    """The JSON object that an answer is, after its reasoning; it may be in a code block, with text around the block.

    Several blocks with objects, a repeated key, ``NaN`` and an object in the reasoning only are errors.

    >>> json_in('<think>{"score": 1}</think>Here it is:\\n```json\\n{"score": 2}\\n```').content
    {'score': 2}
    >>> json_in('{"score": 1, "score": 2}').error
    "the JSON object in the answer has the key 'score' twice"
    """
    answer = after_reasoning(text)
    if answer is None:
        return JsonAnswer(error="the reasoning does not end, so there is no answer after it")
    blocks = list(_fenced(answer))
    candidates = blocks or [answer[max(answer.find("{"), 0) : answer.rfind("}") + 1] or answer]
    objects: list[Mapping[str, Any]] = []
    for candidate in candidates:
        try:
            content = json.loads(candidate, object_pairs_hook=_once, parse_constant=_refused)
        except _Doubled as error:
            return JsonAnswer(error=f"the JSON object in the answer has the key {str(error)!r} twice")
        except (ValueError, RecursionError):
            continue
        if isinstance(content, Mapping):
            objects.append(content)
    if len(objects) > 1:
        return JsonAnswer(error=f"the answer has {len(objects)} JSON objects; one was expected")
    if not objects:
        return JsonAnswer(error=f"the answer has no JSON object: {answer[-160:]!r}")
    return JsonAnswer(objects[0])


def _fenced(text: str) -> Iterator[str]:
    """The contents of the code blocks of JSON, or of no language."""
    block: list[str] | None = None
    language = ""
    for line in text.split("\n"):
        fence = _FENCE.fullmatch(line)
        if block is None and fence:
            block, language = [], fence[1]
        elif fence and not fence[1]:
            if language.lower() in ("", "json"):
                yield "\n".join(block or ())
            block = None
        elif block is not None:
            block.append(line)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, value in pairs:
        if key in made:
            raise _Doubled(key)
        made[key] = value
    return made


def _refused(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
