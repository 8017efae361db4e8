"""A finding of an evaluation: `Finding`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that the reader should know first.

    Args:
        kind: Such as ``length``, ``chance``, ``calibration``, ``ties``, ``abstained``, ``section``, ``format``,
            ``trained_on``, ``members``, ``few`` or ``few_prompts``.
        severity: ``alarm`` if the reward should not be used as it is, ``warning`` if something needs attention, else ``note``.
        lead: The topic in a few words; empty if `text` is complete.
        text: What was measured, with numbers, and what to do.
        numbers: The same numbers, by name.
    """

    kind: str
    severity: Literal["alarm", "warning", "note"]
    lead: str
    text: str
    numbers: Mapping[str, float]

    @property
    def message(self) -> str:
        """Lead and text as a sentence."""
        return f"{self.lead}: {self.text}" if self.lead else self.text

    @property
    def sentence(self) -> str:
        """The message with its severity."""
        return f"{self.severity}: {self.message}"

    @property
    def rank(self) -> int:
        """0 for an alarm, more for what is less urgent."""
        return ("alarm", "warning", "note").index(self.severity)
