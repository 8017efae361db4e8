"""Reads which of several verdicts an answer gives, such as ``[[A]]``, ``[[A>>B]]``, ``Tie`` or ``Yes``."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from rm_plugins.replies.reasoning import after_reasoning

_SHOWN = 160

_MARKED = re.compile(r"\[\[([^\[\]\n]{1,80})\]\]|\\boxed\{(?:\\text\{)?([^{}\n]{1,80})\}")
"""A verdict in double brackets, or in a box as models trained on mathematics write it."""

_LINE = re.compile(
    r"^[ \t>#*_-]*(?:my |the |final |overall )*"
    r"(?:answer|choice|decision|judge?ment|preference|verdict|winner)[ \t*_]*(?::|=|\bis\b:?)([^\r\n]+)",
    re.IGNORECASE | re.MULTILINE,
)
"""The rest of a line such as ``**Final verdict:** A``."""

_AROUND = " \t\r\n\"'`*_.()[]{}<>\u201c\u201d\u2018\u2019"
"""Characters around a verdict that do not belong to it: quotes, markdown, brackets, a full stop."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an answer says.

    Args:
        label: One of the possible verdicts, as the caller writes it; empty if there is an error.
        error: Why there is no verdict; empty if there is one.
    """

    label: str = ""
    error: str = ""


def verdict_in(text: str, verdicts: Collection[str]) -> Verdict:
    """The verdict that a text gives after its reasoning.

    A verdict is in double brackets or a box, on a line such as ``Verdict: A``, or the whole first or last line. Case and spaces do not
    matter. A verdict may be repeated. Words in a sentence are not read: "A is better than B" has no verdict.

    Args:
        text: The text, perhaps with reasoning in ``<think>...</think>`` before the answer.
        verdicts: The possible verdicts.

    Returns:
        The verdict; an error if there is none, an unknown one, several different ones, or one in the reasoning only.

    >>> verdict_in("Both are short. My final verdict is [[a >> b]].", ["A>>B", "B>>A", "A=B"])
    Verdict(label='A>>B', error='')
    >>> verdict_in("<think>[[A]] at first sight</think>**B**", ["A", "B"]).label
    'B'
    >>> verdict_in("[[A]] or [[B]]", ["A", "B"]).error
    "the answer has two different verdicts, 'A' and 'B'"
    """
    if alike := alike_verdicts(verdicts):
        return Verdict(
            error=f"the verdicts {alike[0]!r} and {alike[1]!r} differ in case or punctuation only, so a text cannot tell them apart"
        )
    answer = after_reasoning(text)
    if answer is None:
        return Verdict(error="the reasoning does not end, so there is no answer after it")
    if not answer:
        return Verdict(error=f"there is no answer{' after the reasoning' if text.strip() else ''}")
    named = {_folded(verdict): verdict for verdict in verdicts}
    if (whole := _folded(answer)) in named:
        return Verdict(named[whole])
    marked, lines, bare = _pieces(answer)
    given = list(dict.fromkeys(verdict for verdict in (*marked, *lines, *bare) if verdict in named))
    allowed = ", ".join(map(repr, verdicts))
    if len(given) > 1:
        return Verdict(error=_several([named[verdict] for verdict in given]))
    if strange := next((written for verdict, written in marked.items() if verdict not in named), ""):
        return Verdict(error=f"the answer has the verdict {strange!r}, which is not one of {allowed}")
    if given and given[0] in (*marked, *lines, bare[0], bare[-1]):
        return Verdict(named[given[0]])
    reasoned = text[: text.rfind(answer)]
    where = ", only its reasoning has one" if any(_folded(a or b) in named for a, b in _MARKED.findall(reasoned)) else ""
    shown = answer if len(answer) <= _SHOWN else f"...{answer[-_SHOWN:]}"
    return Verdict(error=f"the answer has no verdict{where}; one of {allowed} was expected, not {shown!r}")


def alike_verdicts(verdicts: Collection[str]) -> tuple[str, str] | None:
    """Two verdicts that differ only in case, spaces or punctuation, so that `verdict_in` cannot tell them apart; None if none do.

    One that consists of punctuation cannot be read either, and is given twice.

    >>> alike_verdicts(["yes", "no", "Yes."]), alike_verdicts(["yes", "no"]), alike_verdicts(["*", "?"])
    (('yes', 'Yes.'), None, ('*', '*'))
    """
    spelt: dict[str, str] = {"": ""}
    for verdict in dict.fromkeys(verdicts):
        if (other := spelt.setdefault(_folded(verdict), verdict)) != verdict:
            return other or verdict, verdict
    return None


def contradiction(text: str, verdicts: Collection[str], label: str = "") -> str:
    """What is wrong with an answer that gives several different verdicts; empty if it gives one or none.

    Args:
        text: The answer.
        verdicts: The possible verdicts.
        label: The verdict with which it begins, if that is known.

    >>> contradiction("Yes.\\nVerdict: No", ["Yes", "No"], "Yes"), contradiction("Yes, no error.", ["Yes", "No"], "Yes")
    ("the answer has two different verdicts, 'Yes' and 'No'", '')
    """
    named = {} if alike_verdicts(verdicts) else {_folded(verdict): verdict for verdict in verdicts}
    marked, lines, bare = _pieces(text)
    given = [named[verdict] for verdict in (*marked, *lines, *bare) if verdict in named]
    labels = list(dict.fromkeys([label, *given] if label else given))
    return _several(labels) if len(labels) > 1 else ""


def _pieces(answer: str) -> tuple[dict[str, str], list[str], list[str]]:
    """Where an answer may have a verdict, folded: what is marked (with what is written there), lines that announce it, and all lines."""
    marked = {_folded(first or second): (first or second).strip() for first, second in _MARKED.findall(answer)}
    lines = [_folded(rest) for rest in _LINE.findall(_MARKED.sub("", answer))]
    return marked, lines, [_folded(line) for line in answer.splitlines() if line.strip()]


def _several(labels: Sequence[str]) -> str:
    return f"the answer has {'two' if len(labels) == 2 else len(labels)} different verdicts, {' and '.join(map(repr, labels))}"


def _folded(verdict: str) -> str:
    """Equal for spellings of one verdict: without case, spaces, and characters around it."""
    bare = verdict.strip()
    stripped = bare.strip(_AROUND)
    if bare.endswith((">", "<")) or bare.startswith((">", "<")):  # as in "A>"
        stripped = bare
    return re.sub(r"\s*([<>=]+)\s*", r"\1", " ".join(stripped.split())).casefold()
