"""Comparers: functions, rewards of one text with both answers, and classifiers that read two answers."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import rm_plugins as rm
from rm_plugins.comparisons import Comparer, Comparison, Verdicts
from rm_plugins.comparisons.function_comparer import FunctionComparer
from rm_plugins.comparisons.listwise import covering_lists, ranking_in
from rm_plugins.comparisons.text_pair import TextPair
from rm_plugins.comparisons.two_answers import TwoAnswers
from rm_plugins.errors import SpecError
from rm_plugins.identity import fingerprint
from rm_plugins.scores import FloatArray
from tests.comparisons.judges_of_texts import answers
from tests.conftest import MakeFolder

BOTH = [Comparison(0, 1), Comparison(1, 0)]
QUESTION = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "two and two?"}]


class TestFunctions:
    @pytest.mark.parametrize(
        ("answer", "probability"),
        [(True, 1.0), (False, 0.0), (0.25, 0.25), (1, 1.0), (None, np.nan), (float("nan"), np.nan), (np.float32(0.5), 0.5)],
    )
    def test_answers(self, answer: Any, probability: float) -> None:
        verdicts = FunctionComparer(function=lambda first, second: answer).compare(answers("a", "b"), BOTH)
        np.testing.assert_equal(verdicts.probabilities, [probability] * 2)
        assert not verdicts.errors

    @pytest.mark.parametrize(
        "answer", [1.5, -0.1, float("inf"), "A", "0.5", [1.0], 10**400, 1j, np.ones(2), torch.ones(3)], ids=str
    )
    def test_other_answers_are_failures(self, answer: Any) -> None:
        verdicts = FunctionComparer(function=lambda first, second: answer).compare(answers("a", "b"), BOTH)
        assert np.isnan(verdicts.probabilities).all()
        assert "a number from 0 to 1, true, false or None was expected" in verdicts.errors[0]

    def test_one_failure_does_not_affect_the_other_comparisons(self) -> None:
        def compare(first: rm.Sample, second: rm.Sample) -> Any:
            return np.ones(2) if first.completion == "a" else 0.25

        verdicts = FunctionComparer(function=compare).compare(answers("a", "b"), BOTH)
        np.testing.assert_equal(verdicts.probabilities, [np.nan, 0.25])
        assert list(verdicts.errors) == [0]

    def test_arguments(self) -> None:
        def weighted(first: rm.Sample, second: rm.Sample, *, weight: float) -> float:
            return weight

        assert (
            FunctionComparer(function=weighted, arguments={"weight": 0.75}).compare(answers("a", "b"), BOTH[:1]).probabilities
            == 0.75
        )
        with pytest.raises(SpecError, match="cannot be called with two samples"):
            FunctionComparer(function=weighted)


class Seen(rm.Provider):
    """Scores by what follows ``A: ``, and keeps what it scored."""

    name = "seen"

    def __init__(self, values: Sequence[float] = (2.0, -1.0)) -> None:
        self.values = values
        self.seen: list[rm.Sample] = []

    def score_batch(self, samples: Sequence[rm.Sample]) -> rm.Scores:
        self.seen += samples
        return rm.Scores(np.array([self.values[row % len(self.values)] for row in range(len(samples))]))


class TestOneText:
    def test_a_text(self) -> None:
        reward = Seen()
        verdicts = TextPair(reward=reward, score="logit").compare(answers("four", "five", prompt="2+2?"), BOTH)
        assert [(sample.prompt, sample.completion) for sample in reward.seen] == [
            ("2+2?", "A: four\n\nB: five"),
            ("2+2?", "A: five\n\nB: four"),
        ]
        np.testing.assert_allclose(verdicts.probabilities, 1 / (1 + np.exp([-2.0, 1.0])))

    def test_conversations_and_a_prompt(self) -> None:
        reward = Seen()
        samples = [rm.Sample(QUESTION, text, {"tools": ["t"], "other": text}) for text in ("four", "five")]
        TextPair(reward=reward, score="logit", template="{first} or {second}").compare(samples, BOTH[:1])
        TextPair(reward=reward, score="logit", template="{first} or {second}", prompt="Q: {prompt}").compare(samples, BOTH[:1])
        own, made = reward.seen
        assert own.prompt == QUESTION
        assert made.prompt == [{"role": "user", "content": "Q: System: Be brief.\n\nUser: two and two?"}]
        assert own.completion == made.completion == [{"role": "assistant", "content": "four or five"}]
        assert own.columns == {"tools": ["t"]}

    def test_probabilities(self) -> None:
        verdicts = TextPair(reward=Seen([0.75, 1.5]), score="probability").compare(answers("a", "b"), BOTH)
        np.testing.assert_equal(verdicts.probabilities, [0.75, np.nan])
        assert list(verdicts.errors) == [1]
        assert "1.5, which is not a probability; if its scores are logits, set `score: logit`" in verdicts.errors[1]

    def test_failures_and_abstentions(self) -> None:
        def reward(samples: Sequence[rm.Sample]) -> rm.Scores:
            return rm.Scores(np.full(2, np.nan), errors={1: rm.RmPluginsError("no connection")})

        verdicts = TextPair(reward=rm.load(reward), score="logit").compare(answers("a", "b"), BOTH)
        assert np.isnan(verdicts.probabilities).all()
        assert verdicts.errors == {1: "no connection"}
        image = rm.Sample([{"role": "user", "content": [{"type": "image"}]}], "y")
        assert (
            "image"
            in TextPair(reward=Seen(), score="logit", template="{prompt} {first} {second}")
            .compare([image, image], BOTH)
            .errors[0]
        )

    def test_a_template_needs_both_answers(self) -> None:
        comparer = {"name": "text-pair", "reward": Seen(), "score": "logit", "template": "{first}"}
        with pytest.raises(SpecError, match=r"template: the template needs the placeholder \{second\}"):
            rm.load({"provider": "comparison", "comparer": comparer})

    def test_a_failing_reward_and_its_place(self) -> None:
        def broken(samples: Sequence[rm.Sample]) -> list[float]:
            raise RuntimeError("no network")

        comparer = {"name": "text-pair", "score": "logit"}
        rewards = rm.load({"provider": "comparison", "comparer": {**comparer, "reward": broken}})
        assert [path for path, _ in rewards.walk()] == ["", "comparer.reward"]
        with pytest.raises(rm.RmPluginsError, match="no network"):
            rewards.score(answers("a", "b"))
        quiet = {"provider": "function", "function": broken, "on_error": "abstain"}
        abstaining = rm.load({"provider": "comparison", "comparer": {**comparer, "reward": quiet}})
        scores = abstaining.score(answers("a", "b"))
        assert scores.abstained.all()
        assert not scores.errors


class TestTwoAnswers:
    def expected(self, folder: Any, rows: list[list[int]]) -> FloatArray:
        model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        with torch.no_grad():
            logits = [model(input_ids=torch.tensor([row])).logits[0].double().numpy() for row in rows]
        return np.stack(logits)

    def test_one_row_with_separators(self, tiny_encoder: MakeFolder) -> None:
        folder = tiny_encoder()
        tokenizer = AutoTokenizer.from_pretrained(folder)
        comparer = TwoAnswers(model=str(folder))
        samples = answers("four", "one", prompt="two and two?")
        rows = [tokenizer(f"two and two?[SEP]{a}[SEP]{b}")["input_ids"] for a, b in (("four", "one"), ("one", "four"))]
        assert [comparer.token_ids(samples[q.first], samples[q.second]) for q in BOTH] == rows
        logits = self.expected(folder, rows)[:, 0]
        np.testing.assert_allclose(comparer.compare(samples, BOTH).probabilities, 1 / (1 + np.exp(-logits)), atol=1e-5)

    def test_parts_with_their_own_special_tokens(self, tiny_encoder: MakeFolder) -> None:
        """The rows of PairRM: each part is encoded as a text, with a prefix, and cut off at its end."""
        folder = tiny_encoder()
        tokenizer = AutoTokenizer.from_pretrained(folder)
        parts = ["question: {prompt}", "answer one: {first}", "answer two: {second}"]
        comparer = TwoAnswers(model=str(folder), parts=parts, special_tokens="each", max_part_tokens=[8, 6, 6])
        samples = answers("four four four four", "one", prompt="two and two?")
        texts = ["question: two and two?", "answer one: four four four four", "answer two: one"]
        row = [
            token
            for text, limit in zip(texts, (8, 6, 6), strict=True)
            for token in tokenizer(text, truncation=True, max_length=limit)["input_ids"]
        ]
        assert comparer.token_ids(*samples) == row
        logits = self.expected(folder, [row])[:, 0]
        np.testing.assert_allclose(comparer.compare(samples, BOTH[:1]).probabilities, 1 / (1 + np.exp(-logits)), atol=1e-5)

    @pytest.mark.parametrize(
        ("outputs", "labels", "weights"),
        [
            (2, None, [1.0, 0.0]),
            (2, {"first": 1, "second": 0}, [0.0, 1.0]),
            (3, {"first": 2, "second": "LABEL_0", "tie": 1}, [0.0, 0.5, 1.0]),
        ],
    )
    def test_several_outputs(self, outputs: int, labels: Any, weights: list[float], tiny_encoder: MakeFolder) -> None:
        folder = tiny_encoder(num_labels=outputs)
        comparer = TwoAnswers(model=str(folder), labels=labels)
        samples = answers("four", "one", prompt="two and two?")
        logits = self.expected(folder, [comparer.token_ids(*samples)])
        shares = np.exp(logits) / np.exp(logits).sum()
        np.testing.assert_allclose(comparer.compare(samples, BOTH[:1]).probabilities, shares @ np.array(weights), atol=1e-5)

    def test_a_decoder(self, tiny_decoder: MakeFolder) -> None:
        with pytest.raises(SpecError, match=r"separator: the tokenizer of .* has no separator token"):
            TwoAnswers(model=str(tiny_decoder()))
        folder = tiny_decoder()
        comparer = TwoAnswers(model=str(folder), separator="<|end|>")
        samples = answers("four", "one", prompt="two and two?")
        row = AutoTokenizer.from_pretrained(folder)("two and two?<|end|>four<|end|>one")["input_ids"]
        assert comparer.token_ids(*samples) == row

    def test_a_row_that_is_too_long(self, tiny_encoder: MakeFolder) -> None:
        comparer = TwoAnswers(model=str(tiny_encoder(positions=16)))
        samples = [*answers("four", "one"), *answers("four " * 30)]
        verdicts = comparer.compare(samples, [Comparison(0, 1), Comparison(0, 2)])
        assert np.isnan(verdicts.probabilities).tolist() == [False, True]
        assert "the model reads at most 16; set `max_part_tokens`" in verdicts.errors[1]

    def test_in_a_spec(self, tiny_encoder: MakeFolder, tmp_path: Path) -> None:
        folder = tiny_encoder()
        spec = {
            "provider": "comparison",
            "comparer": {"name": "two-answers", "model": str(folder)},
            "contradictions": "average",
        }
        rewards = rm.load(spec)
        samples = answers("four", "one", "three", prompt="two and two?")
        scores = rewards.score(samples)
        assert not scores.abstained.any()
        np.testing.assert_allclose(pickle.loads(pickle.dumps(rewards)).score(samples).values, scores.values)
        shutil.copytree(folder, tmp_path / "moved")
        moved = {"name": "two-answers", "model": str(tmp_path / "moved")}
        other = {"name": "two-answers", "model": str(tiny_encoder(num_labels=2))}
        fingerprints = [fingerprint(rm.load({**spec, "comparer": comparer})) for comparer in (spec["comparer"], moved, other)]
        assert fingerprints[0] == fingerprints[1] != fingerprints[2]

    @pytest.mark.parametrize(
        ("outputs", "keys", "message"),
        [
            (1, {"parts": ["{prompt}", "{first}"]}, "parts: the template needs the placeholder {second}"),
            (1, {"special_tokens": "each", "separator": "|"}, "separator: parts that have their own special tokens"),
            (1, {"max_part_tokens": [3]}, "max_part_tokens: give a positive number for each of the 3 parts"),
            (1, {"labels": {"first": 0}}, "labels: .* has a single output"),
            (3, {}, "labels: .* has the 3 outputs LABEL_0, LABEL_1, LABEL_2"),
            (2, {"labels": {"first": 0, "second": 0}}, "labels: different outputs are needed"),
            (2, {"labels": {"first": 0, "secnd": 1}}, "labels.secnd: .*Did you mean 'second'"),
            (2, {"labels": {"first": 0, "second": 2}}, "labels.second: .* has no output 2"),
        ],
    )
    def test_what_is_refused(self, outputs: int, keys: dict[str, Any], message: str, tiny_encoder: MakeFolder) -> None:
        spec = {"name": "two-answers", "model": str(tiny_encoder(num_labels=outputs)), **keys}
        with pytest.raises(SpecError, match=f"comparer.{message}"):
            rm.load({"provider": "comparison", "comparer": spec})


class TestLists:
    def test_all_pairs_in_both_orders_are_two_lists(self) -> None:
        asked = [Comparison(a, b) for a in range(4) for b in range(4) if a != b]
        lists = covering_lists(asked, k=4)
        assert len(lists) == 2
        assert lists[0] == lists[1][::-1]

    @pytest.mark.parametrize("k", [2, 3, 5])
    def test_each_question_is_in_one_list(self, k: int) -> None:
        asked = [Comparison(a, b) for a in range(7) for b in range(7) if a != b and (a + 2 * b) % 5]
        lists = covering_lists(asked, k)
        covered = [(a, b) for members in lists for place, a in enumerate(members) for b in members[place + 1 :]]
        assert sorted(covered) == sorted((question.first, question.second) for question in asked)
        assert max(map(len, lists)) <= k

    @pytest.mark.parametrize(
        ("text", "places"),
        [
            ("[[B > A > C]]", {"B": 0, "A": 1, "C": 2}),
            ("c > b = a", {"C": 0, "B": 1, "A": 1}),
            ("B is best, A > C there.\n\n**Ranking:** B > A > C", {"B": 0, "A": 1, "C": 2}),
            ("<think>[[C > B > A]]</think>[[A > B > C]]", {"A": 0, "B": 1, "C": 2}),
            ("[[A > B > C]] as I said: [[A > B > C]]", {"A": 0, "B": 1, "C": 2}),
        ],
    )
    def test_rankings(self, text: str, places: dict[str, int]) -> None:
        assert ranking_in(text, ["A", "B", "C"]) == (places, "")

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("", "there is no answer"),
            ("<think>[[A > B > C]]", "the reasoning does not end"),
            ("<think>[[A > B > C]]</think>", "there is no answer after the reasoning"),
            ("I cannot rank them.", "the answer has no ranking"),
            ("[[A > B]]", "lacks C"),
            ("[[A > B > C > D]]", "'D', which is not one of A, B, C"),
            ("[[A > B > A]]", "has A twice"),
            ("[[A > B > C]] or [[C > B > A]]", "2 different rankings"),
            ("[[A > B > C]], no: [[A > B]]", "lacks C"),
            ("La réponse B est la meilleure.", "the answer has no ranking"),
        ],
    )
    def test_answers_without_a_ranking(self, text: str, reason: str) -> None:
        places, error = ranking_in(text, ["A", "B", "C"])
        assert not places
        assert reason in error


def test_a_comparer_needs_a_name() -> None:
    with pytest.raises(rm.RmPluginsError, match=r"comparer class .* has no name"):

        class Nameless(Comparer):
            def compare(self, samples: Sequence[rm.Sample], asked: Sequence[Comparison]) -> Verdicts:
                return Verdicts(np.zeros(len(asked)))
