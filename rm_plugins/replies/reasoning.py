"""The answer in a judge's text: what comes after its reasoning."""

from __future__ import annotations

import re

_OPEN = re.compile(r"\A\s*<(think|thinking|reasoning)>", re.IGNORECASE)
_CLOSE = re.compile(r"</(?:think|thinking|reasoning)>", re.IGNORECASE)


def after_reasoning(text: str) -> str | None:
    """The text after ``<think>...</think>``, without white space around it; None if the reasoning does not end.

    Chat templates of reasoning models often open the reasoning themselves, so that a text has only its end.

    >>> after_reasoning("<think>A or B?</think> B"), after_reasoning("A or B?</think>B"), after_reasoning("B")
    ('B', 'B', 'B')
    >>> after_reasoning("<think>It is B") is None
    True
    """
    ends = list(_CLOSE.finditer(text))
    rest = text[ends[-1].end() :] if ends else text
    return None if _OPEN.match(rest) else rest.strip()
