"""Words for what is shown: distinct names for rewards side by side, and counts with their noun."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path


def counted(number: int, noun: str) -> str:
    """A number with its noun, in the plural unless the number is 1.

    >>> counted(1, "prompt"), counted(2_000, "prompt")
    ('1 prompt', '2,000 prompts')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def distinct_labels(labels: Sequence[str], sources: Sequence[str]) -> list[str]:
    """Make labels distinct: equal names of model folders get as many parent folders as needed, others a number.

    Args:
        labels: The labels of the rewards, [N].
        sources: What each reward was loaded from, [N]; an empty string if this is not known.

    >>> distinct_labels(["checkpoint-500", "checkpoint-500", "f", "f"], ["a/checkpoint-500", "b/checkpoint-500", "m:f", "n:f"])
    ['a/checkpoint-500', 'b/checkpoint-500', 'f', 'f (2)']
    """
    paths = [Path(os.path.abspath(source)) for source in sources]
    names: list[str] = []
    for label, path in zip(labels, paths, strict=True):
        others = {other for name, other in zip(labels, paths, strict=True) if name == label} - {path}
        same = max((_same_end(path, other) for other in others), default=0)
        name = "/".join(path.parts[-1 - same :]) if path.name == label else label
        unused, number = name, 2
        while unused in names:
            unused, number = f"{name} ({number})", number + 1
        names.append(unused)
    return names


def _same_end(path: Path, other: Path) -> int:
    """The number of trailing parts that two paths have in common."""
    same = 0
    for one, another in zip(reversed(path.parts), reversed(other.parts), strict=False):
        if one != another:
            break
        same += 1
    return same
