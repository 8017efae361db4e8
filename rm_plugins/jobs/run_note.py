"""What the note of an interrupted run says, and how it differs from what a resumed run would be, in words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_CHANGED = {
    "columns": "the mapping of columns (--map)",
    "options": "the engine's options",
    "sampling": "the sampling",
}
_REPLACED = {
    "fingerprint": "the reward changed: its settings, its weights, a file that it names, or the code of a function",
    "weights": "the files of the policy changed",
}
_NAMES = {
    "batch_size": "the batch size",
    "engine": "the engine",
    "limit": "the number of rows that are read (--limit)",
    "model": "the policy",
    "source": "the data",
    "spec": "the spec",
    "split": "the split",
    "suite": "the benchmark",
}


def refusal(path: Path, note: str, known: Mapping[str, Any] | None, identity: Mapping[str, Any]) -> str:
    """Why an interrupted run cannot be resumed, and what to do.

    Args:
        path: What it has left.
        note: The name of the note.
        known: What that was made from, according to its note; None where the note is missing or broken.
        identity: What it would be made from now.
    """
    start_again = f"Start again with --overwrite, name another output, or delete {path.name} and the rows in it."
    if known is None:
        return (
            f"{path} holds the rows of an interrupted run, but its note {note} is missing or broken, so it is "
            f"unknown whether they fit. {start_again}"
        )
    names = [name for name in {**identity, **known} if known.get(name) != identity.get(name)]
    # Of another spec or policy, the rest of what identifies it differs as well.
    told = [name for name in names if (name, True) not in {("fingerprint", "spec" in names), ("weights", "model" in names)}]
    changes = "; ".join(_change(name, known.get(name), identity.get(name)) for name in told)
    return f"The interrupted run in {path} cannot be resumed: {changes}. {start_again}"


def _change(name: str, was: Any, now: Any) -> str:
    """How an entry of a note differs from what it would be now, in words."""
    if name in _REPLACED:
        return _REPLACED[name]
    if name in _CHANGED:
        before, after = (value if isinstance(value, dict) else {} for value in (was, now))
        keys = [key for key in {**before, **after} if before.get(key) != after.get(key)]
        return f"{_CHANGED[name]} changed ({'; '.join(_was_and_is(key, before.get(key), after.get(key)) for key in keys)})"
    return _was_and_is(_NAMES.get(name, name), was, now)


def _was_and_is(name: str, was: Any, now: Any) -> str:
    before, after = (f"{value:.200}" if isinstance(value, str) else json.dumps(value)[:200] for value in (was, now))
    if was is None:
        return f"{name} was not set and is {after}"
    return f"{name} was {before} and is not set" if now is None else f"{name} was {before} and is {after}"


def read_row(line: bytes) -> dict[str, Any] | None:
    """The row of a complete line; None for a partial line or anything else."""
    try:
        row = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return row if isinstance(row, dict) else None
