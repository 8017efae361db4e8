"""The provider that compares: its scores, and what it does without a verdict."""

from __future__ import annotations

import math
import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rm_plugins as rm
from rm_plugins.comparisons import Comparison, Verdicts
from rm_plugins.errors import DataError, ScoringError, SpecError
from rm_plugins.identity import fingerprint
from tests.comparisons.judges_of_texts import Recorder, answers, chance, longer, noisy, shown_first

SCHEDULES = ("all-pairs", "circular", "random", "swiss", "knock-out")
HERE = "tests.comparisons.judges_of_texts"


def comparison(function: Any = longer, **keys: Any) -> rm.Provider:
    return rm.load({"provider": "comparison", "comparer": {"name": "function", "function": function}, **keys})


def recorded(**keys: Any) -> tuple[rm.Provider, Recorder]:
    recorder = Recorder()
    return rm.load({"provider": "comparison", "comparer": recorder, **keys}), recorder


def refusing(text: str, *, fails: bool = False) -> Any:
    """Compares by length, but not with one answer."""

    def compare(first: rm.Sample, second: rm.Sample) -> float | None:
        if text in (first.completion_text, second.completion_text):
            if fails:
                raise ValueError("no answer")
            return None
        return longer(first, second)

    return compare


@pytest.mark.parametrize("score", ["bradley-terry", "win-rate"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_better_answers_have_higher_scores(schedule: str, score: str) -> None:
    samples = answers("a", "aaaa", "aa", "aaa")
    rewards = comparison(schedule=schedule, score=score)
    scores = rewards.score(samples)
    assert scores.values[1] == scores.values.max() > scores.values[0]
    if schedule == "all-pairs":
        assert np.argsort(scores.values).tolist() == [0, 2, 3, 1]
    assert (scores.details["standard_error"] > 0).all()
    assert scores.details["comparisons"].sum() == 2 * scores.details["wins"].sum() > 0
    if score == "bradley-terry":
        assert abs(scores.values.sum()) < 1e-9


@st.composite
def batches(draw: st.DrawFn) -> list[rm.Sample]:
    """Samples of several prompts, with equal ones among them, in any order."""
    texts = st.sampled_from("abcdefg")
    rows = [(prompt, text) for prompt in "PQR" for text in draw(st.lists(texts, max_size=6))]
    return [rm.Sample(prompt, text) for prompt, text in draw(st.permutations(rows))]


@pytest.mark.parametrize("score", ["bradley-terry", "win-rate"])
@pytest.mark.parametrize("both_orders", [True, False])
@pytest.mark.parametrize("schedule", SCHEDULES)
@settings(max_examples=15)
@given(batch=batches(), contradictions=st.sampled_from(["missing", "average"]))
@pytest.mark.filterwarnings("ignore:The comparer")
def test_scores_depend_on_the_group_alone(
    schedule: str, both_orders: bool, score: str, contradictions: str, batch: list[rm.Sample]
) -> None:
    """Neither on the order, nor on the other groups, nor on how often an answer is there."""
    keys = {"schedule": schedule, "both_orders": both_orders, "score": score, "contradictions": contradictions}
    rewards = comparison(noisy, **keys, on_error="abstain")
    together = rewards.score(batch)
    backwards = rewards.score(batch[::-1])
    np.testing.assert_array_equal(together.values, backwards.values[::-1])
    by_content: dict[tuple[str, str], float] = {}
    for prompt in "PQR":
        rows = [row for row, sample in enumerate(batch) if sample.prompt == prompt]
        alone = comparison(noisy, **keys, on_error="abstain").score([batch[row] for row in rows])
        np.testing.assert_array_equal(together.values[rows], alone.values)
        for name, column in alone.details.items():
            np.testing.assert_array_equal(together.details[name][rows], column)
    for sample, value in zip(batch, together.values.tolist(), strict=True):
        known = by_content.setdefault((str(sample.prompt), str(sample.completion)), value)
        assert known == value or (math.isnan(known) and math.isnan(value)), "equal completions have one score"


@given(batch=batches(), data=st.data())
def test_flipped_verdicts_negate_scores(batch: list[rm.Sample], data: st.DataObject) -> None:
    def flipped(first: rm.Sample, second: rm.Sample) -> float:
        return 1 - chance(str(first.completion), str(second.completion))

    def plain(first: rm.Sample, second: rm.Sample) -> float:
        return chance(str(first.completion), str(second.completion))

    schedule = data.draw(st.sampled_from(["all-pairs", "circular", "random"]))
    one, other = (
        comparison(function, schedule=schedule, contradictions="average").score(batch).values for function in (plain, flipped)
    )
    np.testing.assert_allclose(one, -other, atol=1e-8)


class TestQuestions:
    def test_all_groups_of_a_round_are_one_call(self) -> None:
        rewards, recorder = recorded(schedule="swiss", rounds=2)
        rewards.score([*answers("a", "aa", "aaa", "aaaa"), *answers("b", "bb", "bbb", "bbbb", prompt="R")])
        assert [len(call) for call in recorder.calls][:2] == [8, 8]  # 2 pairs of 2 groups in both orders
        assert len(recorder.calls) <= 3

    def test_a_known_comparison_is_not_asked_again(self) -> None:
        rewards, recorder = recorded(group="id")
        samples = [rm.Sample("Q", text, {"id": "one"}) for text in ("a", "aa")]
        scores = rewards.score([*samples, *samples, rm.Sample("R", "c", {"id": "two"})])
        assert recorder.calls == [[("a", "aa"), ("aa", "a")]] or recorder.calls == [[("aa", "a"), ("a", "aa")]]
        assert scores.metadata["calls"] == 2

    def test_one_order(self) -> None:
        rewards, recorder = recorded(both_orders=False)
        rewards.score(answers("a", "aa", "aaa", "aaaa", "aaaaa"))
        (asked,) = recorder.calls
        assert len({frozenset(pair) for pair in asked}) == len(asked) == 10
        first = [pair[0] for pair in asked]
        assert {first.count(text) for text in set(first)} == {2}, "each is shown first as often as second"

    def test_a_budget(self) -> None:
        rewards, recorder = recorded(budget=9)
        scores = rewards.score(answers("a", "aa", "aaa", "aaaa"))
        assert len(recorder.calls[0]) == 8
        assert not scores.abstained.any()

    @pytest.mark.parametrize("schedule", SCHEDULES)
    def test_a_budget_that_is_too_small(self, schedule: str) -> None:
        rewards = comparison(schedule=schedule, budget=5, on_error="abstain")
        scores = rewards.score([*answers("a", "aa", "aaa", "aaaa"), *answers("b", "bb", prompt="R")])
        assert scores.abstained.tolist() == [True] * 4 + [False] * 2
        assert "needs at least 3 pairs, which are 6 questions in both orders" in str(scores.errors[0])
        with pytest.raises(
            ScoringError,
            match=r"The budget of 5 questions of .*for a group of 4 .*items 0, 1, 2, 3",
        ):
            comparison(schedule=schedule, budget=5).score(answers("a", "aa", "aaa", "aaaa"))


class TestWithoutVerdicts:
    def test_a_group_of_one(self) -> None:
        rewards = comparison()
        scores = rewards.score([*answers("a"), *answers("b", "bb", prompt="R"), *answers("c", prompt="")])
        assert scores.abstained.tolist() == [True, False, False, True]
        assert not scores.errors
        assert rewards.counts["alone"] == 2
        with pytest.raises(ScoringError, match=r"no other answer to compare item 0 with.*alone: abstain"):
            comparison(alone="error").score(answers("a"))

    def test_equal_completions(self) -> None:
        rewards = comparison()
        assert rewards.score(answers("a", "a", "a")).abstained.all()
        assert rewards.counts["alone"] == 3
        scores = rewards.score(answers("a", "bb", "a"))
        assert scores.values[0] == scores.values[2] < scores.values[1]

    def test_a_comparer_that_fails_for_one_answer(self, caplog: pytest.LogCaptureFixture) -> None:
        rewards = comparison(refusing("aa", fails=True), on_error="abstain")
        scores = rewards.score(answers("a", "aa", "aaa"))
        assert scores.abstained.tolist() == [False, True, False]
        assert list(scores.errors) == [1]
        assert "Every comparison of 1 of 3 answers failed" in str(scores.errors[1])
        assert "ValueError: no answer" in str(scores.errors[1])
        assert scores.metadata["missing"] == 4
        assert rewards.counts["failed_comparisons"] == 4
        assert "4 of 6 comparisons failed" in caplog.text
        with pytest.raises(ScoringError, match="no answer"):
            comparison(refusing("aa", fails=True)).score(answers("a", "aa", "aaa"))

    def test_a_comparer_that_abstains_from_one_answer(self) -> None:
        rewards = comparison(refusing("aa"))
        scores = rewards.score(answers("a", "aa", "aaa"))
        assert scores.abstained.tolist() == [False, True, False]
        assert not scores.errors
        assert rewards.counts["undecided_answers"] == 1

    @pytest.mark.parametrize("score", ["bradley-terry", "win-rate"])
    def test_a_judge_that_always_prefers_the_first(self, score: str) -> None:
        rewards = comparison(shown_first, score=score)
        samples = answers(*("a" * size for size in range(1, 8)))
        with pytest.warns(UserWarning, match="prefers the answer that is shown first in 42 of 42 comparisons"):
            scores = rewards.score(samples)
        assert scores.abstained.all()
        assert not scores.errors
        assert rewards.counts["contradictory_answers"] == 7
        assert (scores.metadata["position_bias"], scores.metadata["contradictory"]) == (1.0, 21)
        rewards.score(samples)  # the warning is given once
        one_order = comparison(shown_first, score=score, both_orders=False, schedule="circular", k=4)
        with pytest.warns(UserWarning, match=r"shown first in 44 of 44 comparisons, although the order is drawn"):
            one_order.score(answers(*("a" * size for size in range(1, 12))))

    def test_contradictions_may_count_as_ties(self) -> None:
        samples = answers("a", "aa", "aaa")
        scores = comparison(shown_first, contradictions="average").score(samples)
        assert scores.values.tolist() == [0.0] * 3
        assert scores.metadata["contradictory"] == 3

    def test_one_order_without_a_verdict_counts_half(self) -> None:
        def half(first: rm.Sample, second: rm.Sample) -> float | None:
            return longer(first, second) if len(first.completion_text) > len(second.completion_text) else None

        scores = comparison(half).score(answers("a", "aa", "aaa"))
        assert scores.details["comparisons"].tolist() == [1.0] * 3
        assert np.argsort(scores.values).tolist() == [0, 1, 2]

    def test_parts_that_no_comparison_connects(self) -> None:
        def within(first: rm.Sample, second: rm.Sample) -> float | None:
            same = first.completion_text[0] == second.completion_text[0]
            return longer(first, second) if same else None

        rewards = comparison(within)
        scores = rewards.score(answers("a", "aa", "aaa", "b", "bb"))
        assert scores.abstained.tolist() == [False, False, False, True, True]
        assert abs(np.nansum(scores.values)) < 1e-9
        assert rewards.counts["disconnected"] == 2
        assert rewards.score(answers("a", "aa", "b", "bb")).abstained.all(), "neither half is the scale of the other"
        assert not comparison(within, score="win-rate").score(answers("a", "aa", "b", "bb")).abstained.any()

    def test_a_comparer_without_enough_verdicts(self) -> None:
        class Short(Recorder):
            name = "short"

            def compare(self, samples: Sequence[rm.Sample], asked: Sequence[Comparison]) -> Verdicts:
                return Verdicts(np.zeros(1))

        with pytest.raises(ScoringError, match="'short' gave 1 verdicts on 2 comparisons"):
            rm.load({"provider": "comparison", "comparer": Short()}).score(answers("a", "aa"))

    def test_verdicts_that_are_not_probabilities(self) -> None:
        with pytest.raises(ScoringError, match=r"comparison 1 has 1\.5"):
            Verdicts(np.array([0.5, 1.5]))
        with pytest.raises(ScoringError, match="has an error, and also a verdict"):
            Verdicts(np.array([0.5]), {0: "refused"})


class TestReferences:
    def rewards(self, **keys: Any) -> rm.Provider:
        return comparison(schedule="reference", reference="gold", **keys)

    def test_strengths_are_relative_to_the_reference(self) -> None:
        samples = [*answers("a", "aaa", "aa", gold="aa"), *answers("x", prompt="alone", gold="yy")]
        scores = self.rewards().score(samples)
        assert scores.values[0] < scores.values[2] == 0.0 < scores.values[1]
        assert scores.values[3] < 0, "a single answer has a reference to be compared with"
        assert scores.details["standard_error"][2] == 0

    def test_win_rates(self) -> None:
        scores = self.rewards(score="win-rate").score(answers("a", "aaa", "aa", gold="aa"))
        assert scores.values.tolist() == [0.0, 1.0, 0.5]

    def test_each_row_has_its_own_reference(self) -> None:
        samples = [*answers("aa", gold="a"), *answers("bb", gold="bbb")]
        scores = self.rewards().score(samples)
        assert scores.values[0] == pytest.approx(-scores.values[1]) == pytest.approx(0.675, abs=1e-3)

    def test_a_row_without_one(self) -> None:
        scores = self.rewards(on_error="abstain").score([*answers("a", gold="aa"), *answers("b"), *answers("c", gold=None)])
        assert scores.abstained.tolist() == [False, True, True]
        assert "item 1 has no reference answer in the column 'gold'. Its columns: none" in str(scores.errors[1])
        assert isinstance(scores.errors[1], DataError)

    def test_conversations(self) -> None:
        prompt = [{"role": "user", "content": "Q"}]
        samples = [rm.Sample(prompt, text, {"gold": "aa"}) for text in ("a", "aaa")]
        values = self.rewards().score(samples).values
        assert values[0] == -values[1] < 0

    def test_the_budget_is_for_each_answer(self) -> None:
        assert not self.rewards(budget=4).score(answers("a", "aaa", gold="aa")).abstained.any()
        with pytest.raises(ScoringError, match="needs at least 2 pairs"):
            self.rewards(budget=3).score(answers("a", "aaa", gold="aa"))


class TestFacts:
    def test_metadata(self) -> None:
        def opinion(first: rm.Sample, second: rm.Sample) -> float | None:
            circle = {"ab": 1.0, "bc": 1.0, "ca": 1.0}
            pair = f"{first.completion_text}{second.completion_text}"
            return 0.5 if "d" in pair else circle.get(pair, 0.0)

        scores = comparison(opinion).score(answers("a", "b", "c", "d"))
        facts = scores.metadata
        assert (facts["calls"], facts["ties"], facts["missing"], facts["contradictory"]) == (12, 6, 0, 0)
        assert facts["position_bias"] == 0.5
        assert facts["intransitive"] == 1.0
        np.testing.assert_allclose(scores.values, 0, atol=1e-9)

    def test_a_comparers_own_facts(self) -> None:
        rewards, _ = recorded()
        assert rewards.score(answers("a", "aa")).metadata["seconds"] == 1.0

    def test_an_id_column(self) -> None:
        samples = [rm.Sample(prompt, text, {"id": 1}) for prompt, text in (("Q", "a"), ("Q!", "aa"))]
        assert comparison().score(samples).abstained.all()
        assert not comparison(group="id").score(samples).abstained.any()
        with pytest.raises(DataError, match="'id'"):
            comparison(group="id").score(answers("a", "b"))


class TestSpecs:
    @pytest.mark.parametrize(
        ("keys", "message"),
        [
            ({"schedule": "circle"}, "schedule: "),
            ({"k": 3}, "k: is not a setting of the schedule 'all-pairs', only of 'circular' and 'random'"),
            ({"schedule": "random", "rounds": 3}, "rounds: is not a setting of the schedule 'random', only of 'swiss'"),
            ({"schedule": "reference"}, "reference: the schedule 'reference' needs the column"),
            ({"reference": "gold"}, "reference: is not a setting of the schedule 'all-pairs'"),
            ({"budget": 0}, "budget: must be at least 1, not 0"),
            ({"prior": 0.0}, "prior: must be from 0.001 to 1000"),
            ({"prior": 1e-200}, "prior: must be from 0.001 to 1000"),
            ({"prior": 1e12}, "prior: must be from 0.001 to 1000"),
            ({"prior": math.inf}, "prior: must be from 0.001 to 1000"),
            ({"alone": "0"}, "alone: "),
            ({"comparer": "functoin"}, "comparer: .*Did you mean 'function'"),
            (
                {"comparer": {"name": "function", "function": "absent:longer"}},
                "comparer.function: 'absent:longer' cannot be imported",
            ),
            (
                {"comparer": {"name": "function", "function": len}},
                r"comparer.function: .*needs the form FUNCTION\(first, second\)",
            ),
        ],
    )
    def test_what_is_refused(self, keys: dict[str, Any], message: str) -> None:
        spec = {"provider": "comparison", "comparer": {"name": "function", "function": longer}, **keys}
        with pytest.raises((SpecError, LookupError), match=message):
            rm.load(spec)

    def test_every_key_that_changes_scores_changes_the_identity(self) -> None:
        base = {
            "provider": "comparison",
            "comparer": {"name": "function", "function": f"{HERE}:longer"},
            "schedule": "circular",
        }
        changes: list[dict[str, Any]] = [
            {},
            {"comparer": {"name": "function", "function": f"{HERE}:noisy"}},
            {"comparer": {"name": "text-pair", "reward": {"provider": "constant", "value": 0.0}, "score": "logit"}},
            {"comparer": {"name": "text-pair", "reward": {"provider": "constant", "value": 1.0}, "score": "logit"}},
            {"comparer": {"name": "text-pair", "reward": {"provider": "constant", "value": 1.0}, "score": "probability"}},
            {"schedule": "random"},
            *({key: value} for key, value in {"k": 3, "budget": 20, "both_orders": False, "prior": 2.0, "seed": 1}.items()),
            {"contradictions": "average"},
            {"score": "win-rate"},
            {"group": "id"},
            {"alone": "error"},
        ]
        fingerprints = [fingerprint(rm.load({**base, **change})) for change in changes]
        assert len(set(fingerprints)) == len(changes)
        waits = {"name": "function", "function": f"{HERE}:longer", "concurrent": True}
        assert fingerprint(rm.load({**base, "comparer": waits})) == fingerprints[0]

    def test_a_pickled_one_gives_the_same_scores(self) -> None:
        rewards = comparison(f"{HERE}:longer", schedule="swiss")
        again = pickle.loads(pickle.dumps(rewards))
        samples = answers("a", "aa", "aaa")
        np.testing.assert_array_equal(again.score(samples).values, rewards.score(samples).values)
        assert fingerprint(again) == fingerprint(rewards)

    def test_other_seeds_draw_other_pairs(self) -> None:
        samples = answers(*("a" * size for size in range(1, 10)))
        one, same, other = (comparison(schedule="random", k=1, seed=seed).score(samples).values for seed in (0, 0, 1))
        assert one.tolist() == same.tolist() != other.tolist()

    def test_it_waits_where_its_comparer_waits(self) -> None:
        assert not comparison().concurrent
        waits = {"name": "function", "function": longer, "concurrent": True}
        assert rm.load({"provider": "comparison", "comparer": waits}).concurrent

    def test_a_comparer_of_a_plugin(self) -> None:
        class Plugin:
            @rm.hookimpl
            def rm_register_comparers(self) -> list[type[Recorder]]:
                return [Recorder]

        rewards = rm.load({"provider": "comparison", "comparer": "recorder"}, registry=rm.Registry([Plugin()]))
        assert rewards.score(answers("a", "aa")).values[1] > 0

    def test_in_an_ensemble_with_a_transform(self) -> None:
        spec = {"provider": "comparison", "comparer": {"name": "function", "function": longer}, "transform": "rank-in-group"}
        rewards = rm.load({"provider": "sum", "members": [spec, lambda samples: [0.5] * len(samples)]})
        assert rewards.score(answers("a", "aaa", "aa")).values.tolist() == [0.5, 1.5, 1.0]
