"""The tools that a completion calls, as rules for tool use look at them."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from rm_plugins.errors import DataError
from rm_plugins.samples import Message, Sample, called_functions, message_text

_ERROR_FIRST = re.compile(r"""\{\s*(["'])error\1\s*:(?!\s*(?:null|None|false|False)\b)""")
_RESULTS = ("tool", "function")
"""The roles of messages with results."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool in a completion.

    Args:
        name: The tool's name; empty where the message has none.
        arguments: Its arguments as the message has them: a mapping, or JSON as in OpenAI's API.
        result: The message with its result; None where there is none, such as in a completion that was cut off.
    """

    name: str
    arguments: Any
    result: Message | None

    def has_succeeded(self, failures: Sequence[str] = ()) -> bool:
        """Whether there is a result that is not an error.

        An error is a mapping whose key ``error`` is neither null nor false, or a text that begins with one of `failures`. TRL writes such
        a mapping for a tool that raised or that does not exist.
        """
        if self.result is None:
            return False
        text = message_text(self.result).strip()
        return not text.startswith(tuple(failures)) and not _is_error(text)


def tool_calls_of(sample: Sample, called: str) -> list[ToolCall]:
    """The calls of a completion in their order.

    A result belongs to the call with its ``tool_call_id``. If it or the call has no id, it belongs to the first call of its name, in the
    message before it, that has no result yet. Without a name too, it belongs to the first such call of any name.

    Args:
        sample: The sample.
        called: The rule, for the message.

    Raises:
        DataError: The completion is text, which does not say what is a call.
    """
    if isinstance(sample.completion, str):
        raise DataError(
            f"{called} looks at the tool calls in messages, and this completion is text: {sample.completion!r:.80}. Give prompts as "
            'messages, [{"role": "user", "content": ...}], and the trainer its tools.'
        )
    calls: list[ToolCall] = []
    identifiers: list[Any] = []  # of each call
    latest = 0  # the first call of the latest message with calls
    for message in sample.completion:
        if message["role"] in _RESULTS:
            place = _place_of(message, calls, identifiers, latest)
            if place is not None:
                call = calls[place]
                calls[place] = ToolCall(call.name, call.arguments, message)
            continue
        functions = called_functions(message)
        latest = len(calls) if functions else latest
        for function in functions:
            identifiers.append(function.get("id"))
            name = function.get("name")
            calls.append(ToolCall(name if isinstance(name, str) else "", function.get("arguments"), None))
    return calls


def _place_of(result: Message, calls: Sequence[ToolCall], identifiers: Sequence[Any], latest: int) -> int | None:
    """The place of the call that a result belongs to; None where there is none."""
    identifier, name = result.get("tool_call_id"), result.get("name")
    pending = [place for place, call in enumerate(calls) if call.result is None]
    pending = [place for place in pending if place >= latest] + [place for place in pending if place < latest]
    if identifier is not None:
        of_id = next((place for place in pending if identifiers[place] == identifier), None)
        if of_id is not None:
            return of_id
        pending = [place for place in pending if identifiers[place] is None]
    return next((place for place in pending if place >= latest and name in (None, calls[place].name)), None)


def _is_error(text: str) -> bool:
    """Whether a result is a mapping with the key ``error``, in JSON or, as TRL writes it, in Python."""
    if not text.startswith("{") or "error" not in text:
        return False
    for read in (json.loads, ast.literal_eval):
        with suppress(ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            result = read(text)
            return isinstance(result, dict) and result.get("error") not in (None, False)
    # It cannot be read, such as one that was cut off, or holds what has no literal: its first key decides.
    return _ERROR_FIRST.match(text) is not None
