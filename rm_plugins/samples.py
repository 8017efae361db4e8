"""What is scored: a `Sample`, its text, and what samples have in common."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from rm_plugins.errors import DataError, UnsupportedError

__all__ = ["ROLES", "Message", "RenderedSample", "Sample", "completion_text", "prompt_groups", "text_of"]

Message: TypeAlias = Mapping[str, Any]
"""One turn of a conversation: ``{"role": ..., "content": ...}``."""

ROLES = ("assistant", "developer", "function", "system", "tool", "user")


@dataclass(frozen=True, slots=True)
class Sample:
    """A completion to score.

    Prompt and completion are both text, or both message lists, as in TRL's standard and conversational formats. A text
    completion under a conversational prompt becomes one assistant message.

    Args:
        prompt: Text or messages; empty (``""`` or ``[]``) where there is none.
        completion: Text or messages. An empty completion is a completion: it is scored like any other.
        columns: The other columns of the dataset row, by name (``tools`` and ``chat_template_kwargs`` reach the chat
            template).

    Raises:
        DataError: A part is neither text nor messages, a role is unknown, or a message has no text.

    >>> Sample("Q: 2+2?\\n", "4").is_conversational
    False
    >>> Sample([{"role": "user", "content": "2+2?"}], "4").completion
    [{'role': 'assistant', 'content': '4'}]
    """

    prompt: str | Sequence[Message]
    completion: str | Sequence[Message]
    columns: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_text_or_messages("prompt", self.prompt)
        if isinstance(self.completion, str) and not isinstance(self.prompt, str):
            object.__setattr__(self, "completion", [{"role": "assistant", "content": self.completion}])
        _check_text_or_messages("completion", self.completion)
        if isinstance(self.prompt, str) and not isinstance(self.completion, str):
            raise DataError(
                "A sample's prompt is text but its completion is a list of messages. Make both text or both messages."
            )

    @property
    def is_conversational(self) -> bool:
        """Whether prompt and completion are message lists."""
        return not isinstance(self.prompt, str)

    @property
    def messages(self) -> list[Message]:
        """The whole conversation.

        Raises:
            UnsupportedError: The sample is text.
        """
        if isinstance(self.prompt, str) or isinstance(self.completion, str):
            raise UnsupportedError("A text sample has no messages; look at `is_conversational` first.")
        return [*self.prompt, *self.completion]


@dataclass(frozen=True, slots=True)
class RenderedSample(Sample):
    """A text that is scored as it is, or token ids: what clients of a scoring server send that render by themselves.

    A model renders nothing more around it: no template, no EOS. For any other provider it is a completion without a prompt.

    Args:
        prompt: Empty.
        completion: The text; empty where there are token ids.
        columns: None.
        token_ids: What the model is given in place of a text.
        add_special_tokens: Whether the model's tokenizer adds its special tokens to the text.

    >>> RenderedSample.of("<|user|>2+2?<|assistant|>4", add_special_tokens=False).completion
    '<|user|>2+2?<|assistant|>4'
    """

    token_ids: tuple[int, ...] | None = None
    add_special_tokens: bool = True

    @classmethod
    def of(cls, text: str | Sequence[int], *, add_special_tokens: bool = True) -> RenderedSample:
        """The sample of a text or of token ids.

        Raises:
            DataError: There are no token ids, or one is negative or no integer.
        """
        if isinstance(text, str):
            return cls("", text, add_special_tokens=add_special_tokens)
        if not text or not all(type(token) is int and token >= 0 for token in text):
            raise DataError(f"Token ids are a list of at least one integer, none negative, not {text!r:.80}.")
        return cls("", "", token_ids=tuple(text), add_special_tokens=False)


def _check_text_or_messages(part: str, value: object) -> None:
    if isinstance(value, str):
        return
    if not isinstance(value, Sequence):
        raise DataError(f"A sample's {part} must be text or a list of messages, not {type(value).__name__}: {value!r}.")
    for position, message in enumerate(value):
        where = f"{part}[{position}]"
        if not isinstance(message, Mapping) or "role" not in message:
            raise DataError(f"{where} is not a message with 'role' and 'content': {message!r}.")
        if message["role"] not in ROLES:
            raise DataError(f"{where} has the unknown role {message['role']!r}. Allowed: {', '.join(ROLES)}.")
        content = message.get("content")
        if content is None and message.get("tool_calls"):
            continue
        if not isinstance(content, str):
            raise DataError(f"{where} needs text as its content, not {type(content).__name__}: {content!r}.")


def text_of(part: str | Sequence[Message]) -> str:
    """A prompt or completion as one text: the contents of its messages, a line each.

    >>> text_of([{"role": "assistant", "content": "four"}])
    'four'
    """
    return part if isinstance(part, str) else "\n".join(message.get("content") or "" for message in part)


def completion_text(sample: Sample) -> str:
    """The completion as text: of messages, the contents of the assistant's, one after another on lines of their own.

    >>> completion_text(Sample([{"role": "user", "content": "2+2?"}], "4"))
    '4'
    """
    if isinstance(sample.completion, str):
        return sample.completion
    contents = (message.get("content") for message in sample.completion if message["role"] == "assistant")
    return "\n".join(content for content in contents if content)


def prompt_groups(samples: Sequence[Sample]) -> list[list[int]]:
    """The rows of each different prompt, in the order of their first one.

    >>> prompt_groups([Sample("a", "1"), Sample("b", "2"), Sample("a", "3")])
    [[0, 2], [1]]
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for row, sample in enumerate(samples):
        key = sample.prompt if isinstance(sample.prompt, str) else json.dumps(sample.prompt, sort_keys=True, default=repr)
        groups[key].append(row)
    return list(groups.values())
