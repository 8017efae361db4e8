"""Contents that are lists of text blocks, in the form in which a chat template takes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

from rm_plugins.samples import Message, message_text, text_parts

_Form: TypeAlias = Literal["blocks", "text", "one block"]
_FORMS: tuple[_Form, ...] = ("blocks", "text", "one block")


class TextBlocks:
    """Gives conversations to chat templates: lists of text blocks as they are where the template takes them, or else joined.

    Templates of vision models iterate over blocks, and each trims or separates them in its own way, as in TRL's training. Others print
    the list, fail, or write nothing; some do so for one role alone, or look at the first block only. Which form a template takes
    is tried on a conversation of the same shape: every word must be in what it writes, and no list. Where that is true of no
    form, contents are text.
    """

    def __init__(self) -> None:
        self._forms: dict[tuple[Any, ...], _Form] = {}

    def messages(
        self, messages: Sequence[Message], template: Any, render: Callable[[list[dict[str, Any]]], str]
    ) -> list[dict[str, Any]]:
        """The messages as the template takes them.

        Args:
            messages: A conversation.
            template: What tells the template from others that are used here.
            render: What the template makes of messages.

        Raises:
            DataError: A content has a part that is no text.
        """
        parts = [text_parts(message.get("content")) for message in messages]
        if not any(parts):
            return _formed(messages, "text")
        shape = (template, *((message["role"], len(texts)) for message, texts in zip(messages, parts, strict=True)))
        if shape not in self._forms:
            self._forms[shape] = _form_taken(messages, parts, render)
        return _formed(messages, self._forms[shape])

    def __getstate__(self) -> dict[str, Any]:
        return {"_forms": {}}  # what was tried is no part of how a dataset is tokenized, which `datasets` names by its pickle


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
        except Exception:  # a template is a program and raises whatever its author wrote
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
