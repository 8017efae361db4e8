"""Schedules: which answers meet, within a budget, and that what is drawn depends on the answers only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from hashlib import blake2b

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rm_plugins.comparisons.connections import Connections
from rm_plugins.comparisons.schedules import Pair, Rounds, ScheduleName, least_pairs, rounds_of

WITHIN_A_GROUP: tuple[ScheduleName, ...] = ("all-pairs", "circular", "random", "swiss", "knock-out")


def drawn(seed: int) -> Callable[..., bytes]:
    return lambda *players: blake2b(repr((seed, players)).encode(), digest_size=8).digest()


def by_number(pair: Pair) -> float:
    """The answer with the higher number wins."""
    return float(pair[0] > pair[1])


def played(rounds: Rounds, result: Callable[[Pair], float] = by_number) -> list[list[Pair]]:
    """The pairs of each round."""
    done = []
    try:
        pairs = next(rounds)
        while True:
            done.append(pairs)
            pairs = rounds.send([result(pair) for pair in pairs])
    except StopIteration:
        return done


def flat(rounds: Sequence[Sequence[Pair]]) -> list[Pair]:
    return [pair for pairs in rounds for pair in pairs]


@pytest.mark.parametrize("schedule", WITHIN_A_GROUP)
@given(
    players=st.integers(2, 17),
    extra=st.none() | st.integers(0, 30),
    seed=st.integers(0, 5),
    k=st.integers(1, 4),
    rounds=st.none() | st.integers(1, 4),
    results=st.lists(st.sampled_from([0.0, 0.5, 1.0, float("nan")]), min_size=1),
)
def test_every_schedule_connects_all_answers_within_its_budget(
    schedule: ScheduleName, players: int, extra: int | None, seed: int, k: int, rounds: int | None, results: list[float]
) -> None:
    least = least_pairs(schedule, players)
    most = None if extra is None else least + extra
    given_results = iter(results * 1_000)
    keys = {"k": k, "rounds": rounds, "most": most}
    planned = flat(played(rounds_of(schedule, players, drawn(seed), **keys)))  # type: ignore[arg-type]
    pairs = flat(played(rounds_of(schedule, players, drawn(seed), **keys), lambda pair: next(given_results)))  # type: ignore[arg-type]
    assert len(pairs) <= (len(planned) + players if most is None else most)
    assert len({frozenset(pair) for pair in pairs}) == len(pairs), "a pair is asked twice"
    assert all(0 <= player < players for pair in pairs for player in pair)
    assert Connections(players, pairs).count == 1


@given(players=st.integers(2, 12), seed=st.integers(0, 5))
def test_all_pairs_are_all_pairs(players: int, seed: int) -> None:
    (pairs,) = played(rounds_of("all-pairs", players, drawn(seed)))
    assert len(pairs) == players * (players - 1) // 2
    assert {frozenset(pair) for pair in pairs} == {frozenset((a, b)) for a in range(players) for b in range(a)}


@given(players=st.integers(3, 15), k=st.integers(1, 4))
def test_a_circle_is_balanced(players: int, k: int) -> None:
    (pairs,) = played(rounds_of("circular", players, drawn(0), k=k))
    opponents = Counter(player for pair in pairs for player in pair)
    assert set(opponents.values()) == {min(2 * k, players - 1)}
    if 2 * k < players:
        assert set(Counter(first for first, _ in pairs).values()) == {k}, "each is shown first as often as second"


@given(players=st.integers(2, 15), k=st.integers(1, 5), seed=st.integers(0, 3))
def test_random_pairs_give_each_answer_k_opponents(players: int, k: int, seed: int) -> None:
    (pairs,) = played(rounds_of("random", players, drawn(seed), k=k))
    opponents = Counter(player for pair in pairs for player in pair)
    assert min(opponents.values()) >= min(k, players - 1)


@given(players=st.integers(2, 33), seed=st.integers(0, 3))
def test_the_best_wins_a_knock_out_and_meets_log2_others(players: int, seed: int) -> None:
    rounds = played(rounds_of("knock-out", players, drawn(seed)))
    assert len(rounds) == (players - 1).bit_length()
    assert len(flat(rounds)) == players - 1
    assert players - 1 in rounds[-1][0]


def test_in_a_swiss_tournament_equals_meet() -> None:
    rounds = played(rounds_of("swiss", 16, drawn(1)))
    assert [len(pairs) for pairs in rounds] == [8, 8, 8, 8]
    points = np.zeros(16)
    for number, pairs in enumerate(rounds):
        gaps = [abs(points[first] - points[second]) for first, second in pairs]
        assert max(gaps) <= 1, f"round {number + 1}"
        for pair in pairs:
            points[max(pair)] += 1


def test_other_seeds_draw_other_pairs_and_the_same_seed_the_same() -> None:
    for schedule in ("circular", "random", "swiss", "knock-out"):
        one, again, other = (flat(played(rounds_of(schedule, 12, drawn(seed), k=1))) for seed in (1, 1, 2))
        assert one == again != other


@pytest.mark.parametrize("schedule", ["circular", "random", "swiss", "knock-out"])
@given(
    players=st.integers(4, 12), seed=st.integers(0, 9), lost=st.sets(st.frozensets(st.integers(0, 11), min_size=2, max_size=2))
)
def test_further_pairs_connect_what_unknown_results_left_unconnected(
    schedule: ScheduleName, players: int, seed: int, lost: set[frozenset[int]]
) -> None:
    rounds = rounds_of(schedule, players, drawn(seed), k=1, most=players * players)
    pairs = flat(played(rounds, lambda pair: float("nan") if frozenset(pair) in lost else by_number(pair)))
    known = [pair for pair in pairs if frozenset(pair) not in lost]
    possible = [(a, b) for a in range(players) for b in range(a) if frozenset((a, b)) not in lost]
    assert Connections(players, known).count == Connections(players, possible).count
