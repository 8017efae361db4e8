"""Which answers are connected by comparisons, so that their strengths have one scale."""

from __future__ import annotations

from collections.abc import Iterable


class Connections:
    """Players, and which of them are connected by the pairs so far (a disjoint-set forest).

    Args:
        players: The number of players.
        pairs: Pairs of players to connect.

    >>> connections = Connections(4, [(0, 2)])
    >>> connections.count, connections.are_connected(0, 2), connections.parts()
    (3, True, [[0, 2], [1], [3]])
    """

    def __init__(self, players: int, pairs: Iterable[tuple[int, int]] = ()) -> None:
        self._parents = list(range(players))
        self.count = players
        for one, other in pairs:
            self.connect(one, other)

    def _root(self, player: int) -> int:
        while self._parents[player] != player:
            self._parents[player] = self._parents[self._parents[player]]
            player = self._parents[player]
        return player

    def are_connected(self, one: int, other: int) -> bool:
        """Whether there is a chain of pairs between two players."""
        return self._root(one) == self._root(other)

    def connect(self, one: int, other: int) -> bool:
        """Add a pair; returns whether its players were not connected before."""
        roots = sorted((self._root(one), self._root(other)))
        if roots[0] == roots[1]:
            return False
        self._parents[roots[1]] = roots[0]
        self.count -= 1
        return True

    def parts(self) -> list[list[int]]:
        """The players of each connected part, in ascending order."""
        parts: dict[int, list[int]] = {}
        for player in range(len(self._parents)):
            parts.setdefault(self._root(player), []).append(player)
        return list(parts.values())
