"""What a row of each format says of its samples, and what is refused."""

from __future__ import annotations

import gzip
import json
import math
import re
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from rm_plugins.data.judgements import Judgement, attribute_names, judgement
from rm_plugins.data.rows import completion_samples, preference_samples, read_rows
from rm_plugins.errors import DataError

NAN = math.nan
USER = {"role": "user", "content": "2+2?"}
FOUR = {"role": "assistant", "content": "4"}
FIVE = {"role": "assistant", "content": "5"}
PAIR = {"prompt": "2+2?", "chosen": "4", "rejected": "5"}


def completions(*texts: str, **columns: Any) -> dict[str, Any]:
    return {"prompt": "Q", "completions": list(texts or "abc"), **columns}


def verdict(found: Judgement) -> tuple[Any, ...]:
    return found.pairs, found.ties, found.ranks, found.labels


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
        assert found.pairs == ()

    def test_the_columns_of_the_labels_are_those_asked_for(self) -> None:
        row = completions("a", "b", scores={"helpful": [4, 2], "brief": [1, 9]})
        found = judgement(row, attributes=["kind", "helpful"])
        assert found.labels == ((None, 4.0), (None, 2.0))
        assert found.pairs == ()  # nobody rated how kind they are
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
            ({"helpfull": 1}, "the reward weighs 'helpfull', which is no attribute here. Did you mean 'helpful'?"),
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


LISTED = "one value for each of the 3 completions, not 2, is allowed"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({}, "there is nothing judged; the row has the columns none. A row to train on has 'chosen' and 'rejected'"),
        ({"chosen": "a"}, "there is no 'rejected'; the row has the columns 'chosen'."),
        ({"prompt": "Q", "chosen": None, "rejected": "a"}, "there is no 'chosen'; the row has"),
        ({"prompt": "Q", "completion": "a"}, "there is nothing judged; the row has the columns 'prompt', 'completion'."),
        ({"prompt": "Q", "ranks": [1, 2]}, "there is nothing judged"),
        ({"prompt": "Q", "messages": [USER, FOUR], "label": 1}, "there is nothing judged"),
        (completions(is_correct=[1, 0, 1]), "the row has the columns 'prompt', 'completions', 'is_correct'."),
        (completions(ranks=[1, 2, 3], scores=[1, 2, 3]), "there are both 'ranks' and 'scores'"),
        (completions(best=0, labels=[1, 0, 0]), "there are both 'best' and 'labels'"),
        ({"completion": "a", "score": 1, "label": 1}, "there are both 'score' and 'label'"),
        ({**PAIR, **completions(ranks=[1, 2, 3])}, "both 'chosen' with 'rejected' and 'completions' with 'ranks'"),
        ({"completion": "a", "completions": ["b"], "best": 0}, "there are both 'completion' and 'completions'"),
        (completions(score=1), "there is 'score'; completions must be judged by 'scores'. Rename it."),
        (completions(label=[1, 0, 0]), "there is 'label'; completions must be judged by 'labels'. Rename it."),
        ({"completion": "a", "labels": [1]}, "there is 'labels'; one completion must be judged by 'label'. Rename it."),
        ({"completion": "a", "ranks": [1]}, "there is 'ranks', which needs a list of 'completions'"),
        ({"messages": [USER, FOUR], "best": 0}, "there is 'best', which needs a list of 'completions'"),
        ({"completions": [], "ranks": []}, "'completions' is empty; a list of at least one"),
        ({"completions": "abc", "ranks": [1, 2, 3]}, "'completions' must be a list, not 'abc'"),
        (completions(ranks=[1, 2]), f"'ranks' is [1, 2]; {LISTED}"),
        (completions(ranks="123"), "'ranks' is '123'; a list with one value for each completion is allowed"),
        (completions(ranks={"a": 1}), "'ranks' is {'a': 1}; a list with one value"),
        (completions(ranks=[1, "2", 3]), "'ranks'[1] is '2'; a finite number, or null where it is unknown, is allowed"),
        (completions(ranks=[1, 2, math.inf]), "'ranks'[2] is inf; a finite number"),
        (completions(ranks=[1, 2, 10**400]), "'ranks'[2] is 1000000"),
        (completions(ranks=[1, True, 3]), "'ranks'[1] is True; a finite number"),
        (completions(scores=[1, 2]), f"'scores' is [1, 2]; {LISTED}"),
        (completions(scores=3), "'scores' is 3; a list with one value"),
        (completions(scores=[1, 2, [3]]), "'scores'[2] is [3]; a finite number, or null where it is missing, is allowed"),
        (completions(scores=[1, {"a": 1}, 2]), "'scores'[0] is 1; a mapping of attribute to number, as the others are, is"),
        (completions(scores=[{"a": 1}, {"a": "x"}, {}]), "'scores'[1]['a'] is 'x'; a finite number, or null"),
        (completions(scores=[{"a": 1}, {"a": 2}]), "one value for each of the 3 completions, not 2, is allowed"),
        (completions(scores=[{}, None, {}]), "at least one attribute, named by text, is allowed"),
        (completions(scores={"a": [1, 2]}), f"'scores'['a'] is [1, 2]; {LISTED}"),
        (completions(scores={"a": [1, 2, -math.inf]}), "'scores'['a'][2] is -inf; a finite number"),
        (completions(scores={"a": 1}), "'scores'['a'] is 1; a list with one value"),
        ({"completion": "a", "scores": {1: 2}}, "'scores' is {1: 2}; at least one attribute, named by text, is allowed"),
        ({"completion": "a", "scores": [3]}, "'scores' is [3]; a mapping of attribute to number, or a number as 'score', is"),
        ({"completion": "a", "scores": {"a": [1]}}, "'scores'['a'] is [1]; a finite number, or null"),
        ({"completion": "a", "score": {"a": 1}}, "'score' is {'a': 1}; a finite number is allowed"),
        ({"completion": "a", "score": "good"}, "'score' is 'good'; a finite number is allowed"),
        (completions(best=3), "'best' is 3; the position of a completion, a whole number from 0 to 2, is allowed"),
        (completions(best=-1), "'best' is -1; the position"),
        (completions(best=0.5), "'best' is 0.5; the position"),
        (completions(best=NAN), "'best' is nan; the position"),
        (completions(best=True), "'best' is True; the position"),
        (completions(best="a"), "'best' is 'a'; the position"),
        (completions(labels=[1, 0]), f"'labels' is [1, 0]; {LISTED}"),
        (completions(labels=[1, 0, 2]), "'labels'[2] is 2; true or false (1 or 0) is allowed"),
        (completions(labels=["yes", 0, 1]), "'labels'[0] is 'yes'; true or false"),
        ({"completion": "a", "label": 0.5}, "'label' is 0.5; true or false (1 or 0) is allowed"),
        ({"completion": "a", "label": NAN}, "'label' is nan; true or false (1 or 0) is allowed"),
        ({**PAIR, "margin": "big"}, "'margin' is 'big'; a finite number is allowed"),
        ({**PAIR, "margin": NAN}, "'margin' is nan; a finite number is allowed"),
        ({**PAIR, "margin": math.inf}, "'margin' is inf; a finite number is allowed"),
        ({**PAIR, "weight": -1}, "'weight' is -1; a finite number of at least 0 is allowed"),
        ({**PAIR, "weight": NAN}, "'weight' is nan; a finite number of at least 0 is allowed"),
        (completions(best=0, weight=True), "'weight' is True; a finite number of at least 0 is allowed"),
        ({**PAIR, "tie": "yes"}, "'tie' is 'yes'; true or false (1 or 0) is allowed"),
        ({**PAIR, "tie": True, "margin": 1}, "'tie' is true and 'margin' is 1.0"),
        ({"chosen": 3, "rejected": 4}, "A sample's completion must be text or a list of messages, not int: 3"),
        ({"chosen": {"a": 1}, "rejected": {"a": 1}}, "A sample's completion must be text or a list of messages, not dict"),
        ({"chosen": "a", "rejected": [FOUR]}, "prompt is text but its completion is a list of messages"),
        ({"messages": [USER], "label": 1}, "'messages' must end with a turn of the assistant"),
        ({"completions": ["a", 3], "best": 0}, "A sample's completion must be text or a list of messages, not int: 3"),
    ],
)
def test_what_is_refused(row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        judgement(row)


def test_a_refused_value_is_quoted_in_short() -> None:
    with pytest.raises(DataError) as refused:
        judgement({"completion": "a", "score": "x" * 10_000})
    assert len(str(refused.value)) < 200


def test_names_are_refused_as_ratings_are() -> None:
    with pytest.raises(DataError, match="as the others are"):
        attribute_names(completions(scores=[1, {"a": 1}, 2]))
    with pytest.raises(DataError, match="nothing judged"):
        attribute_names({"prompt": "Q"})


class TestFiles:
    """Rows as libraries hand them over."""

    ROWS: tuple[dict[str, Any], ...] = (
        {**PAIR, "tie": True},
        completions(ranks=[1, 2, 2]),
        completions("a", "b", scores=[{"helpful": 4.5, "brief": 1.0}, {"helpful": 2.0, "brief": None}]),
        completions(best=2),
        {"prompt": [USER], "completions": ["4", "5"], "labels": [True, False]},
        {"messages": [USER, FOUR], "label": False},
    )

    @pytest.mark.parametrize("row", ROWS, ids=lambda row: "-".join(row))
    def test_parquet_and_datasets(self, row: dict[str, Any], tmp_path: Path) -> None:
        path = tmp_path / "row.parquet"
        parquet.write_table(arrow.Table.from_pylist([row]), path)
        (read,) = read_rows(str(path))
        for found in (judgement(read), judgement(Dataset.from_list([row])[0])):
            assert verdict(found) == verdict(judgement(row))
            assert [sample.completion for sample in found.samples] == [s.completion for s in judgement(row).samples]

    def test_columns_that_other_rows_have_are_null(self) -> None:
        rows = [row for row in self.ROWS if isinstance(row.get("prompt", "Q"), str) and "messages" not in row]
        absent = dict.fromkeys(name for row in rows for name in row)
        for row, read in zip(rows, Dataset.from_list([{**absent, **row} for row in rows]), strict=True):
            assert (judgement(read).format, verdict(judgement(read))) == (judgement(row).format, verdict(judgement(row)))

    def test_decimals_and_missing_keys(self, tmp_path: Path) -> None:
        path = tmp_path / "row.parquet"
        scores = [[{"helpful": Decimal("4.50"), "brief": None}, {"helpful": Decimal("2.25"), "brief": Decimal("1.00")}]]
        parquet.write_table(arrow.table({"completions": [["a", "b"]], "scores": scores}), path)
        (read,) = read_rows(str(path))
        assert judgement(read).labels == ((4.5, None), (2.25, 1.0))


class TestRealData:
    @staticmethod
    def rows(folder: Path, name: str) -> Iterator[dict[str, Any]]:
        with gzip.open(folder / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
            yield from map(json.loads, file)

    @pytest.mark.parametrize(
        ("name", "pairs"),
        [("ukp_convarg_strict", 11_650), ("llmbar", 884), ("pandalm_human", 842), ("rt_sentence_polarity_pairs", 5_331)],
    )
    def test_pairs(self, name: str, pairs: int, data_folder: Path) -> None:
        found = [judgement(row) for row in self.rows(data_folder, name)]
        assert len(found) == pairs
        assert {row.format for row in found} == {"preference"}
        assert {row.pairs for row in found} == {((0, 1),)}

    def test_labelled_solutions(self, data_folder: Path) -> None:
        rows = [{**row, "labels": row["is_correct"]} for row in self.rows(data_folder, "gsm8k_solutions_labelled")]
        assert len(rows) == 1_319
        for row in rows:
            found = judgement(row)
            good = sum(row["is_correct"])
            assert len(found.samples) == 4
            assert len(found.pairs) == good * (4 - good)
            assert all(row["is_correct"][winner] and not row["is_correct"][loser] for winner, loser in found.pairs)
            assert all(isinstance(sample.completion[0], dict) for sample in found.samples)

    def test_ratings(self, data_folder: Path) -> None:
        names = ("understandability", "naturalness", "coherence", "engagingness", "groundedness", "overall")
        rows = [{**row, "prompt": row["dialogue"]} for row in self.rows(data_folder, "topical_chat_ratings")]
        assert {attribute_names(row) for row in rows} == {names}
        for row in rows:
            found = judgement(row, names)
            assert found.labels == tuple(tuple(rating[name] for name in names) for rating in row["scores"])
            assert len(found.pairs) + len(found.ties) == 15
            means = [sum(rating.values()) / 6 for rating in row["scores"]]
            assert all(means[winner] > means[loser] for winner, loser in found.pairs)
            assert all(means[one] == pytest.approx(means[other], abs=1e-8) for one, other in found.ties)
        overall = [judgement(row, reward={"overall": 1.0}) for row in rows]
        assert sum(len(found.ties) for found in overall) > sum(len(judgement(row).ties) for row in rows)


def test_the_pages_rows_are_what_it_says() -> None:
    page = (Path(__file__).parents[1] / "docs" / "data.md").read_text(encoding="utf-8")
    sections = re.split(r"^## ", page, flags=re.MULTILINE)[1:]
    said = {}
    for section in sections:
        title = section.partition("\n")[0]
        found = [
            json.loads(line)
            for block in re.findall(r"^```json\n(.*?)^```", section, re.M | re.S)
            for line in block.splitlines()
        ]
        if found:
            said[title] = {judgement(row).format for row in found}
    assert said == {
        "Preference": {"preference"},
        "Ranking": {"ranking"},
        "Ratings": {"ratings"},
        "Best of n": {"best-of"},
        "Labelled": {"labelled"},
    }
