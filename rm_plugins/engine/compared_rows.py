"""Chooses the rows whose scores from shared prefixes are compared with those of whole rows. Pure: a plan in, row numbers out."""

from __future__ import annotations

from collections.abc import Container, Hashable, Mapping, Sequence

from rm_plugins.engine.lengths import LengthClasses
from rm_plugins.engine.plan import Plan, Segment


def unchecked_ways(
    plan: Plan, rows: Sequence[Sequence[int]], classes: LengthClasses, checked: Container[Hashable]
) -> dict[Hashable, list[int]]:
    """The ways of sharing prefixes in a plan that have not been checked yet, each with the rows that are computed that way.

    A way consists of whether rows are packed, whether prefixes are padded, and of the length classes of a prefix and its row.

    Args:
        plan: The plan.
        rows: Token ids per row.
        classes: The model's length classes.
        checked: The ways that have been checked.
    """
    unchecked: dict[Hashable, list[int]] = {}
    packs, pads = plan.packs, plan.pads_prefixes
    for segment in _continued(plan):
        way = ("sharing", packs, pads, *(classes.of(size) for size in (segment.start, len(rows[segment.row]))))
        if way not in checked:
            unchecked.setdefault(way, []).append(segment.row)
    return unchecked


def compared_rows(
    plan: Plan, rows: Sequence[Sequence[int]], unchecked: Mapping[Hashable, Sequence[int]], max_tokens: int
) -> list[int]:
    """Rows of a plan with shared prefixes to check by also running them whole: about a micro-batch, at least one for each way.

    Args:
        plan: The plan.
        rows: Token ids per row.
        unchecked: The ways to check, as `unchecked_ways` returns them.
        max_tokens: The budget of a micro-batch; longer rows are not compared.
    """
    fitting = [segment.row for segment in _continued(plan)]
    fitting = [row for row in fitting if len(rows[row]) <= max_tokens]
    step = -(-sum(len(rows[row]) for row in fitting) // max_tokens)
    # The rows with the shortest prefix have the most padding before their continuation.
    stages = [stage for stage in plan.walk() if stage.continuations]
    uneven = max(stages, key=lambda stage: len({segment.stop for segment in stage.segments}))
    shortest = min(uneven.segments, key=lambda segment: segment.stop)
    each = {min(of_way, key=lambda row: len(rows[row])) for of_way in unchecked.values()}
    return sorted({*fitting[:: max(1, step)]}.union({shortest.row, *each} & {*fitting}))


def _continued(plan: Plan) -> list[Segment]:
    """The segments that end a row and continue a cached prefix."""
    return [segment for stage in plan.walk() if not stage.continuations for segment in stage.segments if segment.start]
