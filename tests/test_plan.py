"""The plan: every row once and whole, within the budget, with shared beginnings where they pay."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from rm_plugins.engine.plan import CONTEXT_FACTOR, MAX_LEVELS, Costs, Stage, micro_batches, plan_batches

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


COSTS = Costs(launch=20, read=0.02)


@st.composite
def rows_of_tokens(draw: st.DrawFn) -> list[list[int]]:
    """Rows that branch off each other at any depth, with duplicates, and with rows that are prefixes of others."""
    rows = [[1]]
    for _ in range(draw(st.integers(0, 25))):
        begun = draw(st.sampled_from(rows))
        kept = draw(st.integers(0, len(begun)))
        rows.append([*begun[:kept], *draw(st.lists(st.integers(0, 3), max_size=30))] or [0])
    return draw(st.permutations(rows))


class TestPlan:
    @given(
        rows_of_tokens(),
        st.integers(1, 120),
        st.sampled_from([COSTS, Costs(0, 0), Costs(1e9, 0)]),
        st.booleans(),
        st.booleans(),
    )
    def test_every_different_row_is_run_once_from_its_first_token_to_its_last(
        self, rows: list[list[int]], budget: int, costs: Costs, shares: bool, packs: bool
    ) -> None:
        plan = plan_batches(rows, budget, costs, share_prefixes=shares, packs=packs)
        run: dict[int, list[int]] = {}

        def follow(stages: Sequence[Stage], before: list[list[int]]) -> None:
            for stage in stages:
                begun = []
                for segment in stage.segments:
                    beginning = before[segment.parent] if segment.parent is not None else []
                    assert len(beginning) == segment.start < segment.stop
                    begun.append([*beginning, *rows[segment.row][segment.start : segment.stop]])
                    if not stage.continuations:
                        assert segment.row not in run
                        run[segment.row] = begun[-1]
                follow(stage.continuations, begun)

        follow(plan.stages, [])
        assert {row: tuple(tokens) for row, tokens in run.items()} == {row: tuple(rows[row]) for row in set(plan.computed_as)}
        assert [rows[row] for row in plan.computed_as] == rows
        assert len(run) == len({tuple(row) for row in rows})
        assert len(plan.computed_as) == len(rows)

    @given(rows_of_tokens(), st.integers(1, 120), st.sampled_from([COSTS, Costs(0, 0)]), st.booleans())
    def test_the_budget_is_kept(self, rows: list[list[int]], budget: int, costs: Costs, shares: bool) -> None:
        plan = plan_batches(rows, budget, costs, share_prefixes=shares)
        for batch in plan.batches:
            assert batch.padded_tokens <= budget or len(batch.segments) == 1
            held = len(batch.segments) * max(segment.stop for segment in batch.segments)
            assert held <= CONTEXT_FACTOR * budget or len(batch.segments) == 1 or max(s.start for s in batch.segments) == 0
        for stage in plan.walk():
            cached = len(stage.segments) * max(segment.stop for segment in stage.segments)
            assert not stage.continuations or cached <= CONTEXT_FACTOR * budget or len(stage.segments) == 1

    @given(rows_of_tokens(), st.integers(1, 120), st.booleans())
    def test_sharing_never_costs_more_than_not_sharing(self, rows: list[list[int]], budget: int, packs: bool) -> None:
        longest = max(map(len, rows))
        shared, plain = (
            plan_batches(rows, max(budget, longest), COSTS, share_prefixes=True, packs=packs),
            plan_batches(rows, max(budget, longest), COSTS, share_prefixes=False),
        )
        assert shared.cost(COSTS) <= plain.cost(COSTS)
        assert shared.tokens <= plain.tokens

    def test_levels(self) -> None:
        system, prompts = [1] * 50, ([2] * 40, [3] * 30)
        rows = [[*system, *prompt, 4 + number] for prompt in prompts for number in range(3)]
        plan = plan_batches(rows, 1_000, COSTS, share_prefixes=True)
        (first,) = plan.stages
        (second,) = first.continuations
        (third,) = second.continuations
        assert [len(segment) for segment in first.segments] == [50]
        assert [len(segment) for segment in second.segments] == [40, 30]
        assert [len(segment) for segment in third.segments] == [1] * 6
        assert sorted(segment.parent for segment in third.segments if segment.parent is not None) == [0, 0, 0, 1, 1, 1]
        assert plan.tokens == 50 + 40 + 30 + 6
        assert plan.pads_prefixes

    def test_beginnings_of_different_lengths_run_apart_and_are_continued_together(self) -> None:
        rows = [[prompt, *range(10, 10 + length), end] for prompt, length in ((1, 200), (2, 40)) for end in (5, 6, 7)]
        (first,) = plan_batches(rows, 1_000, COSTS, share_prefixes=True).stages
        assert [[len(segment) for segment in batch.segments] for batch in first.batches] == [[201], [41]]
        (second,) = first.continuations
        assert [len(batch.segments) for batch in second.batches] == [6]
        assert sorted((segment.row, segment.parent) for segment in second.segments) == [
            (0, 0),
            (1, 0),
            (2, 0),
            (3, 1),
            (4, 1),
            (5, 1),
        ]

    def test_what_a_micro_batch_reads_is_limited_as_well(self) -> None:
        rows = [[*range(90), 100 + number] for number in range(50)]
        plan = plan_batches(rows, 100, COSTS, share_prefixes=True)
        assert plan.shares_prefixes
        assert max(len(batch.segments) for batch in plan.batches) == CONTEXT_FACTOR * 100 // 91

    def test_what_a_stage_caches_is_limited(self) -> None:
        rows = [[prompt, *range(100, 160), end] for prompt in range(40) for end in (1, 2, 3)]
        stages = [stage for stage in plan_batches(rows, 130, COSTS, share_prefixes=True).stages if stage.continuations]
        assert len(stages) > 1
        assert max(61 * len(stage.segments) for stage in stages) <= CONTEXT_FACTOR * 130

    def test_packs_are_filled_with_rows_of_any_length(self) -> None:
        rows = [[prompt, *range(10, 60), *range(100, 100 + length)] for prompt in (1, 2) for length in (1, 30, 4, 60, 9)]
        loners = [list(range(200, 230)), list(range(300, 310))]
        plan = plan_batches([*rows, *loners], 150, COSTS, share_prefixes=True, packs=True)
        first, second = plan.stages
        assert [[len(segment) for segment in batch.segments] for batch in first.batches] == [[51, 51]]
        (ends,) = first.continuations
        assert [[(segment.parent, len(segment)) for segment in batch.segments] for batch in ends.batches] == [
            [(0, 1), (0, 4), (0, 9), (0, 30), (0, 60), (1, 1), (1, 4), (1, 9), (1, 30)],
            [(1, 60)],
        ]
        assert plan.packs
        assert not plan.pads_prefixes
        assert not any(batch.is_packed for batch in second.batches)  # they share nothing

    def test_a_level_that_does_not_pay_is_left_out(self) -> None:
        prompt = list(range(50))
        rows = [[*prompt, half, half, half, end] for half in (60, 61) for end in (1, 2, 3)]
        (first,) = plan_batches(rows, 1_000, COSTS, share_prefixes=True).stages
        (second,) = first.continuations
        assert len(second.segments) == 6

    def test_sharing_that_does_not_pay(self) -> None:
        rows = [[1, 2, number] for number in range(5)]  # eight tokens are saved, a micro-batch more costs twenty
        assert not plan_batches(rows, 1_000, COSTS, share_prefixes=True).shares_prefixes
        assert plan_batches(rows, 1_000, Costs(launch=5, read=0.02), share_prefixes=True).shares_prefixes
        assert not plan_batches(rows, 1_000, Costs(launch=0, read=1.0), share_prefixes=True).shares_prefixes

    def test_a_row_that_is_anothers_prefix_still_ends_by_itself(self) -> None:
        rows = [list(range(60)), list(range(61)), list(range(62))]
        plan = plan_batches(rows, 1_000, COSTS, share_prefixes=True)
        assert plan.shares_prefixes
        ends = [segment for stage in plan.walk() if not stage.continuations for segment in stage.segments]
        assert sorted(segment.row for segment in ends) == [0, 1, 2]
        assert min(map(len, ends)) >= 1

    def test_a_row_beyond_the_budget_runs_in_pieces(self) -> None:
        rows = [list(range(1_000)), [7, 8]]
        plan = plan_batches(rows, 300, COSTS, share_prefixes=True)
        sizes = [[len(segment) for segment in batch.segments] for batch in plan.batches]
        assert sizes == [[300], [300], [300], [100], [2]]
        assert [
            len(segment) for batch in plan_batches(rows, 300, COSTS, share_prefixes=False).batches for segment in batch.segments
        ] == [1_000, 2]

    def test_deep_nesting_ends(self) -> None:
        rows = [list(range(length)) for length in range(30, 3_000, 30)]
        plan = plan_batches(rows, 4_096, Costs(launch=1, read=0), share_prefixes=True)
        depth, stages = 0, list(plan.stages)
        while stages:
            depth, stages = depth + 1, [below for stage in stages for below in stage.continuations]
        assert 1 < depth <= MAX_LEVELS + 1

    def test_no_rows(self) -> None:
        plan = plan_batches([], 10, COSTS, share_prefixes=True)
        assert (plan.stages, plan.computed_as, plan.tokens) == ((), [], 0)
