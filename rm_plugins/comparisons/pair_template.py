"""Texts with two answers in them, from templates with placeholders."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from rm_plugins.errors import SpecError
from rm_plugins.samples import Message, Sample, message_text

_PLACEHOLDER = re.compile(r"\{(\w+)\}")
_NAMES = ("prompt", "first", "second")


class PairTemplate:
    """A text with the placeholders ``{prompt}``, ``{first}`` and ``{second}``; other braces are left as they are.

    A prompt of several messages becomes ``Role: content`` paragraphs.

    Args:
        text: The template.
        needed: The placeholders that it must have.
        key: The key of the spec, for error messages.

    Raises:
        SpecError: It lacks a placeholder.

    >>> PairTemplate("{prompt} A: {first} B: {second}").fill(Sample("2+2?", "4"), Sample("2+2?", "{prompt}"))
    '2+2? A: 4 B: {prompt}'
    """

    def __init__(self, text: str, *, needed: Collection[str] = (), key: str = "template") -> None:
        self.text = text
        self.placeholders = {name for name in _PLACEHOLDER.findall(text) if name in _NAMES}
        if lacking := [name for name in needed if name not in self.placeholders]:
            raise SpecError(f"the template needs the placeholder {{{lacking[0]}}}; it is {text!r:.200}.", key=key)

    def fill(self, first: Sample, second: Sample) -> str:
        """The text for two answers to one prompt.

        Raises:
            DataError: A message has a part that is not text.
        """
        texts = {"prompt": prompt_text(first.prompt), "first": first.completion_text, "second": second.completion_text}
        # In one pass and without str.format, because templates and answers contain other braces.
        return _PLACEHOLDER.sub(lambda match: texts.get(match[1], match[0]), self.text)


def prompt_text(prompt: str | Sequence[Message]) -> str:
    """A prompt as text: that of a single message, or ``Role: content`` paragraphs.

    Raises:
        DataError: A message has a part that is not text.

    >>> prompt_text([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}])
    'System: Be brief.\\n\\nUser: 2+2?'
    """
    if isinstance(prompt, str):
        return prompt
    contents = [message_text(message, strict=True) for message in prompt]
    if len(contents) == 1:
        return contents[0]
    roles = [str(message["role"]).capitalize() for message in prompt]
    return "\n\n".join(f"{role}: {content}" for role, content in zip(roles, contents, strict=True))
