"""Texts with two answers in them, from templates with placeholders."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from rm_plugins.canonical_json import canonical_json
from rm_plugins.errors import SpecError
from rm_plugins.rendering.written_out import written_out
from rm_plugins.samples import Sample

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
        placeholders = {name for name in _PLACEHOLDER.findall(text) if name in _NAMES}
        if lacking := [name for name in needed if name not in placeholders]:
            raise SpecError(f"the template needs the placeholder {{{lacking[0]}}}; it is {text!r:.200}.", key=key)

    def fill(self, first: Sample, second: Sample) -> str:
        """The text for two answers to one prompt.

        Raises:
            DataError: A message has a part that is not text.
        """
        texts = {"prompt": written_out(first.prompt), "first": first.completion_text, "second": second.completion_text}
        # In one pass and without str.format, because templates and answers contain other braces.
        return _PLACEHOLDER.sub(lambda match: texts.get(match[1], match[0]), self.text)


def shared_columns(samples: Sequence[Sample]) -> Mapping[str, Any]:
    """The columns that have the same value in all of some samples.

    >>> shared_columns([Sample("Q", "a", {"id": 1, "n": 1}), Sample("Q", "b", {"id": 1, "n": 2})])
    {'id': 1}
    """
    first, *others = samples
    columns = dict(first.columns)
    for other in others:
        theirs = {name: canonical_json(value) for name, value in other.columns.items()}
        columns = {name: value for name, value in columns.items() if theirs.get(name) == canonical_json(value)}
    return columns
