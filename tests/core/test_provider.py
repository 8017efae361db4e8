"""Samples, scores, and what `Provider.score` promises whatever a provider does."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import rm_plugins as rm
from rm_plugins.errors import DataError, PluginError, ScoringError, SpecError, UnsupportedError
from rm_plugins.providers.combinators.constant import Constant
from rm_plugins.providers.combinators.ensemble import Ensemble
from rm_plugins.providers.combinators.fallback import Fallback
from rm_plugins.providers.combinators.gate import Gate
from rm_plugins.providers.combinators.product import Product
from rm_plugins.providers.combinators.sum import Sum
from rm_plugins.providers.combinators.threshold import Threshold
from rm_plugins.scores import FloatArray
from rm_plugins.transforms import Clip, Scale
from rm_plugins.transforms.rescaled import ZScore


class Lengths(rm.Provider):
    """Scores a completion's length; ``?`` abstains, ``!`` fails by row, ``!!`` fails the batch, ``~`` is infinite."""

    name: ClassVar[str] = "lengths"

    def __init__(self) -> None:
        self.seen: list[list[str]] = []

    def score_batch(self, samples: Sequence[rm.Sample]) -> rm.Scores:
        texts = [str(sample.completion) for sample in samples]
        self.seen.append(texts)
        if "!!" in texts:
            raise ScoringError("the whole batch")
        if failed := [row for row, text in enumerate(texts) if text == "!"]:
            raise ScoringError("some rows", rows=failed)
        values = np.array([{"?": np.nan, "~": np.inf}.get(text, float(len(text))) for text in texts])
        return rm.Scores(values, {"twice": 2 * values}, {"batch": len(samples)})


def completions(*texts: str) -> list[rm.Sample]:
    return [rm.Sample("", text) for text in texts]


class TestScore:
    def test_order_and_count_are_kept(self) -> None:
        scores = Lengths().score(completions("aaa", "", "aa", "a"))
        assert scores.values.tolist() == [3, 0, 2, 1]
        assert scores.details["twice"].tolist() == [6, 0, 4, 2]
        assert scores.metadata == {"batch": 4}

    def test_an_empty_batch_reaches_no_provider(self) -> None:
        provider = Lengths()
        assert provider.score([]).values.shape == (0,)
        assert provider.seen == []

    def test_only_samples_are_scored(self) -> None:
        with pytest.raises(DataError, match="item 1 is str: 'b'"):
            Lengths().score([rm.Sample("", "a"), "b"])  # type: ignore[list-item]

    def test_abstaining_is_no_failure(self) -> None:
        provider = Lengths()
        np.testing.assert_array_equal(provider.score(completions("a", "?")).values, [1, np.nan])
        assert provider.counts == {"samples": 2, "abstained": 1}

    def test_one_score_a_sample_is_demanded(self) -> None:
        class Short(Lengths):
            name = "short"

            def score_batch(self, samples: Sequence[rm.Sample]) -> rm.Scores:
                return super().score_batch(samples[1:])

        with pytest.raises(ScoringError, match="'short' returned 1 scores for 2 samples"):
            Short().score(completions("a", "b"))

    def test_infinity_is_an_error_that_names_the_first_row(self) -> None:
        with pytest.raises(ScoringError, match=r"infinite score for 1 of 2 samples \(first: item 1\)") as caught:
            Lengths().score(completions("a", "~"))
        assert caught.value.rows == frozenset([1])

    def test_a_foreign_exception_is_translated_with_its_cause(self) -> None:
        class Careless(Lengths):
            name = "careless"

            def score_batch(self, samples: Sequence[rm.Sample]) -> rm.Scores:
                raise ZeroDivisionError("by nothing")

        with pytest.raises(ScoringError, match="'careless' failed: ZeroDivisionError: by nothing") as caught:
            Careless().score(completions("a"))
        assert isinstance(caught.value.__cause__, ZeroDivisionError)

    def test_an_error_of_ours_passes_whatever_the_policy(self) -> None:
        class Misconfigured(Lengths):
            name = "misconfigured"

            def score_batch(self, samples: Sequence[rm.Sample]) -> rm.Scores:
                raise SpecError("no such key")

        provider = Misconfigured()
        provider.on_error = "abstain"
        with pytest.raises(SpecError, match="no such key"):
            provider.score(completions("a"))

    def test_raising_is_the_default(self) -> None:
        provider = Lengths()
        with pytest.raises(ScoringError, match="some rows"):
            provider.score(completions("a", "!"))
        assert provider.counts == {}


class TestOnError:
    def test_failed_rows_abstain_and_the_others_are_scored(self, caplog: pytest.LogCaptureFixture) -> None:
        provider = Lengths()
        provider.on_error = "abstain"
        with caplog.at_level(logging.WARNING, "rm_plugins"):
            scores = provider.score(completions("aa", "!", "a", "?", "!"))
        np.testing.assert_array_equal(scores.values, [2, np.nan, 1, np.nan, np.nan])
        np.testing.assert_array_equal(scores.details["twice"], [4, np.nan, 2, np.nan, np.nan])
        assert provider.seen == [["aa", "!", "a", "?", "!"], ["aa", "a", "?"]]
        assert provider.counts == {"samples": 5, "abstained": 3, "errors": 1}
        assert "2 of 5 samples failed, they abstain: some rows" in caplog.text

    def test_a_failed_batch_abstains_as_a_whole(self) -> None:
        provider = Lengths()
        provider.on_error = "abstain"
        assert provider.score(completions("a", "!!")).abstained.all()
        assert provider.counts == {"samples": 2, "abstained": 2, "errors": 1}

    def test_infinite_rows_abstain_alone(self) -> None:
        provider = Lengths()
        provider.on_error = "abstain"
        np.testing.assert_array_equal(provider.score(completions("~", "a")).values, [np.nan, 1])

    @pytest.mark.parametrize("on_error", ["raise", "abstain"])
    def test_the_fallback_scores_the_failed_rows_only(self, on_error: Any, caplog: pytest.LogCaptureFixture) -> None:
        class Zero(Lengths):
            name = "zero"

            def score_batch(self, samples: Sequence[rm.Sample]) -> rm.Scores:
                self.seen.append([str(sample.completion) for sample in samples])
                return rm.Scores(np.zeros(len(samples)), {"own": np.ones(len(samples))})

        provider, fallback = Lengths(), Zero()
        provider.fallback, provider.on_error = fallback, on_error
        with caplog.at_level(logging.WARNING, "rm_plugins"):
            scores = provider.score(completions("aa", "!", "?", "!"))
        np.testing.assert_array_equal(scores.values, [2, 0, np.nan, 0])
        np.testing.assert_array_equal(scores.columns["fallback/own"], [np.nan, 1, np.nan, 1])
        np.testing.assert_array_equal(scores.details["twice"], [4, np.nan, np.nan, np.nan])
        assert fallback.seen == [["!", "!"]]
        assert provider.counts == {"samples": 4, "abstained": 1, "errors": 1, "fallbacks": 2}
        assert "'zero' scores them" in caplog.text

    def test_a_fallback_that_fails_raises_unless_it_abstains(self) -> None:
        provider, fallback = Lengths(), Lengths()
        provider.fallback, provider.on_error = fallback, "abstain"
        with pytest.raises(ScoringError, match="some rows"):
            provider.score(completions("a", "!"))
        fallback.on_error = "abstain"
        np.testing.assert_array_equal(provider.score(completions("a", "!")).values, [1, np.nan])

    def test_rows_outside_the_batch_fail_it_as_a_whole(self) -> None:
        class Confused(Lengths):
            name = "confused"

            def score_batch(self, samples: Sequence[rm.Sample]) -> rm.Scores:
                raise ScoringError("somewhere", rows=[7])

        provider = Confused()
        provider.on_error = "abstain"
        assert provider.score(completions("a", "b")).abstained.all()


class TestTransformed:
    def test_the_raw_scores_become_a_detail(self) -> None:
        provider = Lengths()
        provider.transform = Scale(factor=10.0)
        scores = provider.score(completions("a", "?"))
        np.testing.assert_array_equal(scores.values, [10, np.nan])
        np.testing.assert_array_equal(scores.details["raw"], [1, np.nan])

    def test_an_infinite_score_is_an_error_though_a_transform_would_hide_it(self) -> None:
        provider = Lengths()
        provider.transform = Clip(high=1.0)
        with pytest.raises(ScoringError, match="infinite score"):
            provider.score(completions("~"))

    @pytest.mark.parametrize(
        ("reshape", "message"),
        [
            (lambda values: values * np.inf, "infinite score for 2 of 3"),
            (lambda values: values[1:], "returned 2 scores for 3 samples"),
            (lambda values: np.nan_to_num(values), "'reshaped' of the provider 'lengths' turned 1 abstentions into scores"),
            (lambda values: 1 / 0, "ZeroDivisionError"),
        ],
    )
    def test_a_transform_keeps_what_a_provider_must(self, reshape: Callable[[Any], Any], message: str) -> None:
        class Reshaped(rm.Transform):
            name: ClassVar[str] = "reshaped"

            def __call__(self, values: Any, samples: Sequence[rm.Sample]) -> Any:
                return reshape(values)

        provider = Lengths()
        provider.transform = Reshaped()
        with pytest.raises(ScoringError, match=message):
            provider.score(completions("a", "?", "b"))


def test_the_observer_sees_the_whole_batch_once() -> None:
    seen: list[tuple[rm.Provider, int, list[float]]] = []
    provider = Lengths()
    provider.on_error = "abstain"
    provider.observer = lambda provider, samples, scores: seen.append((provider, len(samples), scores.values.tolist()))
    provider.score(completions("a", "!"))
    provider.score([])
    assert [(found, size) for found, size, _ in seen] == [(provider, 2)]
    np.testing.assert_array_equal(seen[0][2], [1, np.nan])


def test_a_provider_is_labelled_by_its_name() -> None:
    assert Lengths().label == "lengths"


def test_a_provider_without_text_renders_none() -> None:
    with pytest.raises(UnsupportedError, match=r"'lengths' \(lengths\) does not render text"):
        Lengths().render(rm.Sample("a", "b"))


def test_a_class_without_a_name_is_refused_where_it_is_defined() -> None:
    with pytest.raises(PluginError, match=r"The provider class .*\.Nameless has no name\. .* set `name` in the class"):

        class Nameless(rm.Provider):
            def score_batch(self, samples: Sequence[rm.Sample]) -> rm.Scores:
                return rm.Scores(np.ones(len(samples)))

    with pytest.raises(PluginError, match=r"The transform class .*\.Same has no name"):

        class Same(rm.Transform):
            def __call__(self, values: FloatArray, samples: Sequence[rm.Sample]) -> FloatArray:
                return values


def test_an_abstract_class_does_not_have_to_have_a_name() -> None:
    class Half(rm.Provider):
        pass

    class Whole(Half):
        name = "whole"

        def score_batch(self, samples: Sequence[rm.Sample]) -> rm.Scores:
            return rm.Scores(np.ones(len(samples)))

    with pytest.raises(UnsupportedError, match=r"The provider 'whole' \(whole\) does not render text"):
        Whole().render(rm.Sample("Q", "A"))


def test_a_scoring_error_survives_pickling_with_its_rows() -> None:
    error = pickle.loads(pickle.dumps(ScoringError("some rows", rows=[1, 2])))
    assert (str(error), error.rows) == ("some rows", frozenset([1, 2]))
    assert pickle.loads(pickle.dumps(ScoringError("all"))).rows is None


class TestFailuresAsData:
    """What failed is among the errors, and what did not is not scored again."""

    class Counting(rm.Provider):
        """Scores lengths, fails on ``!``, and counts how often it has scored each completion."""

        name = "counting"

        def __init__(self, *, raises: bool = False) -> None:
            self.raises = raises
            self.scored: list[str] = []

        def score_batch(self, samples: Sequence[rm.Sample]) -> rm.Scores:
            texts = [str(sample.completion) for sample in samples]
            failed = [row for row, text in enumerate(texts) if text == "!"]
            if failed and self.raises:
                raise ScoringError("it is an exclamation", rows=failed)
            self.scored += texts
            error = ScoringError("it is an exclamation", rows=failed)
            return rm.Scores(np.array([float(len(text)) for text in texts]), errors=dict.fromkeys(failed, error))

    def test_good_samples_are_scored_once(self) -> None:
        provider = self.Counting()
        provider.on_error = "abstain"
        scores = provider.score(completions("a", "bb", "!", "ccc"))
        np.testing.assert_array_equal(scores.values, [1, 2, np.nan, 3])
        assert list(scores.errors) == [2]
        assert provider.scored == ["a", "bb", "!", "ccc"]
        assert provider.counts == {"samples": 4, "abstained": 1, "errors": 1}

    def test_an_exception_that_names_rows_is_the_same(self) -> None:
        provider = self.Counting(raises=True)
        provider.on_error = "abstain"
        scores = provider.score(completions("a", "bb", "!", "ccc"))
        np.testing.assert_array_equal(scores.values, [1, 2, np.nan, 3])
        assert provider.scored == ["a", "bb", "ccc"]

    @pytest.mark.parametrize("raises", [False, True])
    def test_raised_errors_say_who_and_which(self, raises: bool) -> None:
        provider = self.Counting(raises=raises)
        provider.where = "rewards.yaml: members[1]"
        with pytest.raises(ScoringError, match="it is an exclamation") as caught:
            provider.score(completions("!", "a", "!"))
        assert (caught.value.provider, caught.value.path) == ("counting", "rewards.yaml: members[1]")
        assert caught.value.rows == frozenset({0, 2})
        copied = pickle.loads(pickle.dumps(caught.value))
        assert (str(copied), copied.rows, copied.provider, copied.path) == (
            *(str(caught.value), frozenset({0, 2})),
            *("counting", "rewards.yaml: members[1]"),
        )

    @pytest.mark.parametrize("policy", ["abstain", "fallback"])
    @pytest.mark.parametrize("outer", ["ensemble", "sum", "product", "threshold", "gate", "fallback"])
    def test_members_score_good_samples_once(self, outer: str, policy: str) -> None:
        first, second = self.Counting(), self.Counting()
        wholes: dict[str, Callable[[], rm.Provider]] = {
            "ensemble": lambda: Ensemble(members=[first, second]),
            "sum": lambda: Sum(members=[first, second]),
            "product": lambda: Product(members=[first, second]),
            "threshold": lambda: Threshold(reward=first, at=2.0),
            "gate": lambda: Gate(gate=first, reward=second, at=0.0),
            "fallback": lambda: Fallback(members=[first]),
        }
        whole = wholes[outer]()
        if policy == "abstain":
            whole.on_error = "abstain"
        else:
            whole.fallback = Constant(value=-7.0)
        scores = whole.score(completions("a", "bb", "!", "ccc"))
        assert first.scored == ["a", "bb", "!", "ccc"]
        assert np.isnan(scores.values).tolist() == [False, False, policy == "abstain", False]
        assert sorted(scores.errors) == ([2] if policy == "abstain" else [])

    def test_a_fallbacks_failure_that_abstains_is_counted_and_logged(self, caplog: pytest.LogCaptureFixture) -> None:
        provider, fallback = self.Counting(), self.Counting()
        provider.fallback = fallback
        with caplog.at_level(logging.WARNING, "rm_plugins"):
            scores = provider.score(completions("a", "!"), on_error="abstain")
        assert list(scores.errors) == [1]
        assert (provider.counts["errors"], fallback.counts["errors"]) == (1, 1)
        assert "1 of 1 samples failed, they abstain" in caplog.text

    def test_running_statistics_count_good_samples_once(self) -> None:
        provider, alone = self.Counting(), self.Counting()
        provider.on_error = "abstain"
        provider.transform, alone.transform = ZScore(running=True), ZScore(running=True)
        provider.score(completions("a", "bb", "!", "ccc"))
        alone.score(completions("a", "bb", "ccc"))
        assert provider.transform.state() == alone.transform.state()

    @given(st.lists(st.sampled_from(["a", "bb", "!"]), min_size=1, max_size=8), st.booleans())
    def test_whatever_fails(self, texts: list[str], raises: bool) -> None:
        provider = self.Counting(raises=raises)
        ensemble = Ensemble(members=[provider, self.Counting(raises=not raises)])
        ensemble.on_error = "abstain"
        scores = ensemble.score(completions(*texts))
        failed = [row for row, text in enumerate(texts) if text == "!"]
        assert sorted(scores.errors) == failed
        np.testing.assert_array_equal(scores.values, [np.nan if text == "!" else len(text) for text in texts])
        assert [text for text in provider.scored if text != "!"] == [text for text in texts if text != "!"]
