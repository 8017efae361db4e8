"""Compares mathematical answers with the package math-verify.

The time limits of math-verify are alarms: only a main thread can set them, and they interfere with other alarms. This module runs in a
`rm_plugins.providers.rules.limited_process.LimitedProcess` instead.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

_TAG = re.compile(r"</?[A-Za-z]\w*>")
_BETWEEN_BOXES = re.compile(r"\}\s*+\$?+\s*+(?:,?+\s*+(?:and|or)|[,;])?+\s*+\$?+\s*+")
_MARKED = re.compile(r"\$|\\\(|\\\[|\\boxed")
_BARE = re.compile(
    r"(?:\\text\w*\s*\{[^{}]*\}|\\[A-Za-z]+|\\[^A-Za-z\n]|(?<![A-Za-z])[A-Za-z]{1,2}(?![A-Za-z])|[^A-Za-z\\:\n])++"
)
"""Mathematics only: no words, and no colon, which would follow a word."""


def comparing(_: object) -> Callable[[tuple[str, str]], bool | None]:
    """Makes the function that compares an answer with a gold answer; it returns None where the gold answer is not mathematical."""
    _comparison("1", "1")  # imports what it needs
    return lambda pair: _comparison(*pair)


def _comparison(gold: str, answer: str) -> bool | None:
    from math_verify import verify  # type: ignore[import-untyped]

    expected = _parsed(gold)
    return bool(verify(expected, _parsed(answer), timeout_seconds=None)) if expected else None


@lru_cache(maxsize=256)  # the completions of a prompt share their gold answer
def _parsed(text: str) -> list[Any]:
    from math_verify import parse

    answers: list[Any] = parse(_presented(text), _extraction(), parsing_timeout=None)
    return answers


@cache
def _extraction() -> tuple[Any, ...]:
    from math_verify import ExprExtractionConfig, LatexExtractionConfig

    return LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()


def _presented(text: str) -> str:
    """A text in which math-verify finds the answer that a person would find.

    It finds the last box, else what follows the word "answer", else the last formula or number. In bare mathematics it would find a
    number in the middle, such as 2 in ``2\\sqrt{3}``, and after ``####`` it may prefer an earlier "answer".
    """
    text = _TAG.sub(" ", _last_answer(text)).strip()  # a number right beside a tag would not be found
    if "\\boxed" in text:
        return _last_boxes(text)
    last_line = text.rpartition("\n")[2]
    if "####" in last_line:  # the end of a solution in GSM8K
        text = last_line.rpartition("####")[2]
    if not _MARKED.search(text):
        text = text.replace("`", " ").strip("*_ ")  # Markdown's marks
    return f"${text}$" if not _MARKED.search(text) and _BARE.fullmatch(text) else text


def _last_answer(text: str) -> str:
    """The contents of the last ``<answer>``; the whole text if there is none."""
    answer, end = text, 0
    while (begin := text.find("<answer>", end)) >= 0 and (close := text.find("</answer>", begin)) >= 0:
        answer, end = text[begin + len("<answer>") : close], close + len("</answer>")
    return answer


def _last_boxes(text: str) -> str:
    """The last box, with those listed right before it; math-verify treats all boxes of a line as one answer."""
    last = text.rfind("\\boxed")
    answers = [text[last:]]
    while (before := text.rfind("\\boxed", 0, last)) >= 0:
        end = text.rfind("}", before, last)
        if end < 0 or not _BETWEEN_BOXES.fullmatch(text, end, last):
            break
        answers.append(text[before : end + 1])
        last = before
    return ", ".join(reversed(answers))
