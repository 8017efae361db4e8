"""Which rows are packed into one sequence, within a token budget."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from rm_plugins.engine.packing import Packing
from rm_plugins.rendering.tokenize import common_beginning

_OVER_BUDGET = 1.25
"""A pack may exceed the budget by this factor, because short common beginnings are counted once but not always shared."""

Rows = Sequence[Sequence[int]]
Pack = tuple[list[int], Packing]


def packs_of(rows: Rows, budget: int, packing_of: Callable[[Rows], Packing], *, share_prefixes: bool) -> Iterator[Pack]:
    """Rows that run together, by number: neighbours in the order of their tokens, because these share the longest prefixes.

    Args:
        rows: Token ids per row.
        budget: About how many tokens a pack has at most, unless it has a single row.
        packing_of: Packs rows.
        share_prefixes: Whether it stores shared prefixes once.
    """

    def packings(pack: list[int]) -> Iterator[Pack]:
        """The pack, or its halves if it is too long because not every common prefix is shared, as with many turns of one dialogue."""
        packing = packing_of([rows[row] for row in pack])
        if len(pack) == 1 or packing.ids.shape[1] <= _OVER_BUDGET * budget:
            yield pack, packing
        else:
            middle = len(pack) // 2
            yield from packings(pack[:middle])
            yield from packings(pack[middle:])

    pack: list[int] = []
    tokens = 0
    for row in sorted(range(len(rows)), key=lambda row: tuple(rows[row])):
        new = len(rows[row]) - (common_beginning(rows[pack[-1]], rows[row]) if pack and share_prefixes else 0)
        if pack and tokens + new > budget:
            yield from packings(pack)
            pack, tokens, new = [], 0, len(rows[row])
        pack.append(row)
        tokens += new
    yield from packings(pack)
