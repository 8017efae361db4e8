"""The plan of micro-batches: every row once, within the budget, whatever the lengths."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from rm_plugins.scoring import micro_batches

LENGTHS = st.lists(st.integers(1, 200), max_size=60)
BUDGETS = st.integers(0, 1_000)


@given(LENGTHS, BUDGETS)
def test_every_row_runs_exactly_once(lengths: list[int], budget: int) -> None:
    rows = [row for batch in micro_batches(lengths, budget) for row in batch]
    assert sorted(rows) == list(range(len(lengths)))


@given(LENGTHS, BUDGETS)
def test_no_micro_batch_exceeds_the_budget_unless_one_row_does(lengths: list[int], budget: int) -> None:
    for batch in micro_batches(lengths, budget):
        assert batch
        assert len(batch) == 1 or len(batch) * max(lengths[row] for row in batch) <= budget


@given(LENGTHS, BUDGETS)
def test_the_longest_come_first_and_equals_keep_their_order(lengths: list[int], budget: int) -> None:
    rows = [row for batch in micro_batches(lengths, budget) for row in batch]
    assert rows == sorted(rows, key=lambda row: (-lengths[row], row))


@given(LENGTHS, BUDGETS)
def test_no_two_neighbours_would_fit_together(lengths: list[int], budget: int) -> None:
    batches = micro_batches(lengths, budget)
    for batch, following in pairwise(batches):
        assert (len(batch) + 1) * lengths[batch[0]] > budget
        assert following


def test_no_rows_are_no_batches() -> None:
    assert micro_batches([], 10) == []
