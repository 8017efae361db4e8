"""What a job counts of a reward's work, and its speed in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_COUNTED = ("tokens", "seconds", "rows", "duplicates", "cached", "calls")
_SHARES = {"duplicates": "duplicates", "cached": "from the cache"}
"""What is a share of the rows, and what it is called."""


def counted_work(metadata: Mapping[str, Any]) -> dict[str, float]:
    """The entries of `rm_plugins.Scores.metadata` that a job sums."""
    return {name: metadata[name] for name in _COUNTED if name in metadata}


def speed(work: Mapping[str, float], seconds: float | None = None) -> str:
    """The speed of a reward; empty where it counts neither tokens nor questions.

    Args:
        work: The sums of `counted_work`.
        seconds: The time that it took, if it is not the sum of ``seconds``.

    >>> speed({"tokens": 900, "rows": 4, "duplicates": 2, "seconds": 3.0})
    '300 tokens/s, 50% duplicates'
    >>> speed({"calls": 3, "cached": 5, "seconds": 2.0})
    '1.5 questions/s'
    """
    seconds = seconds or work.get("seconds")
    if not seconds:
        return ""
    said = [f"{work['tokens'] / seconds:,.0f} tokens/s"] if work.get("tokens") else []
    if work.get("calls"):
        said.append(f"{work['calls'] / seconds:,.1f} questions/s")
    elif rows := work.get("rows"):  # with a judge, `cached` counts questions
        said += [f"{work[name] / rows:.0%} {word}" for name, word in _SHARES.items() if work.get(name)]
    return ", ".join(said)
