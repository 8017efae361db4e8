"""Which rows run together. Pure: lengths in, row numbers out."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["micro_batches"]


def micro_batches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Rows grouped by length, so that a padded micro-batch holds at most `max_tokens` tokens.

    Every row appears exactly once; a row longer than the budget runs alone. Longest first, so that the peak memory of a
    call shows in its first micro-batch.

    Args:
        lengths: Tokens per row, [N].
        max_tokens: The budget for rows x longest row of a micro-batch.

    >>> micro_batches([3, 9, 4, 3], max_tokens=10)
    [[1], [2, 0], [3]]
    """
    batches: list[list[int]] = []
    batch: list[int] = []
    longest = 0
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if batch and (len(batch) + 1) * longest > max_tokens:
            batches.append(batch)
            batch = []
        if not batch:
            longest = lengths[row]
        batch.append(row)
    return [*batches, batch] if batch else batches
