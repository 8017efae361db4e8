"""Which samples are compared with each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import rm_plugins as rm
from rm_plugins.errors import DataError, ScoringError, SpecError
from rm_plugins.evaluation import evaluate
from rm_plugins.groups import RowGroups, groups_of, rows_as_groups
from rm_plugins.providers.combinators.parts import compares_samples, groupings
from rm_plugins.spec import component
from rm_plugins.transforms import Chain, RankInGroup, Scale, ZScoreInGroup
from tests.groups.grouped_rewards import RUNNING, Shorter, length

CONVERSATION = [{"role": "user", "content": "Q"}]


def samples(*prompts: Any, **columns: Sequence[Any]) -> list[rm.Sample]:
    return [
        rm.Sample(prompt, str(row), {name: values[row] for name, values in columns.items()})
        for row, prompt in enumerate(prompts)
    ]


class Refusing(rm.Transform):
    """Refuses samples without an id, but does not say that it groups by it."""

    name = "refusing"

    def __call__(self, values: Any, samples: Sequence[rm.Sample]) -> Any:
        lacking = [row for row, sample in enumerate(samples) if sample.columns["id"] is None]
        if lacking:
            raise ScoringError("there is no id", rows=lacking)
        return values


RANKED = {"name": "rank-in-group", "group": "id"}
REFUSING = Refusing()


class TestGroups:
    """By prompt, by a column, by row."""

    def test_by_prompt(self) -> None:
        assert groups_of(samples("a", "", "b", "a", "")) == [[0, 3], [1], [2], [4]]
        assert groups_of([*samples(CONVERSATION, []), *samples(CONVERSATION, [])]) == [[0, 2], [1], [3]]

    def test_what_the_template_reads_belongs_to_the_prompt(self) -> None:
        assert groups_of(samples("a", "a", "a", tools=[[], [{"name": "f"}], None], n=[1, 2, 3])) == [[0, 2], [1]]

    def test_by_column(self) -> None:
        values = [1, "1", 1, {"a": 1, "b": 2}, {"b": 2, "a": 1}, True]
        assert groups_of(samples(*"aababb", id=values), "id") == [[0, 2], [1], [3, 4], [5]]
        assert groups_of(samples("", "", id=[7, 7]), "id") == [[0, 1]]

    def test_a_row_that_lacks_the_column_is_its_error(self) -> None:
        given = [*samples("a", "a", id=[1, None]), rm.Sample("a", "2", {"ID": 1})]
        with pytest.raises(DataError, match=r"'id', but 2 of 3 samples lack it \(first: item 1; it is null\)") as raised:
            groups_of(given, "id")
        assert raised.value.rows == frozenset((1, 2))
        with pytest.raises(DataError, match=r"the sample has 'ID'\)"):
            groups_of(given[2:], "id")
        reward = rm.load(length, transform={"name": "rank-in-group", "group": "id"}, on_error="abstain")
        scores = reward.score([*given, rm.Sample("a", "34", {"id": 1})])
        np.testing.assert_array_equal(scores.values, [0.0, np.nan, np.nan, 1.0])
        assert set(scores.errors) == {1, 2}

    @given(
        st.lists(st.sampled_from([1, 2, None]), min_size=1, max_size=8),
        st.sampled_from([RANKED, [RUNNING, RANKED], [RANKED, RUNNING], [REFUSING, RUNNING]]),
    )
    def test_the_other_rows_are_scored_and_learned_from_once(self, ids: list[int | None], transform: Any) -> None:
        scored: list[rm.Sample] = []

        def counted(samples: Sequence[rm.Sample]) -> list[float | None]:
            scored.extend(samples)
            return length(samples)

        def reward(score: Any) -> rm.Provider:
            made = rm.load(score, transform=component("transform", transform), on_error="abstain")
            return rm.load({"provider": "sum", "members": [made], "on_error": "abstain"})

        given = [rm.Sample("a", "x" * row, {"id": value}) for row, value in enumerate(ids, start=1)]
        fit = [row for row, value in enumerate(ids) if value is not None]
        one, other = reward(counted), reward(length)
        scores = one.score(given)
        assert len({id(sample) for sample in scored}) == len(scored) >= len(fit)
        assert set(scores.parts["0"].errors) == set(range(len(ids))) - {*fit}
        expected = other.score([given[row] for row in fit])
        np.testing.assert_array_equal(scores.values[fit], expected.values)
        learned = [provider.children["members[0]"].transform for provider in (one, other)]
        assert len({str(transform and transform.state()) for transform in learned}) == 1

    def test_a_row_of_judged_data_is_a_group(self) -> None:
        rows = [samples("a", "a"), samples("a", "a", ""), samples("a"), samples("a")]
        flat = [sample for row in rows for sample in row]
        assert groups_of(flat) == [[0, 1, 2, 3, 5, 6], [4]]
        with rows_as_groups(rows):
            assert groups_of(flat) == [[0, 1], [2, 3, 4], [5, 6]]
            assert groups_of(flat[:5], "absent") == [[0, 1], [2, 3, 4]]

    def test_rows_that_follow_each_other(self) -> None:
        a, b, none = samples("a"), samples("b", "a"), samples("")
        by_prompt, judged = RowGroups((None,)), RowGroups((None,), each_row=True)
        assert (by_prompt.join(b, a), by_prompt.join(a, samples("c")), by_prompt.join(none, none)) == (True, False, False)
        assert (judged.join(b, a), judged.join(a, a)) == (False, True)
        assert not RowGroups().join(a, a)
        assert RowGroups(("id",)).join(samples("a", id=[1]), samples("b", id=[1]))
        assert not RowGroups(("id",)).join(a, a)  # each is an error of its own


class TestGroupings:
    """By what a reward groups samples."""

    def test_of_all_parts(self) -> None:
        ranked = {"provider": "function", "function": length, "transform": ["scale", {"name": "rank-in-group", "group": "id"}]}
        reward = rm.load({"provider": "sum", "members": [ranked, Shorter(), Shorter("other")], "transform": "zscore-in-group"})
        assert groupings(reward) == (None, "id", "other")
        assert compares_samples(reward)
        assert not compares_samples(rm.load(length))

    @pytest.mark.parametrize("name", ["rank-in-group", "zscore-in-group"])
    def test_a_column_needs_a_name(self, name: str) -> None:
        with pytest.raises(SpecError, match="must be the name of a column"):
            component("transform", {"name": name, "group": " "})


class TestZScoreInGroup:
    """The mean of a group is 0, and its standard deviation 1."""

    def test_it_is_the_formula(self) -> None:
        values = np.array([1.0, 10.0, 2.0, np.nan, 6.0, 30.0, 5.0, 5.0])
        found = ZScoreInGroup()(values, samples(*"abaaabcc"))
        first = np.array([1.0, 2.0, 6.0])
        np.testing.assert_allclose(found[[0, 2, 4]], (first - first.mean()) / first.std(), rtol=1e-15)
        np.testing.assert_array_equal(found[[1, 3, 5, 6, 7]], [-1.0, np.nan, 1.0, 0.0, 0.0])

    def test_groups_of_one_and_samples_without_a_prompt_are_0(self) -> None:
        np.testing.assert_array_equal(ZScoreInGroup()(np.array([3.0, 4.0, 5.0]), samples("a", "", "")), np.zeros(3))

    def test_by_column(self) -> None:
        found = ZScoreInGroup(group="id")(np.array([1.0, 3.0, 5.0]), samples("a", "b", "a", id=[1, 1, 2]))
        np.testing.assert_array_equal(found, [-1.0, 1.0, 0.0])

    @given(
        st.lists(st.tuples(st.sampled_from("ab"), st.floats(allow_nan=False, allow_infinity=False)), max_size=12), st.randoms()
    )
    def test_neither_order_nor_scale_matter_and_every_result_is_finite(
        self, rows: list[tuple[str, float]], chance: Any
    ) -> None:
        def scored(rows: list[tuple[str, float]]) -> list[tuple[float, float]]:
            values = np.array([value for _, value in rows])
            found = ZScoreInGroup()(values, [rm.Sample(prompt, "x") for prompt, _ in rows]) if rows else np.zeros(0)
            assert np.isfinite(found).all()
            return sorted((value, z) for (_, value), z in zip(rows, found.tolist(), strict=True))

        shuffled = list(rows)
        chance.shuffle(shuffled)
        assert scored(shuffled) == scored(rows)

    def test_in_a_chain(self) -> None:
        chain = Chain(transforms=[ZScoreInGroup(), Scale(factor=2.0)])
        np.testing.assert_array_equal(chain(np.array([1.0, 2.0]), samples("a", "a")), [-2.0, 2.0])

    def test_an_infinite_score_stays_an_error(self) -> None:
        found = ZScoreInGroup()(np.array([np.inf, 1.0, 2.0]), samples(*"aaa"))
        np.testing.assert_array_equal(found, [np.inf, -1.0, 1.0])


class TestEvaluation:
    """A row of judged data is a group, also for rewards that compare."""

    ROWS: ClassVar[list[dict[str, Any]]] = [
        {"prompt": "Q", "chosen": "long answer", "rejected": "short"},
        {"prompt": "Q", "chosen": "x", "rejected": ""},
        {"prompt": "Q", "chosen": "longer", "rejected": "longest answer of all"},
        {"chosen": "without a prompt", "rejected": "none"},
    ]

    def test_rows_that_share_a_prompt(self) -> None:
        reward = rm.load(length, transform="rank-in-group", on_error="abstain")
        for size in (1, 2, 256):
            result = evaluate(reward, self.ROWS, batch_size=size).rewards[0]
            assert result.figures["accuracy"].value == 2 / 3  # of the three pairs without an empty answer

    def test_a_column_that_judged_data_lacks(self) -> None:
        reward = rm.load(length, transform={"name": "rank-in-group", "group": "id"})
        assert evaluate(reward, self.ROWS[:1]).rewards[0].figures["accuracy"].value == 1.0

    def test_a_pairwise_benchmark(self) -> None:
        common = {"source": "livebench-math", "question": "Q", "label": "B>A"}
        answers = [("xxx", "x"), ("x", ""), ("xx", "xxxx"), ("xx", "yy")]  # of one question, but each pair is a group
        rows = [
            {**common, "pair_id": str(number), "response_A": first, "response_B": second}
            for number, (first, second) in enumerate(answers)
        ]
        sizes: list[float] = []
        reward = Shorter()
        reward.observer = lambda provider, samples, scores: sizes.extend(scores.details["size"].tolist())
        found = evaluate(reward, rows, suite="judge-bench").rewards[0].suite
        assert found is not None
        assert {part.name: part.score for part in found.sections if part.items} == {"Math": 0.5}
        assert sizes == [2.0] * 8


def test_ranks_by_column() -> None:
    found = RankInGroup(group="id")(np.array([1.0, 3.0, 5.0]), samples("a", "b", "a", id=[1, 1, 2]))
    np.testing.assert_array_equal(found, [0.0, 1.0, 0.5])
