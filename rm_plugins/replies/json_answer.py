"""The JSON object in an answer."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
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
    """The JSON object that an answer is, after its reasoning; it may be in a code block, and have text around it.

    Several different objects, a repeated key, ``NaN`` and an object in the reasoning only are errors.

    >>> json_in('<think>{"score": 1}</think>Here it is:\\n```json\\n{"score": 2}\\n```').content
    {'score': 2}
    >>> json_in('{"score": 1, "score": 2}').error
    "the JSON object in the answer has the key 'score' twice"
    """
    answer = after_reasoning(text)
    if answer is None:
        return JsonAnswer(error="the reasoning does not end, so there is no answer after it")
    outside, blocks = _blocks(answer)
    bare = outside[max(outside.find("{"), 0) : outside.rfind("}") + 1]
    objects: list[Mapping[str, Any]] = []
    for candidate in [*blocks, bare]:
        try:
            content = json.loads(candidate, object_pairs_hook=_once, parse_constant=_refused, parse_float=_finite)
        except _Doubled as error:
            return JsonAnswer(error=f"the JSON object in the answer has the key {str(error)!r} twice")
        except (ValueError, RecursionError):
            continue
        if isinstance(content, Mapping) and content not in objects:
            objects.append(content)
    if len(objects) > 1:
        return JsonAnswer(error=f"the answer has {len(objects)} JSON objects; one was expected")
    if not objects:
        return JsonAnswer(error=f"the answer has no JSON object: {answer[-160:]!r}")
    return JsonAnswer(objects[0])


def _blocks(text: str) -> tuple[str, list[str]]:
    """The text outside of code blocks, and the contents of the blocks of JSON or of no language.

    A block that does not end is outside.
    """
    outside: list[str] = []
    blocks: list[str] = []
    block: list[str] | None = None
    language = ""
    for line in text.split("\n"):
        fence = _FENCE.fullmatch(line)
        if block is None and fence:
            block, language = [], fence[1]
        elif block is not None and fence and not fence[1]:
            if language.lower() in ("", "json"):
                blocks.append("\n".join(block))
            block = None
        else:
            (outside if block is None else block).append(line)
    return "\n".join([*outside, *(block or ())]), blocks


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, value in pairs:
        if key in made:
            raise _Doubled(key)
        made[key] = value
    return made


def _refused(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"{number} is too large")
    return value
