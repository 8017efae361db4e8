"""Reads a choice of an answer of the chat completions API, as OpenAI, vLLM, SGLang, llama.cpp and others write it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rm_plugins.errors import AnswerError
from rm_plugins.replies.reasoning import after_reasoning

_COMPLETE = frozenset({"none", "", "stop", "eos", "eos_token", "stop_sequence", "end_turn", "tool_calls", "function_call"})
"""The values of ``finish_reason`` with which servers say that an answer is whole. Those with ``length`` are cut off, and any other, such as
``abort``, ``error`` or ``safety``, says that something else ended it."""


def only_choice(answer: Any) -> Mapping[str, Any]:
    """The only choice of an answer.

    Raises:
        AnswerError: The answer has none, or it has no message.
    """
    match answer:
        case {"choices": [{"message": {}} as choice]}:
            return dict(choice)
        case {"error": {"message": str(message)}} | {"error": str(message)}:
            raise AnswerError(f"the answer is an error: {message[:200]}")
    raise AnswerError(f"the answer is {answer!r:.80}; one of the 'choices' with a 'message' was expected")


def is_cut_off(choice: Mapping[str, Any]) -> bool:
    """Whether a choice ends because it has as many tokens as it may have."""
    return _finish_reason(choice) in ("length", "max_tokens")


def withheld(choice: Mapping[str, Any]) -> str:
    """Why a choice has no answer by the judge's or the server's decision; empty if it may have one."""
    message = choice["message"]
    refusals = [message.get("refusal"), *(part.get("refusal") for part in _parts(message))]
    if refusal := next(filter(None, refusals), None):
        return f"the judge refused to answer: {str(refusal)[:200]}"
    reason = _finish_reason(choice)
    if reason == "content_filter":
        return "the judge's answer was withheld by a content filter"
    if choice.get("error"):  # OpenRouter, where the model's own server fails
        return f"the judge failed while it answered: {str(choice['error'])[:200]}"
    if reason not in _COMPLETE and not is_cut_off(choice):
        return f"the judge's answer is not whole (finish_reason: {str(choice['finish_reason'])[:80]})"
    return ""


def content_of(message: Mapping[str, Any]) -> str:
    """The content of a message as text: empty if it is null, and joined if it is a list of parts, as some servers write it."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    return "".join(str(part.get("text") or "") for part in _parts(message) if part.get("type") in ("text", None))


def _parts(message: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    content = message.get("content")
    return [part for part in content if isinstance(part, Mapping)] if isinstance(content, list) else []


def _finish_reason(choice: Mapping[str, Any]) -> str:
    return str(choice.get("finish_reason")).lower()


@dataclass(frozen=True, slots=True)
class ChatText:
    """The text of a choice.

    Args:
        text: The answer after its reasoning; empty if there is an error.
        error: Why there is none; empty if there is one.
    """

    text: str = ""
    error: str = ""


def chat_text(choice: Mapping[str, Any]) -> ChatText:
    """The text of a choice after its reasoning, or why there is none: withheld, cut off, empty, only reasoning.

    >>> chat_text({"message": {"content": None, "reasoning_content": "A or B?"}, "finish_reason": "stop"}).error
    "the judge's answer is empty after its reasoning (finish_reason: stop)"
    """
    if error := withheld(choice):
        return ChatText(error=error)
    if is_cut_off(choice):
        return ChatText(error="the judge's answer was cut off at max_tokens; raise max_tokens")
    message = choice["message"]
    content = content_of(message)
    text = after_reasoning(content)
    if text is None:
        return ChatText(error="the judge's reasoning did not end, so there is no answer after it; raise max_tokens")
    if not text:
        reasoned = content.strip() or reasoning_field(message)
        after = " after its reasoning" if reasoned else ""
        return ChatText(error=f"the judge's answer is empty{after} (finish_reason: {choice.get('finish_reason')})")
    return ChatText(text)


def reasoning_field(message: Mapping[str, Any]) -> bool:
    """Whether a message has its reasoning in a field of its own, as servers with a parser of reasoning write it."""
    return any(message.get(key) for key in ("reasoning_content", "reasoning", "reasoning_details", "thinking"))


def tokens_used(answer: Mapping[str, Any]) -> tuple[int, int]:
    """The numbers of tokens of the prompt and of the completion in an answer's ``usage``; 0 where it does not say.

    >>> tokens_used({"usage": {"prompt_tokens": 12, "completion_tokens": None}})
    (12, 0)
    """
    usage = answer.get("usage")
    counts = [usage.get(key) for key in ("prompt_tokens", "completion_tokens")] if isinstance(usage, Mapping) else [0, 0]
    prompt, completion = (count if type(count) is int and count > 0 else 0 for count in counts)
    return prompt, completion
