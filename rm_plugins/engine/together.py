"""Agreement of the processes that share a model: its layers are split over them, so all must run the same rows at the same time."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from rm_plugins.errors import ScoringError


def check_same_rows(rows: Sequence[Sequence[int]], source: str) -> None:
    """Refuse to run a shared model if the processes were given different rows; all of them then fail.

    Args:
        rows: Token ids per row.
        source: The name of the model in messages.

    Raises:
        ScoringError: Another process was given other rows.
    """
    digest = hashlib.sha256(str([list(row) for row in rows]).encode()).hexdigest()
    others = _of_all((len(rows), digest))
    if len(set(others)) > 1:
        counts = ", ".join(str(count) for count, _ in others)
        raise ScoringError(
            f"The model {source} is split over {len(others)} processes (tp_plan), which must all score the same samples, but were given "
            f"different ones ({counts} rows). Give each process the same samples. In a trainer, whose processes have samples of their own, "
            "spread the model with `device_map`, or serve it and name the server's URL."
        )


def smallest_everywhere(number: int) -> int:
    """The smallest of a number that each process gives, so that all plan the same micro-batches."""
    return int(min(_of_all(number)))


def _of_all(value: Any) -> list[Any]:
    """What each process gives, by rank."""
    import torch.distributed as dist

    given: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(given, value)
    return given
