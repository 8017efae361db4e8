"""Converts message contents that are lists of text blocks to the form that a chat template supports."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

from rm_plugins.samples import Message, message_text, text_parts

_Form: TypeAlias = Literal["blocks", "text", "one block"]
_FORMS: tuple[_Form, ...] = ("blocks", "text", "one block")


class TextBlocks:
    """Converts conversations for chat templates: lists of text blocks are kept if the template supports them, and joined otherwise.

    Templates of vision models iterate over blocks and trim or separate them in their own way, as in TRL's training. Other templates print
    the list, fail, or write nothing; some do so only for one role, or use only the first block. The supported form is tested with a
    conversation of the same shape: the output must contain every word and no list. If no form passes, contents become text.
    """

    def __init__(self) -> None:
        self._forms: dict[tuple[Any, ...], _Form] = {}

    def messages(
        self, messages: Sequence[Message], template: Any, render: Callable[[list[dict[str, Any]]], str]
    ) -> list[dict[str, Any]]:
        """The messages in the form that the template supports.

        Args:
            messages: A conversation.
            template: A hashable key that identifies the template.
            render: Renders messages with the template.

        Raises:
            DataError: A content has a part that is not text.
        """
        parts = [text_parts(message.get("content")) for message in messages]
        if not any(parts):
            return _formed(messages, "text")
        shape = (template, *((message["role"], len(texts)) for message, texts in zip(messages, parts, strict=True)))
        if shape not in self._forms:
            self._forms[shape] = _form_taken(messages, parts, render)
        return _formed(messages, self._forms[shape])

    def __getstate__(self) -> dict[str, Any]:
        return {"_forms": {}}  # `datasets` derives cache keys from the pickle, so it must not depend on earlier tests


def _form_taken(
    messages: Sequence[Message], parts: Sequence[Sequence[str]], render: Callable[[list[dict[str, Any]]], str]
) -> _Form:
    words: list[str] = []
    tried: list[Mapping[str, Any]] = []
    for message, texts in zip(messages, parts, strict=True):
        new = [f"q{len(words) + place}z" for place in range(len(texts))]
        words += new
        tried.append({**message, "content": [_block(word) for word in new]} if texts else message)
    for form in _FORMS:
        try:
            written = render(_formed(tried, form))
        except Exception:  # a template is a program that may raise anything
            continue
        if all(word in written and f"text': '{word}" not in written and f'text": "{word}' not in written for word in words):
            return form
    return "text"


def _formed(messages: Sequence[Message], form: _Form) -> list[dict[str, Any]]:
    return [{**message, "content": _content(message, form)} for message in messages]


def _content(message: Message, form: _Form) -> Any:
    texts = text_parts(message.get("content"))
    if not texts or form == "text":
        return message_text(message, strict=True)
    return [_block(text) for text in (texts if form == "blocks" else ["".join(texts)])]


def _block(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}
