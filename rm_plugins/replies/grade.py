"""A number that an answer gives, or why it gives none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Grade:
    """What an answer is worth.

    Args:
        value: The number; None if there is an error.
        details: Named extras, such as ``label_mass``.
        error: Why there is no number; empty if there is one.
    """

    value: float | None = None
    details: Mapping[str, float] = field(default_factory=dict)
    error: str = ""
