"""Where an answer begins in a judge's text: after its reasoning."""

from __future__ import annotations

import re

_TAGS = ("think", "thinking", "thought", "reasoning", "seed:think")
_OPEN = "|".join(
    [*(f"<{tag}>" for tag in _TAGS), r"\[THINK\]|◁think▷|<\|START_THINKING\|>|<\|channel\|>(?:analysis|commentary)"]
)
_CLOSE = "|".join([*(f"</{tag}>" for tag in _TAGS), r"\[/THINK\]|◁/think▷|<\|END_THINKING\|>|<\|channel\|>final<\|message\|>"])
# Those without angle brackets are of Magistral, Kimi-VL, Command A, and gpt-oss.

_OPENS = re.compile(rf"^[ \t]*(?:{_OPEN})", re.IGNORECASE | re.MULTILINE)
"""A line that begins with reasoning. Elsewhere, such as in quotes, the tag is part of a text about it."""
_CLOSES = re.compile(_CLOSE, re.IGNORECASE)
_OPENS_AT_END = re.compile(rf"(?:{_OPEN})\s*\Z", re.IGNORECASE)
_TAG = re.compile(f"{_OPEN}|{_CLOSE}", re.IGNORECASE)


def end_of_reasoning(text: str) -> int | None:
    """The position after the last ``</think>`` of a text; None if it has none."""
    ends = [match.end() for match in _CLOSES.finditer(text)]
    return ends[-1] if ends else None


def has_open_reasoning(text: str) -> bool:
    """Whether reasoning begins in a text and does not end.

    >>> has_open_reasoning("Let me see.\\n<think>It is B"), has_open_reasoning("A or B?</think>B")
    (True, False)
    """
    return _OPENS.search(text[end_of_reasoning(text) or 0 :]) is not None


def after_reasoning(text: str) -> str | None:
    """The text after ``<think>...</think>``, without white space around it; None if the reasoning does not end.

    Chat templates of reasoning models often open the reasoning themselves, so that a text has only its end.

    >>> after_reasoning("<think>A or B?</think> B"), after_reasoning("A or B?</think>B"), after_reasoning("B")
    ('B', 'B', 'B')
    >>> after_reasoning("<think>It is B") is None
    True
    """
    return None if has_open_reasoning(text) else text[end_of_reasoning(text) or 0 :].strip()


def opens_reasoning_at_end(text: str) -> bool:
    """Whether a text ends with the beginning of reasoning, as the prompts of some chat templates do."""
    return _OPENS_AT_END.search(text) is not None


def without_reasoning_tags(text: str) -> str:
    """The text without the tags around reasoning, but with the reasoning itself."""
    return _TAG.sub("", text)
