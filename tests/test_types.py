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
from rm_plugins.errors import DataError, ScoringError, SpecError, UnsupportedError
from rm_plugins.providers.combinators.constant import Constant
from rm_plugins.providers.combinators.ensemble import Ensemble
from rm_plugins.providers.combinators.fallback import Fallback
from rm_plugins.providers.combinators.gate import Gate
from rm_plugins.providers.combinators.product import Product
from rm_plugins.providers.combinators.sum import Sum
from rm_plugins.providers.combinators.threshold import Threshold
from rm_plugins.samples import RenderedSample, text_of
from rm_plugins.scores import FloatArray, parts_of_columns
from rm_plugins.transforms import Clip, Scale
from rm_plugins.transforms.zscore import ZScore
from tests.conftest import MakeFolder

USER = {"role": "user", "content": "2+2?"}
ASSISTANT = {"role": "assistant", "content": "4"}


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


class TestSample:
    def test_text_is_kept_as_it_is(self) -> None:
        sample = rm.Sample("Q", "", {"answer": 4})
        assert (sample.prompt, sample.completion, sample.columns) == ("Q", "", {"answer": 4})
        assert not sample.is_conversational

    def test_text_under_messages_becomes_the_assistants_turn(self) -> None:
        sample = rm.Sample([USER], "4")
        assert sample.is_conversational
        assert sample.messages == [USER, ASSISTANT]
        assert rm.Sample([], "").messages == [{"role": "assistant", "content": ""}]

    def test_several_turns_and_tool_calls_are_messages(self) -> None:
        call = {"role": "assistant", "content": None, "tool_calls": [{"type": "function"}]}
        answer = {"role": "tool", "content": "4"}
        assert rm.Sample([USER], [call, answer, ASSISTANT]).messages == [USER, call, answer, ASSISTANT]

    @pytest.mark.parametrize(
        ("prompt", "completion", "message"),
        [
            ("Q", [ASSISTANT], "prompt is text but its completion is a list of messages"),
            (None, "4", "prompt must be text or a list of messages, not NoneType"),
            ("Q", 4, "completion must be text or a list of messages, not int: 4"),
            (["2+2?"], "4", r"prompt\[0\] is not a message with 'role' and 'content': '2\+2\?'"),
            ([USER, {"content": "x"}], "4", r"prompt\[1\] is not a message"),
            ([USER], [{"role": "bot", "content": "4"}], r"completion\[0\] has the unknown role 'bot'. Allowed: assistant, dev"),
            ([USER], [{"role": "assistant", "content": None}], r"completion\[0\] needs text as its content, not NoneType"),
            ([USER], [{"role": "assistant"}], r"completion\[0\] needs text as its content"),
            ([{"role": "user", "content": ["2+2?"]}], "4", r"prompt\[0\].content\[0\] is not a part with a 'type'"),
            ([{"role": "user", "content": [{"type": "text"}]}], "4", r"prompt\[0\].content\[0\] .* 'text' and has no text"),
        ],
    )
    def test_anything_else_is_refused(self, prompt: Any, completion: Any, message: str) -> None:
        with pytest.raises(DataError, match=message):
            rm.Sample(prompt, completion)

    def test_text_has_no_messages(self) -> None:
        with pytest.raises(UnsupportedError, match="has no messages"):
            _ = rm.Sample("Q", "4").messages

    def test_it_can_be_pickled(self) -> None:
        sample = rm.Sample([USER], "4", {"answer": 4})
        assert pickle.loads(pickle.dumps(sample)) == sample


class TestScores:
    def test_values_and_details_become_float64(self) -> None:
        scores = rm.Scores([1, 2], {"std": [0, 1]})  # type: ignore[arg-type, dict-item]
        assert scores.values.dtype == scores.details["std"].dtype == np.float64
        assert len(scores) == 2

    def test_nan_abstains(self) -> None:
        assert rm.Scores(np.array([0.0, np.nan])).abstained.tolist() == [False, True]

    def test_shapes_are_checked(self) -> None:
        with pytest.raises(ScoringError, match=r"\[N\]; got an array of shape \(2, 1\)"):
            rm.Scores(np.zeros((2, 1)))
        with pytest.raises(ScoringError, match=r"detail 'std' has shape \(3,\); \(2,\) was expected"):
            rm.Scores(np.zeros(2), {"std": np.zeros(3)})

    def test_scattering_abstains_elsewhere(self) -> None:
        scores = rm.Scores(np.array([1.0, 2.0]), {"std": np.array([3.0, 4.0])}).scattered([2, 0], 4)
        np.testing.assert_array_equal(scores.values, [2, np.nan, 1, np.nan])
        np.testing.assert_array_equal(scores.details["std"], [4, np.nan, 3, np.nan])


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
            (lambda values: np.nan_to_num(values), "'reshaped' of the provider 'lengths' made a score of 1 abstentions"),
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
    with pytest.raises(UnsupportedError, match=r"'lengths' \(lengths\) has no text of its own"):
        Lengths().render(rm.Sample("a", "b"))


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


def array(*values: float) -> FloatArray:
    return np.array(values, dtype=np.float64)


def test_parts_carry_everything_and_are_named_at_the_edge() -> None:
    inner = rm.Scores(array(1, 2), {"std": array(0.1, 0.2)}, kind="member")
    scores = rm.Scores(
        array(1, np.nan), {"spread": array(3, 4)}, errors={1: ScoringError("no")}, parts={"0": inner, "gate": inner}
    )
    assert list(scores.columns) == ["member/0", "member/gate", "spread", "member/0/std", "member/gate/std"]
    picked = scores.rows([1, 0])
    assert (sorted(picked.errors), picked.parts["0"].values.tolist()) == ([0], [2.0, 1.0])
    spread = scores.scattered([2, 0], 4)
    assert (sorted(spread.errors), spread.failed.tolist()) == ([0], [True, False, False, False])
    np.testing.assert_array_equal(spread.parts["0"].details["std"], [0.2, np.nan, 0.1, np.nan])
    with pytest.raises(ScoringError, match="Row 2 has an error, and there are 2 samples"):
        rm.Scores(array(1, 2), errors={2: ScoringError("no")})
    with pytest.raises(ScoringError, match="The part '0' has 2 scores; 1 were expected"):
        rm.Scores(array(1), parts={"0": inner})
    assert np.isnan(rm.Scores(array(5), errors={0: ScoringError("no")}).values[0])


PARTS = [{"role": "user", "content": [{"type": "text", "text": "2+"}, {"type": "text", "text": "2?"}]}]
PICTURE = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "2+2?"}]}]


class TestContentsInParts:
    """TRL's trainers of vision models make a list of parts of every content."""

    def test_text_parts_are_the_text(self, tiny_decoder: MakeFolder) -> None:
        plain, parts = (
            rm.Sample([USER], "4"),
            rm.Sample(PARTS, [{"role": "assistant", "content": [{"type": "text", "text": "4"}]}]),
        )
        assert parts.text_messages == plain.messages
        assert (parts.prompt_key, parts.key, parts.completion_text) == (plain.prompt_key, plain.key, "4")
        for spec in (
            str(tiny_decoder()),
            {"provider": "sequence-classifier", "model": str(tiny_decoder()), "chat_template": "plain"},
            {"provider": "length-window", "high": 3},
            {"provider": "format", "pattern": r"\d"},
        ):
            reward = rm.load(spec)
            scores = reward.score([plain, parts]).values
            assert scores[0] == scores[1]

    def test_what_is_no_text_is_refused_when_it_is_scored(self, tiny_decoder: MakeFolder) -> None:
        reward = rm.load(tiny_decoder())
        samples = [rm.Sample([USER], "4"), rm.Sample(PICTURE, "4"), rm.Sample([USER], "5")]
        with pytest.raises(
            DataError, match=r"Item 1 cannot be rendered: .* of the type 'image', and only text can be"
        ) as caught:
            reward.score(samples)
        assert caught.value.rows == frozenset({1})
        scores = reward.score(samples, on_error="abstain")
        assert list(scores.errors) == [1]
        np.testing.assert_array_equal(scores.values[[0, 2]], reward.score([samples[0], samples[2]]).values)

    @pytest.mark.parametrize(
        "spec",
        [
            {"provider": "format", "pattern": "4"},
            {"provider": "phrases", "required": ["4"]},
            {"provider": "repetition"},
            {"provider": "length-window", "high": 3},
            {"provider": "json-schema"},
        ],
        ids=lambda spec: str(spec["provider"]),
    )
    def test_rules_fail_for_the_one_sample(self, spec: dict[str, Any]) -> None:
        picture = [{"role": "assistant", "content": [{"type": "image"}]}]
        samples = [rm.Sample(PICTURE, "4"), rm.Sample([USER], picture)]
        scores = rm.load(spec).score(samples, on_error="abstain")
        assert (list(scores.errors), scores.abstained.tolist()) == ([1], [False, True])

    def test_it_is_shown_all_the_same(self) -> None:
        assert text_of(PICTURE) == "<image>2+2?"


@pytest.mark.parametrize(
    ("one", "other", "same_prompt", "same"),
    [
        (rm.Sample("a", "b"), rm.Sample("a", "b", {"id": 7}), True, True),
        (rm.Sample("a", "b"), rm.Sample("a", "c"), True, False),
        (rm.Sample("ab", "c"), rm.Sample("a", "bc"), False, False),
        (rm.Sample([USER], "4"), rm.Sample([{**USER, "name": None}], "4"), True, True),
        (rm.Sample([USER], "4"), rm.Sample([USER], "4", {"tools": []}), True, True),
        (rm.Sample([USER], "4"), rm.Sample([USER], "4", {"tools": [{"name": "add"}]}), False, False),
        (rm.Sample([USER], "4"), rm.Sample([USER], "4", {"chat_template_kwargs": {"thinking": True}}), False, False),
        (rm.Sample("2+2?", "4"), rm.Sample([USER], "4"), False, False),
        (RenderedSample.of("a"), RenderedSample.of("a", add_special_tokens=False), True, False),
        (RenderedSample.of([1, 2]), RenderedSample.of([12]), True, False),
    ],
)
def test_keys(one: rm.Sample, other: rm.Sample, same_prompt: bool, same: bool) -> None:
    assert ((one.prompt_key == other.prompt_key), (one.key == other.key)) == (same_prompt, same)


def test_what_was_written_out_is_read_back() -> None:
    """Members become parts again, however deep; other names stay details."""
    inner = rm.Scores(np.array([3.0]), {"std": np.array([0.5])}, kind="member")
    member = rm.Scores(np.array([1.0]), {"raw": np.array([2.0])}, parts={"1": inner}, kind="member")
    scores = rm.Scores(np.array([0.0]), {"std": np.array([9.0]), "member/5/raw": np.array([7.0])}, parts={"0": member})
    details, parts = parts_of_columns(scores.columns)
    read = rm.Scores(scores.values, details, parts=parts)
    assert read.columns == scores.columns and list(read.columns) == list(scores.columns)
    assert list(read.details) == ["std", "member/5/raw"], "there is no member 5"
    assert list(read.members) == list(scores.members) == ["member/0"]
    assert list(read.parts["0"].members) == ["member/1"]
