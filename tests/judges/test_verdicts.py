"""A verdict is read from the answer alone, and anything that is not clearly one is an error with its reason."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rm_plugins.judges import Reply, verdict_of
from rm_plugins.replies import json_in, verdict_in

PAIR = ["A", "B", "tie"]
ARENA = ["A>>B", "A>B", "A=B", "B>A", "B>>A"]


@pytest.mark.parametrize(
    ("text", "verdicts", "label"),
    [
        ("[[A]]", PAIR, "A"),
        ("Both are right, but the first is shorter.\n\nMy final verdict is: [[B]]", PAIR, "B"),
        ("A", PAIR, "A"),
        (" **b** ", PAIR, "B"),
        ("Tie.", PAIR, "tie"),
        ('"A"', PAIR, "A"),
        ("Verdict: A", PAIR, "A"),
        ("It is longer.\n**Final answer:** B.", PAIR, "B"),
        ("The winner is B", PAIR, "B"),
        ("So the answer is \\boxed{A}.", PAIR, "A"),
        ("\\boxed{\\text{tie}}", PAIR, "tie"),
        ("[[A]] ... and again: [[A]]", PAIR, "A"),
        ("My final verdict is tie: [[A=B]]", ARENA, "A=B"),
        ("[[ A >> B ]]", ARENA, "A>>B"),
        ("[[b>a]]", ARENA, "B>A"),
        ("<think>[[B]]? No.</think>[[A]]", PAIR, "A"),
        ("[[B]]? No, rather the other.</think>\nA", PAIR, "A"),
        ("最终判断：[[A]]", PAIR, "A"),
        ("yes", ["yes", "no"], "yes"),
        ("It adds up.\n\nyes", ["yes", "no"], "yes"),
        ("No.\nIt does not add up.", ["yes", "no"], "no"),
        ("Partly met", ["not met", "partly met", "met"], "partly met"),
    ],
)
def test_a_clear_verdict_is_read(text: str, verdicts: list[str], label: str) -> None:
    assert verdict_in(text, verdicts).label == label
    assert verdict_of(Reply(text), verdicts).error == ""


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[[A]] or [[B]]", "two different verdicts, 'A' and 'B'"),
        ("[[A]]\nVerdict: B", "two different verdicts"),
        ("[[A]] [[B]] [[tie]]", "3 different verdicts"),
        ("A\nThat is, B.\nB", "two different verdicts"),
        ("First of all:\nA\nwas shown first.", "has no verdict"),
        ("[[C]]", "the verdict 'C', which is not one of 'A', 'B', 'tie'"),
        ("[[A]] but perhaps [[neither]]", "which is not one of"),
        ("<think>[[A]]", "the reasoning does not end"),
        ("<think>It is [[A]].</think>I cannot say.", "only its reasoning has one"),
        ("<think>[[A]]</think>", "there is no answer after the reasoning"),
        ("", "there is no answer"),
        ("A is better than B.", "has no verdict"),
        ("Oui", "has no verdict"),
        ("回答A更好。", "has no verdict"),
        ("I'm sorry, but I can't compare these.", "has no verdict"),
        ("[[A>B]]", "which is not one of"),
        ("3.0", "has no verdict"),
        ("Let me see.\n<think>It is [[A]].", "the reasoning does not end"),
        ("[THINK]It is [[A]].[/THINK]I cannot say.", "only its reasoning has one"),
        ("<thought>[[A]]</thought>", "there is no answer after the reasoning"),
        ("\u25c1think\u25b7[[A]]", "the reasoning does not end"),
        ("<|channel|>analysis<|message|>[[A]]<|end|>", "the reasoning does not end"),
        ("<|START_THINKING|>[[A]]<|END_THINKING|>Neither.", "only its reasoning has one"),
    ],
)
def test_anything_else_is_an_error_with_its_reason(text: str, reason: str) -> None:
    found = verdict_in(text, PAIR)
    assert found.label == ""
    assert reason in found.error


def test_a_reply_with_an_error_has_that_error() -> None:
    assert verdict_of(Reply("[[A]]", error="the judge's answer was cut off"), PAIR).error == "the judge's answer was cut off"


def test_a_quoted_tag_is_no_reasoning() -> None:
    assert verdict_in("Response B leaves a stray `<think>` tag. [[A]]", PAIR).label == "A"


@pytest.mark.parametrize("verdicts", [["yes", "Yes."], ["*", "**", "***"], ["good", "(good)"]])
def test_verdicts_that_a_text_cannot_tell_apart_are_not_read(verdicts: list[str]) -> None:
    assert "differ in case or punctuation only" in verdict_in(verdicts[0], verdicts).error


prose = st.text(alphabet="abcdefgh ,.\n", max_size=60)


@given(before=prose, after=prose, verdict=st.sampled_from(ARENA))
def test_prose_around_a_verdict_does_not_change_it(before: str, after: str, verdict: str) -> None:
    assert verdict_in(f"{before}[[{verdict}]]{after}", ARENA).label == verdict


@given(reasoning=st.text(alphabet="ABtie[]<>=\n :", max_size=60), verdict=st.sampled_from(PAIR))
def test_reasoning_never_changes_a_verdict(reasoning: str, verdict: str) -> None:
    assert verdict_in(f"<think>{reasoning}</think>[[{verdict}]]", PAIR).label == verdict


@given(text=st.text(max_size=200))
def test_every_text_has_a_known_verdict_or_a_reason(text: str) -> None:
    found = verdict_in(text, PAIR)
    assert (found.label in PAIR) != bool(found.error)
    read = json_in(text)
    assert not read.content or not read.error


@given(first=st.sampled_from(ARENA), second=st.sampled_from(ARENA), between=prose)
def test_two_verdicts_are_one_only_if_they_are_equal(first: str, second: str, between: str) -> None:
    found = verdict_in(f"[[{first}]]{between}[[{second}]]", ARENA)
    assert found.label == (first if first == second else "")


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ('{"1": "yes"}', {"1": "yes"}),
        ('Here:\n```json\n{"1": "no"}\n```\nDone.', {"1": "no"}),
        ('Checked:\n```python\nx = {}\n```\nSo:\n```JSON\n{"1": "no"}\n```', {"1": "no"}),
        ('<think>{"1": "no"}</think> {"1": "yes"}', {"1": "yes"}),
        ('My verdicts are {"1": {"verdict": "yes"}}.', {"1": {"verdict": "yes"}}),
        ('```\nsome code\n```\n{"1": "no"}', {"1": "no"}),
        ('{"1": "no"}\n```json\n{"1": "no"}\n```', {"1": "no"}),
        ('```json\n{"1": "no"}', {"1": "no"}),
    ],
)
def test_a_json_object_is_read(text: str, content: dict[str, object]) -> None:
    assert json_in(text).content == content


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"1": "yes", "1": "no"}', "the key '1' twice"),
        ('```json\n{"1": "yes"}\n```\nor\n```json\n{"1": "no"}\n```', "2 JSON objects"),
        ('<think>{"1": "yes"}</think>', "no JSON object"),
        ('<think>{"1": "yes"}', "the reasoning does not end"),
        ('{"1": "yes"}\n```json\n{"1": "no"}\n```', "2 JSON objects"),
        ('{"1": "yes"} or {"1": "no"}', "no JSON object"),
        ('{"1": NaN}', "no JSON object"),
        ('{"1": 1e400}', "no JSON object"),
        ('{"1": 1' + "0" * 5000 + "}", "no JSON object"),
        ("[1, 2]", "no JSON object"),
        ('{"1": "yes"', "no JSON object"),
        ("{" * 5000, "no JSON object"),
    ],
)
def test_what_is_not_one_json_object_is_an_error(text: str, reason: str) -> None:
    found = json_in(text)
    assert found.content == {}
    assert reason in found.error
