"""What a run has written so far: a line of JSON for each thing that happened. Needs nothing but Python."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeAlias

__all__ = ["Event", "read_events"]

Event: TypeAlias = dict[str, Any]
"""``part``, ``time``, and ``kind``: ``machine``, ``started``, ``row``, ``ended`` or ``failed``, with what belongs to each."""


def read_events(path: Path) -> list[Event]:
    """The lines of a file; one that was cut off is left out."""
    events = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            events.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return events
