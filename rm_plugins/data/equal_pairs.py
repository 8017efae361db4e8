"""Pairs that are equal after rendering, even if their texts differ."""

from __future__ import annotations

from collections.abc import Sequence

CAUSE = (
    "such as an answer's reasoning, which many chat templates leave out. Use a template that keeps it, set its switch in a column "
    "chat_template_kwargs"
)
"""Why different texts can be rendered alike, and what to do."""


def equal_pairs(token_ids: Sequence[Sequence[int]], pairs: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The pairs of a row whose two samples have equal token ids, so that no model can tell them apart.

    Args:
        token_ids: Those of each of the row's samples, [N].
        pairs: Winner and loser, [M].

    >>> equal_pairs([[1, 2], [1, 2], [1, 3]], [(0, 1), (0, 2)])
    [(0, 1)]
    """
    return [(winner, loser) for winner, loser in pairs if token_ids[winner] == token_ids[loser]]
