"""Reads a choice of an answer of the chat completions API, as OpenAI, vLLM, SGLang, llama.cpp and others write it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rm_plugins.errors import AnswerError
from rm_plugins.replies.reasoning import after_reasoning


def only_choice(answer: Any) -> Mapping[str, Any]:
    """The only choice of an answer.

    Raises:
        AnswerError: The answer has none, or it has no message.
    """
    match answer:
        case {"choices": [{"message": {}} as choice]}:
            return dict(choice)
    raise AnswerError(f"the answer is {answer!r:.80}; one of the 'choices' with a 'message' was expected")


def withheld(choice: Mapping[str, Any]) -> str:
    """Why a choice has no answer by the judge's or the server's decision; empty if it may have one."""
    if choice["message"].get("refusal"):
        return f"the judge refused to answer: {str(choice['message']['refusal'])[:200]}"
    if choice.get("finish_reason") == "content_filter":
        return "the judge's answer was withheld by a content filter"
    return ""


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
    if choice.get("finish_reason") == "length":
        return ChatText(error="the judge's answer was cut off at max_tokens; raise max_tokens")
    message = choice["message"]
    content = message.get("content")
    if isinstance(content, list):  # a list of parts, as some servers write it
        content = "".join(
            str(part.get("text") or "") for part in content if isinstance(part, Mapping) and part.get("type") in ("text", None)
        )
    content = content if isinstance(content, str) else ""
    text = after_reasoning(content)
    if text is None:
        return ChatText(error="the judge's reasoning did not end, so there is no answer after it; raise max_tokens")
    if not text:
        reasoned = content.strip() or message.get("reasoning_content") or message.get("reasoning")
        after = " after its reasoning" if reasoned else ""
        return ChatText(error=f"the judge's answer is empty{after} (finish_reason: {choice.get('finish_reason')})")
    return ChatText(text)


def tokens_used(answer: Mapping[str, Any]) -> tuple[int, int]:
    """The numbers of tokens of the prompt and of the completion in an answer's ``usage``; 0 where it does not say.

    >>> tokens_used({"usage": {"prompt_tokens": 12, "completion_tokens": None}})
    (12, 0)
    """
    usage = answer.get("usage")
    counts = [usage.get(key) for key in ("prompt_tokens", "completion_tokens")] if isinstance(usage, Mapping) else [0, 0]
    prompt, completion = (count if type(count) is int and count > 0 else 0 for count in counts)
    return prompt, completion
