"""A judge's grade of a completion, as a provider with any judge."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest

import rm_plugins as rm
from rm_plugins.errors import ScoringError, SpecError
from rm_plugins.judges import Judge, Question, Reply
from rm_plugins.protocols import OpenAIJudge
from rm_plugins.spec import component
from tests.judges.scripted import ScriptedJudge, text_of

SAMPLES = [rm.Sample("2+2?", "4", {"reference": "four"}), rm.Sample("2+2?", "5", {"reference": "four"})]


def reward(answer: Any, **settings: Any) -> rm.Provider:
    return rm.load({"provider": "judge", "judge": ScriptedJudge(answer), **settings})


def test_label_probabilities_give_the_expected_value() -> None:
    def answer(question: Question) -> Reply:
        assert question.labels == ("Yes", "No")
        good = "\n4\n" in text_of(question)
        return Reply("Yes", {"Yes": 0.6, "No": 0.2} if good else {"Yes": 0.1, "No": 0.9})

    made = reward(answer)
    scores = made.score(SAMPLES)
    assert scores.values.tolist() == pytest.approx([0.75, 0.1])
    assert scores.details["label_mass"].tolist() == pytest.approx([0.8, 1.0])
    assert scores.details["label/Yes"].tolist() == pytest.approx([0.75, 0.1])
    assert scores.metadata["calls"] == 2
    assert "four" in made.render(SAMPLES[0])
    assert made.render(SAMPLES[0]).endswith("Answer with one word and nothing else: Yes or No.")


def test_a_judge_without_probabilities_gives_the_value_of_its_label() -> None:
    scores = reward(lambda question: "**no**").score(SAMPLES)
    assert scores.values.tolist() == [0.0, 0.0]
    assert scores.metadata["calls"] == 2


def test_a_number_is_read_from_the_end() -> None:
    scores = reward(lambda question: "It adds up.\nScore: 7", range=[1, 10]).score(SAMPLES[:1])
    assert scores.values.tolist() == [7.0]


@pytest.mark.parametrize(
    ("reply", "keys", "reason"),
    [
        (Reply("", error="the judge's answer was cut off at max_tokens"), {}, "cut off"),
        ("Oui", {}, "has no verdict"),
        ("Yes\nVerdict: No", {}, "two different verdicts"),
        ("[[Yes]] [[No]]", {}, "two different verdicts"),
        ("<think>Yes</think>", {}, "no answer after the reasoning"),
        (Reply("Perhaps", {"Yes": 0.1, "No": 0.1}), {}, "less than min_label_mass"),
        ("Score: 11", {"range": [1, 10]}, "not between 1 and 10"),
        ("Bien.", {"range": [1, 10]}, "has no score"),
        ("<think>Score: 3</think>", {"range": [1, 10]}, "has no score"),
        ("Score: 3\nScore: 7", {"range": [1, 10]}, "different scores, 3 and 7"),
        (Reply("Yes\nVerdict: No", {"Yes": 0.9, "No": 0.1}), {}, "two different verdicts"),
        (Reply("Yes", {"Yes": 1.5, "No": -0.5}), {}, "label probabilities are"),
        (Reply("Yes", {"Yes": math.nan, "No": 0.5}), {}, "label probabilities are"),
        (Reply("Yes", {"Yes": 0.9, "No": 0.9}), {}, "label probabilities are"),
        (Reply("Yes", {"Yes": 0.9}), {}, "label probabilities are"),
    ],
)
def test_anything_else_is_an_error_of_the_sample(reply: Any, keys: dict[str, Any], reason: str) -> None:
    def answer(question: Question) -> Any:
        return reply if "\n5\n" in text_of(question) else "Score: 5" if keys else "Yes"

    scores = reward(answer, **keys).score(SAMPLES, on_error="abstain")
    assert scores.values.tolist() == pytest.approx([5.0 if keys else 1.0, math.nan], nan_ok=True)
    assert reason in str(scores.errors[1])
    assert "item 1" in str(scores.errors[1])


def test_a_judge_that_gives_no_reply_to_a_question_is_named() -> None:
    class Silent(Judge):
        name = "silent"

        def ask(self, questions: Sequence[Question]) -> list[Reply]:
            return [Reply("Yes") for _ in questions[1:]]

    with pytest.raises(ScoringError, match="The judge 'silent' gave 1 replies to 2 questions"):
        rm.load({"provider": "judge", "judge": Silent()}).score(SAMPLES)


def test_a_null_column_is_not_shown_as_a_text() -> None:
    made = reward(lambda question: "Yes")
    for null in (None, math.nan):
        assert "known to be good" not in made.render(rm.Sample("2+2?", "4", {"reference": null}))
    written = reward(lambda question: "Yes", template="{{ completion }} {{ reference }} {{ instruction }}")
    scores = written.score([rm.Sample("", "4", {"reference": math.nan}), SAMPLES[0]], on_error="abstain")
    assert scores.values.tolist() == pytest.approx([math.nan, 1.0], nan_ok=True)
    assert "item 0: The template writes out the column 'reference', which is null in this row" in str(scores.errors[0])


def test_a_template_that_names_an_absent_column_is_an_error_of_the_row() -> None:
    made = reward(lambda question: "Yes", template="{{ completion }} {{ difficulty }} {{ instruction }}")
    scores = made.score([SAMPLES[0], rm.Sample("", "4", {"difficulty": 1})], on_error="abstain")
    assert scores.values.tolist() == pytest.approx([math.nan, 1.0], nan_ok=True)
    assert "uses 'difficulty', but the row has no such column. Allowed: reference." in str(scores.errors[0])


@pytest.mark.parametrize("keys", [{"min_label_mass": 0.5}, {"top_logprobs": 5}])
def test_keys_of_labels_beside_a_range_are_refused(keys: dict[str, Any]) -> None:
    (key,) = keys
    with pytest.raises(SpecError, match=f"{key}: has no effect with 'range'"):
        component("protocol", {"name": "openai-judge", "range": [1, 10], **keys})
    if key == "min_label_mass":
        with pytest.raises(SpecError, match=f"{key}: has no effect with 'range'"):
            reward(lambda question: "Score: 5", range=[1, 10], **keys)
    assert OpenAIJudge(range=[1, 10]).max_tokens == 1024
