"""Where an answer begins in a judge's text: after its reasoning."""

from __future__ import annotations

import re

OPEN_REASONING = re.compile(r"\A\s*<(?:think|thinking|reasoning)>", re.IGNORECASE)
"""The beginning of a text that begins with reasoning."""

_CLOSE = re.compile(r"</(?:think|thinking|reasoning)>", re.IGNORECASE)


def end_of_reasoning(text: str) -> int | None:
    """The position after the last ``</think>`` of a text; None if it has none."""
    ends = [match.end() for match in _CLOSE.finditer(text)]
    return ends[-1] if ends else None


def after_reasoning(text: str) -> str | None:
    """The text after ``<think>...</think>``, without white space around it; None if the reasoning does not end.

    Chat templates of reasoning models often open the reasoning themselves, so that a text has only its end.

    >>> after_reasoning("<think>A or B?</think> B"), after_reasoning("A or B?</think>B"), after_reasoning("B")
    ('B', 'B', 'B')
    >>> after_reasoning("<think>It is B") is None
    True
    """
    rest = text[end_of_reasoning(text) or 0 :]
    return None if OPEN_REASONING.match(rest) else rest.strip()
