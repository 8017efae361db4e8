"""What a row of each format says of its samples, and what is refused."""

from __future__ import annotations

import math
import re
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rm_plugins.data.judgements import Judgement, attribute_names, judgement
from rm_plugins.data.rows import completion_samples, preference_samples
from rm_plugins.errors import DataError
from tests.judgements.conftest import FOUR, NAN, PAIR, USER, completions, verdict

FIVE = {"role": "assistant", "content": "5"}


def same(found: Any, expected: Any) -> bool:
    """Equality with NaN equal to itself."""
    return repr(found) == repr(expected)


class TestPreference:
    def test_a_pair(self) -> None:
        found = judgement(PAIR)
        assert found == Judgement("preference", preference_samples(PAIR), ((0, 1),), ranks=(0.0, 1.0))
        assert (found.margins, found.weight) == (None, 1.0)
        assert attribute_names(PAIR) == ()

    @pytest.mark.parametrize(
        ("row", "prompt", "texts"),
        [
            (PAIR, "2+2?", ["4", "5"]),
            ({"chosen": "2+2? 4", "rejected": "2+2? 5"}, "", ["2+2? 4", "2+2? 5"]),
            ({"prompt": None, "chosen": "4", "rejected": "5"}, "", ["4", "5"]),
            ({"prompt": [USER], "chosen": [FOUR], "rejected": [FIVE]}, [USER], [[FOUR], [FIVE]]),
            ({"prompt": [USER], "chosen": "4", "rejected": "5"}, [USER], [[FOUR], [FIVE]]),
            ({"chosen": [USER, FOUR], "rejected": [USER, FIVE]}, [USER], [[FOUR], [FIVE]]),
            (
                {"chosen": [USER, FOUR, USER, FOUR], "rejected": [USER, FOUR, USER, FIVE]},
                [USER, FOUR, USER],
                [[FOUR], [FIVE]],
            ),
            ({"chosen": [USER, FOUR], "rejected": [USER, FIVE, USER, FOUR]}, [USER], [[FOUR], [FIVE, USER, FOUR]]),
            ({"chosen": [USER, FOUR], "rejected": [USER, FOUR]}, [USER], [[FOUR], [FOUR]]),
        ],
    )
    def test_every_form_of_text(self, row: dict[str, Any], prompt: Any, texts: list[Any]) -> None:
        found = judgement(row)
        assert [sample.prompt for sample in found.samples] == [prompt, prompt]
        assert [sample.completion for sample in found.samples] == texts
        assert found.pairs == ((0, 1),)

    def test_other_columns_reach_the_samples(self) -> None:
        tools = [{"type": "function"}]
        found = judgement({"prompt": [USER], "chosen": [FOUR], "rejected": [FIVE], "tools": tools})
        assert [sample.columns["tools"] for sample in found.samples] == [tools, tools]

    @pytest.mark.parametrize("margin", [0.5, -2, 0, np.float32(0.5), Decimal("0.5")])
    def test_a_margin(self, margin: Any) -> None:
        assert judgement({**PAIR, "margin": margin}).margins == (float(margin),)

    @pytest.mark.parametrize("weight", [0, 2.5, np.int64(3), Fraction(1, 2)])
    def test_a_weight(self, weight: Any) -> None:
        assert judgement({**PAIR, "weight": weight}).weight == float(weight)

    @pytest.mark.parametrize("tie", [True, 1, 1.0, np.True_])
    def test_a_tie_is_no_pair(self, tie: Any) -> None:
        found = judgement({**PAIR, "tie": tie, "margin": 0.0, "weight": 2})
        assert verdict(found) == ((), ((0, 1),), (0.0, 0.0), None)
        assert (found.margins, found.weight) == (None, 2.0)

    @pytest.mark.parametrize("tie", [False, 0, None, np.False_])
    def test_no_tie(self, tie: Any) -> None:
        assert judgement({**PAIR, "tie": tie}).pairs == ((0, 1),)

    def test_null_columns_are_absent(self) -> None:
        row = {**PAIR, "margin": None, "weight": None, "completions": None, "ranks": None, "scores": None, "label": None}
        assert verdict(judgement(row)) == verdict(judgement(PAIR))
        assert (judgement(row).format, judgement(row).margins, judgement(row).weight) == ("preference", None, 1.0)

    def test_what_other_datasets_say_beside_a_pair_is_left_alone(self) -> None:
        row = {**PAIR, "messages": [USER, FOUR], "score": 0.3, "label": "good", "scores": [9, 2]}
        assert judgement(row).format == "preference"
        assert attribute_names(row) == ()


class TestRanking:
    @pytest.mark.parametrize(
        ("ranks", "pairs", "ties", "dense"),
        [
            ([1, 2, 3], ((0, 1), (0, 2), (1, 2)), (), (0.0, 1.0, 2.0)),
            ([3, -1, 0.5], ((1, 0), (2, 0), (1, 2)), (), (2.0, 0.0, 1.0)),
            ([1, 2, 1], ((0, 1), (2, 1)), ((0, 2),), (0.0, 1.0, 0.0)),
            ([7, 7, 7], (), ((0, 1), (0, 2), (1, 2)), (0.0, 0.0, 0.0)),
            ([None, 9, 4], ((2, 1),), (), (NAN, 1.0, 0.0)),
            ([2, NAN, None], (), (), None),
            ([np.int32(2), np.float64(1), Decimal("1.0")], ((1, 0), (2, 0)), ((1, 2),), (1.0, 0.0, 0.0)),
        ],
    )
    def test_ranks(self, ranks: list[Any], pairs: Any, ties: Any, dense: Any) -> None:
        found = judgement(completions(ranks=ranks))
        assert (found.format, found.labels, found.margins) == ("ranking", None, None)
        assert sorted(found.pairs) == sorted(pairs)
        assert found.ties == ties
        assert same(found.ranks, dense)

    def test_one_completion_is_not_compared(self) -> None:
        assert verdict(judgement(completions("a", ranks=[4]))) == ((), (), None, None)

    def test_a_weight(self) -> None:
        assert judgement(completions(ranks=[1, 2, 3], weight=0.25)).weight == 0.25

    @given(st.lists(st.one_of(st.none(), st.floats(allow_infinity=False), st.integers(-2, 2)), min_size=1, max_size=7))
    def test_pairs_ties_and_ranks_say_the_same(self, ranks: list[float | None]) -> None:
        found = judgement(completions(*map(str, range(len(ranks))), ranks=ranks))
        known = [place for place, rank in enumerate(ranks) if rank is not None and rank == rank]
        if found.ranks is None:
            assert len(known) < 2
            assert (found.pairs, found.ties) == ((), ())
            return
        assert [place for place, rank in enumerate(found.ranks) if not math.isnan(rank)] == known
        assert {found.ranks[place] for place in known} == set(map(float, range(len({ranks[place] for place in known}))))
        assert len({frozenset(pair) for pair in (*found.pairs, *found.ties)}) == len(known) * (len(known) - 1) // 2
        assert len(found.pairs) + len(found.ties) == len(known) * (len(known) - 1) // 2
        for winner, loser in found.pairs:
            assert found.ranks[winner] < found.ranks[loser]
            assert ranks[winner] < ranks[loser]  # type: ignore[operator]  # known ones are numbers
        for one, other in found.ties:
            assert ranks[one] == ranks[other]
            assert found.ranks[one] == found.ranks[other]


class TestRatings:
    def test_numbers(self) -> None:
        row = completions(scores=[3, 1, 3])
        assert attribute_names(row) == ("score",)
        found = judgement(row)
        assert found.format == "ratings"
        assert verdict(found) == (((0, 1), (2, 1)), ((0, 2),), (0.0, 1.0, 0.0), ((3.0,), (1.0,), (3.0,)))

    def test_missing_numbers(self) -> None:
        found = judgement(completions(scores=[None, 1, NAN]))
        assert verdict(found) == ((), (), None, ((None,), (1.0,), (None,)))

    def test_mappings_and_a_mapping_of_lists_say_the_same(self) -> None:
        one = completions("a", "b", scores=[{"helpful": 4, "brief": 1}, {"helpful": 2, "brief": 2}])
        other = completions("a", "b", scores={"helpful": [4, 2], "brief": [1, 2]})
        assert attribute_names(one) == attribute_names(other) == ("helpful", "brief")
        assert verdict(judgement(one)) == verdict(judgement(other))
        assert verdict(judgement(one)) == (((0, 1),), (), (0.0, 1.0), ((4.0, 1.0), (2.0, 2.0)))

    def test_attributes_that_only_some_have(self) -> None:
        row = completions(scores=[{"helpful": 4}, {"brief": 2, "helpful": 1}, None])
        assert attribute_names(row) == ("helpful", "brief")
        found = judgement(row)
        assert found.labels == ((4.0, None), (1.0, 2.0), (None, None))
        assert (found.pairs, found.ranks) == ((), None)
        helpful = judgement(row, reward={"helpful": 1.0})
        assert same((helpful.pairs, helpful.ranks), (((0, 1),), (0.0, 1.0, NAN)))

    def test_a_whole_attribute_may_be_null(self) -> None:
        found = judgement(completions("a", "b", scores={"helpful": [1, 2], "brief": None}))
        assert found.labels == ((1.0, None), (2.0, None))
        assert found.pairs == judgement(completions("a", "b", scores={"helpful": [1, 2]})).pairs == ((1, 0),)

    def test_the_columns_of_the_labels_are_those_asked_for(self) -> None:
        row = completions("a", "b", scores={"helpful": [4, 2], "brief": [1, 9]})
        found = judgement(row, attributes=["kind", "helpful"])
        assert found.labels == ((None, 4.0), (None, 2.0))
        assert found.pairs == ((0, 1),)  # nobody rated how kind they are
        assert judgement(row, ["kind", "helpful"], {"kind": 1, "helpful": 1}).pairs == ()
        assert judgement(row, ["kind", "helpful"], {"helpful": 1}).pairs == ((0, 1),)
        assert judgement(row, ["helpful"]).pairs == ((0, 1),)
        assert judgement(row, ["brief"]).pairs == ((1, 0),)

    @pytest.mark.parametrize(
        ("reward", "pairs"),
        [
            (None, ((0, 1),)),  # 3 against 2
            ({"helpful": 1, "brief": 1}, ((0, 1),)),
            ({"helpful": 0.1, "brief": 0.9}, ((1, 0),)),
            ({"brief": 2}, ((1, 0),)),
            ({"brief": 1, "helpful": 0}, ((1, 0),)),
            ({"brief": -0.5}, ((0, 1),)),
            ({"helpful": 1, "brief": 2}, ()),
        ],
    )
    def test_several_attributes_are_weighed(self, reward: Any, pairs: Any) -> None:
        found = judgement(completions("a", "b", scores={"helpful": [5, 1], "brief": [1, 3]}), reward=reward)
        assert found.pairs == pairs
        assert found.ties == (() if pairs else ((0, 1),))

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ([0.1, 0.2, 0.0], [0.3, 0.0, 0.0]),
            ([0.6666666667, 0.6666666667, 0.6666666667], [1, 1, 0]),
            ([0.3333333333, 2.3333333333, 1], [1.6666666667, 1, 1]),
        ],
    )
    def test_means_are_equal_though_their_digits_were_cut_off(self, one: list[float], other: list[float]) -> None:
        found = judgement(
            completions("a", "b", scores=[dict(zip("xyz", one, strict=True)), dict(zip("xyz", other, strict=True))])
        )
        assert (found.pairs, found.ties) == ((), ((0, 1),))

    def test_single_ratings_are_compared_exactly(self) -> None:
        assert judgement(completions("a", "b", scores=[1e-12, 2e-12])).pairs == ((1, 0),)

    def test_one_completion(self) -> None:
        row = {"prompt": "Q", "completion": "a", "score": 4}
        assert attribute_names(row) == ("score",)
        assert verdict(judgement(row)) == ((), (), None, ((4.0,),))
        row = {"prompt": "Q", "completion": "a", "scores": {"helpful": 4, "brief": None}}
        assert attribute_names(row) == ("helpful", "brief")
        assert verdict(judgement(row)) == ((), (), None, ((4.0, None),))

    @pytest.mark.parametrize("number", [4, 4.0, np.float32(4), np.int8(4), Decimal("4.00"), Fraction(4)])
    def test_any_kind_of_number(self, number: Any) -> None:
        (label,) = judgement({"completion": "a", "score": number}).labels or ()
        assert label == (4.0,)
        assert type(label[0]) is float

    @given(
        st.lists(st.tuples(*[st.sampled_from([None, 0, 1, 2.5])] * 2), min_size=1, max_size=5),
        st.tuples(*[st.integers(-3, 3)] * 2).filter(any),
        st.sampled_from([0.5, 64, 2.0**-40]),
    )
    def test_the_scale_of_the_weights_does_not_matter(
        self, ratings: list[tuple[float | None, ...]], weights: tuple[int, ...], factor: float
    ) -> None:
        row = completions(*map(str, range(len(ratings))), scores=[dict(zip("xy", found, strict=True)) for found in ratings])
        found = judgement(row, reward=dict(zip("xy", weights, strict=True)))
        scaled = judgement(row, reward={name: factor * weight for name, weight in zip("xy", weights, strict=True)})
        assert same(verdict(found), verdict(scaled))
        turned = judgement(row, reward={name: -weight for name, weight in zip("xy", weights, strict=True)})
        assert sorted(turned.pairs) == sorted((loser, winner) for winner, loser in found.pairs)
        assert turned.ties == found.ties
        for one, (x, y) in enumerate(ratings):
            used = [value for value, weight in zip((x, y), weights, strict=True) if weight]
            compared = any(one in pair for pair in (*found.pairs, *found.ties))
            assert not (compared and None in used)

    @pytest.mark.parametrize(
        ("reward", "message"),
        [
            ({"helpfull": 1}, "the reward weighs 'helpfull', which is not an attribute of this row. Did you mean 'helpful'?"),
            ({"helpful": 0}, "finite numbers are allowed, at least one of them not 0"),
            ({}, "finite numbers are allowed, at least one of them not 0"),
            ({"helpful": NAN}, "finite numbers are allowed"),
        ],
    )
    def test_a_reward_that_weighs_nothing(self, reward: Any, message: str) -> None:
        with pytest.raises(DataError, match=re.escape(message)):
            judgement(completions("a", "b", scores={"helpful": [1, 2], "brief": [1, 2]}), reward=reward)


class TestBestOf:
    @pytest.mark.parametrize("best", [1, 1.0, np.int64(1), Decimal(1)])
    def test_the_best_wins_against_each_other(self, best: Any) -> None:
        found = judgement(completions(best=best, weight=3))
        assert (found.format, found.weight, attribute_names(completions(best=best))) == ("best-of", 3.0, ())
        assert sorted(found.pairs) == [(1, 0), (1, 2)]
        assert (found.ties, found.ranks, found.labels) == ((), (1.0, 0.0, 1.0), None)

    def test_the_best_of_one(self) -> None:
        assert verdict(judgement(completions("a", best=0))) == ((), (), None, None)


class TestLabelled:
    @pytest.mark.parametrize(("label", "value"), [(True, 1.0), (0, 0.0), (np.True_, 1.0), (1.0, 1.0), (Decimal(0), 0.0)])
    def test_one_completion(self, label: Any, value: float) -> None:
        row = {"prompt": "Q", "completion": "a", "label": label}
        assert attribute_names(row) == ("label",)
        found = judgement(row)
        assert found.format == "labelled"
        assert verdict(found) == ((), (), None, ((value,),))

    def test_good_ones_win_and_equal_labels_do_not_tie(self) -> None:
        row = completions("a", "b", "c", "d", labels=[True, False, 1, None])
        assert attribute_names(row) == ("label",)
        found = judgement(row)
        assert sorted(found.pairs) == [(0, 1), (2, 1)]
        assert found.ties == ()
        assert same(found.ranks, (0.0, 1.0, 0.0, NAN))
        assert found.labels == ((1.0,), (0.0,), (1.0,), (None,))

    def test_all_good(self) -> None:
        assert verdict(judgement(completions(labels=[1, 1, 1]))) == ((), (), None, ((1.0,),) * 3)

    def test_the_columns_of_the_labels_are_those_asked_for(self) -> None:
        row = completions("a", "b", labels=[1, 0])
        found = judgement(row, attributes=("helpful", "label"))
        assert found.labels == ((None, 1.0), (None, 0.0))
        assert found.pairs == ((0, 1),)


class TestTexts:
    """Where prompts and completions come from."""

    def test_texts_under_a_conversation_become_turns(self) -> None:
        found = judgement({"prompt": [USER], "completions": ["4", "5"], "ranks": [1, 2]})
        assert [sample.completion for sample in found.samples] == [[FOUR], [FIVE]]

    @pytest.mark.parametrize("prompt", [{}, {"prompt": None}])
    def test_without_a_prompt(self, prompt: dict[str, Any]) -> None:
        text = judgement({"completions": ["a", "b"], "best": 0, **prompt})
        assert [(sample.prompt, sample.completion) for sample in text.samples] == [("", "a"), ("", "b")]
        turns = judgement({"completions": [[USER, FOUR], [USER, FIVE]], "best": 0, **prompt})
        assert [(sample.prompt, sample.completion) for sample in turns.samples] == [([USER], [FOUR]), ([USER], [FIVE])]
        alone = judgement({"completion": "a", "score": 1, **prompt})
        assert (alone.samples[0].prompt, alone.samples[0].completion) == ("", "a")

    @pytest.mark.parametrize("column", ["messages", "completion"])
    @pytest.mark.parametrize("said", [{"label": True}, {"score": 1}, {"scores": {"label": 1}}])
    def test_a_conversation(self, column: str, said: dict[str, Any]) -> None:
        (sample,) = judgement({column: [USER, FIVE, USER, FOUR], **said}).samples
        assert (sample.prompt, sample.completion) == ([USER, FIVE, USER], [FOUR])

    def test_messages_beside_prompt_and_completion_are_another_column(self) -> None:
        (sample,) = judgement({"prompt": "Q", "completion": "a", "label": 1, "messages": [USER, FIVE]}).samples
        assert sample.completion == "a"

    def test_samples_have_the_columns_that_scoring_gives_them(self) -> None:
        row = completions(ranks=[1, 2, 3], topic="sums")
        assert completion_samples(row)[0].columns == {"ranks": [1, 2, 3], "topic": "sums"}
        assert judgement(row).samples == completion_samples(row)
