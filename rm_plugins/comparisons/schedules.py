"""Schedules: which answers of a group are compared with each other.

A schedule yields rounds of pairs and gets the result of each round, so that later rounds may depend on earlier ones. A pair names first the
answer that is shown first if only one order is asked. What is drawn depends on the answers themselves (`Draw`), so it is the same in every
batch, order and process.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from itertools import combinations, pairwise
from typing import Literal, TypeAlias, get_args

from rm_plugins.comparisons.connections import Connections

Pair: TypeAlias = tuple[int, int]
Rounds: TypeAlias = Generator[list[Pair], Sequence[float], None]
"""Yields the pairs of each round, and is sent the first player's share of the wins in each, NaN where it is unknown."""

Draw: TypeAlias = Callable[..., bytes]
"""Gives bytes for one or two players that look random and depend only on these players; sorting by them shuffles."""

ScheduleName: TypeAlias = Literal["all-pairs", "circular", "random", "swiss", "knock-out", "reference"]
SCHEDULES: tuple[str, ...] = get_args(ScheduleName)


def least_pairs(schedule: ScheduleName, players: int) -> int:
    """The number of pairs that connect every player of a group with every other one, or each answer with the reference.

    Args:
        schedule: The schedule.
        players: The number of players; with ``reference``, that of the answers.
    """
    return players if schedule == "reference" else max(players - 1, 0)


def rounds_of(
    schedule: ScheduleName, players: int, draw: Draw, *, most: int | None = None, k: int = 2, rounds: int | None = None
) -> Rounds:
    """The rounds of a schedule for a group; ``reference`` is not among them, as its pairs are those of answers and references.

    Args:
        schedule: The schedule.
        players: The number of players, at least 2.
        draw: What chance decides.
        most: The most pairs, at least `least_pairs`. The first pairs of a schedule connect all players; what is left is for players whom
            unknown results left unconnected.
        k: See `circular_pairs` and `random_pairs`.
        rounds: See `swiss_rounds`.
    """
    if schedule == "swiss":
        planned = swiss_rounds(players, draw, most=most, rounds=rounds)
    elif schedule == "knock-out":
        planned = knock_out_rounds(players, draw)
    elif schedule == "random":
        planned = single_round(connecting_first(players, random_pairs(players, draw, k))[:most])
    else:
        reach = players if schedule == "all-pairs" else k
        planned = single_round(connecting_first(players, circular_pairs(players, draw, reach))[:most])
    return reconnected(planned, players, draw, most)


def single_round(pairs: list[Pair]) -> Rounds:
    """A schedule that does not look at results."""
    yield pairs


def reconnected(planned: Rounds, players: int, draw: Draw, most: int | None) -> Rounds:
    """A schedule with further rounds where unknown results left players unconnected: drawn pairs that connect them.

    Args:
        planned: The schedule.
        players: The number of players.
        draw: Draws the further pairs.
        most: The most pairs in all; without it, there are at most as many further pairs as players.
    """
    asked: list[Pair] = []
    known: list[Pair] = []
    pairs = next(planned, [])
    while pairs:
        shares = yield pairs
        asked += pairs
        known += [pair for pair, share in zip(pairs, shares, strict=True) if share == share]  # not NaN
        pairs = next_pairs(planned, shares)
    left = players if most is None else most - len(asked)
    while links := _links(players, draw, asked, known)[: max(left, 0)]:
        left -= len(links)
        shares = yield links
        asked += links
        known += [pair for pair, share in zip(links, shares, strict=True) if share == share]


def next_pairs(rounds: Rounds, shares: Sequence[float]) -> list[Pair]:
    """The next pairs of a schedule after the results of the last ones; none where it ends."""
    try:
        return rounds.send(shares)
    except StopIteration:
        return []


def _links(players: int, draw: Draw, asked: Sequence[Pair], known: Sequence[Pair]) -> list[Pair]:
    """Pairs that were not asked and connect what known results do not connect."""
    connections = Connections(players, known)
    if connections.count == 1:
        return []
    done = {frozenset(pair) for pair in asked}
    drawn = sorted(combinations(range(players), 2), key=lambda pair: draw(*pair))
    return [pair for pair in drawn if frozenset(pair) not in done and connections.connect(*pair)]


def connecting_first(players: int, pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs in an order in which the first ones connect as many players as possible; otherwise as given.

    >>> connecting_first(3, [(0, 1), (1, 0), (1, 2)])
    [(0, 1), (1, 2), (1, 0)]
    """
    connections = Connections(players)
    connecting = [connections.connect(*pair) for pair in pairs]
    return [
        *(pair for pair, connects in zip(pairs, connecting, strict=True) if connects),
        *(pair for pair, connects in zip(pairs, connecting, strict=True) if not connects),
    ]


def circular_pairs(players: int, draw: Draw, k: int) -> list[Pair]:
    """Each player with the `k` that follow it on a circle in drawn order, neighbours first; with a large `k`, all pairs.

    Every player has 2k opponents, and is shown first as often as second. Source: the cyclic designs in
    David, The Method of Paired Comparisons, 1988.

    Args:
        players: The number of players.
        draw: Draws the circle.
        k: How many.
    """
    circle = sorted(range(players), key=draw)
    pairs = []
    for distance in range(1, min(k, players // 2) + 1):
        starts = players // 2 if 2 * distance == players else players  # the opposite player would be met twice
        pairs += [(circle[start], circle[(start + distance) % players]) for start in range(starts)]
    return pairs


def random_pairs(players: int, draw: Draw, k: int) -> list[Pair]:
    """Pairs in drawn order such that all players are connected and each has at least `k` opponents, or all others.

    Args:
        players: The number of players.
        draw: Draws the order of the pairs.
        k: The least number of opponents.
    """
    drawn = sorted(combinations(range(players), 2), key=lambda pair: draw(*pair))
    opponents = [0] * players
    connections = Connections(players)
    chosen: dict[Pair, None] = {}

    def choose(wanted: Callable[[Pair], bool]) -> None:
        for pair in drawn:
            if pair not in chosen and wanted(pair):
                chosen[pair] = None
                for player in pair:
                    opponents[player] += 1

    choose(lambda pair: connections.connect(*pair))
    choose(lambda pair: max(opponents[player] for player in pair) < k)  # first those that bring two players closer to k
    choose(lambda pair: min(opponents[player] for player in pair) < k)
    return list(chosen)


def knock_out_rounds(players: int, draw: Draw) -> Rounds:
    """A knock-out tournament with a drawn order: the winner of each pair meets another winner, until one is left.

    There is one pair fewer than players. An odd one out passes to the next round. Of a tie or an unknown result, the first player of the
    pair advances.

    Args:
        players: The number of players.
        draw: Draws the order.
    """
    standing = sorted(range(players), key=draw)
    while len(standing) > 1:
        pairs = list(zip(standing[::2], standing[1::2], strict=False))
        shares = yield pairs
        winners = [second if share < 0.5 else first for (first, second), share in zip(pairs, shares, strict=True)]
        standing = [*winners, *standing[2 * len(pairs) :]]


def swiss_rounds(players: int, draw: Draw, *, most: int | None = None, rounds: int | None = None) -> Rounds:
    """A Swiss tournament: in each round, players with about the same number of wins meet, and no two players meet twice.

    A last round connects players that are not connected yet.

    Args:
        players: The number of players.
        draw: Decides between equal numbers of wins.
        most: The most pairs; enough of them are kept for connecting all players.
        rounds: The number of rounds; by default log2 of the number of players, rounded up.
    """
    standings = sorted(range(players), key=draw)
    points = [0.0] * players
    met: set[frozenset[int]] = set()
    connections = Connections(players)
    left = players * (players - 1) // 2 if most is None else most
    for _ in range((players - 1).bit_length() if rounds is None else rounds):
        pairs = list(_swiss_pairs(standings, met, connections, left))
        if not pairs:
            break
        left -= len(pairs)
        shares = yield pairs
        for (first, second), share in zip(pairs, shares, strict=True):
            if share == share:  # not NaN
                points[first] += share
                points[second] += 1 - share
        standings.sort(key=lambda player: -points[player])
    if links := [pair for pair in pairwise(standings) if connections.connect(*pair)]:
        yield links


def _swiss_pairs(standings: Sequence[int], met: set[frozenset[int]], connections: Connections, left: int) -> Iterator[Pair]:
    """The pairs of a round, from the first in the standings: each with the next who is free and whom it has not met.

    Args:
        standings: The players, with the most points first.
        met: Who has met; the pairs are added.
        connections: Who is connected; the pairs are added.
        left: The pairs that may still be asked in all; those that connect all players are kept for that.
    """
    free = dict.fromkeys(standings)
    for player in standings:
        if player not in free:
            continue
        del free[player]
        for other in free:
            pair = frozenset((player, other))
            connects = not connections.are_connected(player, other)
            if pair in met or left - (not connects) < connections.count - 1 or left < 1:
                continue
            connections.connect(player, other)
            met.add(pair)
            left -= 1
            del free[other]
            yield player, other
            break
