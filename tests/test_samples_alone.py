"""A sample's score is its own, whatever else is in the batch: columns that only others have, and answers to no known question."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import rm_plugins as rm
from rm_plugins.errors import ScoringError
from rm_plugins.handed_over import HandedOver, handed_over
from rm_plugins.training.reward_history import length_correlation

COLUMNS = st.dictionaries(st.sampled_from(["answer", "weight", "samples", "other"]), st.none() | st.integers(1, 9), max_size=3)
BATCHES = st.lists(st.builds(rm.Sample, st.just("Q"), st.sampled_from(["a", "bb", "ccc"]), COLUMNS), min_size=2, max_size=6)


def with_a_default(completions: list[str], weight: Any = 7) -> list[float]:
    weights = weight if isinstance(weight, list) else [weight] * len(completions)
    return [len(text) * (100 if each is None else each) for text, each in zip(completions, weights, strict=True)]


def with_all_columns(completions: list[str], **columns: Any) -> list[float]:
    return [len(text) + 10 * len(columns) for text in completions]


def by_its_presence(prompts: list[str], completions: list[str], **columns: Any) -> list[float | None]:
    return [1.0 if "answer" in columns else None] * len(prompts)


def of_either_form(samples: Any, **columns: Any) -> list[float]:
    return [0.0 if isinstance(sample, rm.Sample) else 1.0 for sample in samples]


@pytest.mark.parametrize("function", [with_a_default, with_all_columns, by_its_presence, of_either_form])
@given(batch=BATCHES)
def test_columns_of_other_samples_change_no_answer(function: Callable[..., Any], batch: list[rm.Sample]) -> None:
    provider = rm.load(function)
    alone = [provider.score([sample]).values[0] for sample in batch]
    np.testing.assert_array_equal(provider.score(batch).values, alone)


def test_a_column_that_is_needed_fails_the_samples_that_have_it_not() -> None:
    calls: list[int] = []

    def graded(completions: list[str], grade: list[float]) -> list[float]:
        calls.append(len(completions))
        return grade

    samples = [rm.Sample("Q", "a", {"grade": 1.0}), rm.Sample("Q", "b"), rm.Sample("Q", "c", {"grade": 3.0})]
    provider = rm.load({"provider": "function", "function": graded, "on_error": "abstain"})
    scores = provider.score(samples)
    np.testing.assert_array_equal(scores.values, [1.0, np.nan, 3.0])
    assert list(scores.errors) == [1] and "'grade'" in str(scores.errors[1])
    provider.on_error = "raise"
    with pytest.raises(ScoringError, match=r"'graded' failed: TypeError: .*'grade'") as raised:
        provider.score(samples)
    assert raised.value.rows == frozenset({1})


def test_one_call_scores_all_samples_that_are_alike() -> None:
    calls: list[int] = []

    def counted(completions: list[str], answer: Any = None) -> list[float]:
        calls.append(len(completions))
        return [0.0] * len(completions)

    provider = rm.load(counted)
    provider.score([rm.Sample("Q", "a", {f"unread{number}": number}) for number in range(5)])
    provider.score([rm.Sample("Q", "a", {"answer": answer}) for answer in (1, None)])
    assert calls == [5, 2]


def test_samples_that_a_provider_made_itself_take_nothing_from_the_rows_of_a_trainer() -> None:
    def placed(completions: list[str], places: Any = None) -> list[float]:
        return [-1.0] * len(completions) if places is None else places

    rows = [rm.Sample("Q", "a"), rm.Sample("Q", "b")]
    with handed_over(HandedOver(rows, {}, {"places": lambda numbers: [float(number) for number in numbers]})):
        values = rm.load(placed).score([rows[1], rm.Sample("Q", "made"), rows[0]]).values
    assert values.tolist() == [1.0, -1.0, 0.0]


# --- Groups ---------------------------------------------------------------------------------------------------------------

NO_PROMPTS: tuple[Any, ...] = ("", [])


def of(prompt: Any, lengths: Sequence[int]) -> list[rm.Sample]:
    return [rm.Sample(prompt, "x" * length) for length in lengths]


@pytest.mark.parametrize("prompt", NO_PROMPTS)
@given(lengths=st.lists(st.integers(1, 5), min_size=1, max_size=5))
def test_answers_to_no_known_question_are_not_ranked_with_each_other(prompt: Any, lengths: list[int]) -> None:
    provider = rm.load({"provider": "function", "function": count, "transform": "rank-in-group"})
    others = of("Q", [1, 2])
    values = provider.score([*others, *of(prompt, lengths)]).values
    assert values.tolist() == [0.0, 1.0, *[0.5] * len(lengths)]


@pytest.mark.parametrize("prompt", NO_PROMPTS)
def test_members_do_not_disagree_on_the_order_of_answers_to_no_known_question(prompt: Any) -> None:
    provider = rm.load({"provider": "ensemble", "members": [count, fewer]})
    disagreement = provider.score([*of("Q", [1, 2]), *of(prompt, [1, 2])]).details["rank_disagreement"]
    np.testing.assert_array_equal(disagreement, [0.5, 0.5, np.nan, np.nan])


def test_lengths_of_answers_to_no_known_question_are_not_correlated_as_those_of_one() -> None:
    rewards = np.array([1.0, 2.0, 3.0, 9.0, 1.0])
    lengths = [10, 20, 30, 5, 80]
    together = length_correlation(rewards, lengths, ["Q", "Q", "Q", "", ""])
    assert together == length_correlation(rewards[:3], lengths[:3], ["Q", "Q", "Q"])
    assert together[0] == pytest.approx(1.0)
    assert together[1] == 1


def count(samples: Sequence[rm.Sample]) -> list[float]:
    return [float(len(sample.completion_text)) for sample in samples]


def fewer(samples: Sequence[rm.Sample]) -> list[float]:
    return [-value for value in count(samples)]
