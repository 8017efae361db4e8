"""A language model as the judge: grades from labels' probabilities or from a number in its answer, and never from anything else."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import rm_plugins as rm
from rm_plugins.errors import AnswerError, DataError, SpecError, UnsupportedError
from rm_plugins.protocols import Answer, Item, OpenAIJudge, ServerFacts
from rm_plugins.samples import RenderedSample
from rm_plugins.spec import component
from rm_plugins.testing import check_protocol
from tests.fake_servers.judge import Choice, choice, judge
from tests.servers import Conversation

ITEM = Item(rm.Sample("2+2?", "4"))
RANGE = OpenAIJudge(range=[1, 10])


def graded(found: Choice, protocol: OpenAIJudge | None = None) -> Answer:
    """What the protocol makes of a judge's answer."""
    return Conversation(protocol or OpenAIJudge(), judge(lambda question: found)).answer([ITEM])


def failure(found: Choice, protocol: OpenAIJudge | None = None) -> str:
    """Why there is no grade."""
    answer = graded(found, protocol)
    assert answer.values == [None]
    return answer.errors[0]


def asked(protocol: OpenAIJudge, item: Item = ITEM) -> Any:
    """The body of the request."""
    return protocol.request([item], ServerFacts(protocol, "", facts={"model": "judge"}), "r").body


# What the judge is asked


def test_the_contract_holds_for_labels() -> None:
    def verdict(question: str) -> Choice:
        return choice(("Yes", {"Yes": 0.6, "No": 0.2}) if "five" not in question else ("No", {"No": 0.9, "Yes": 0.1}))

    items = [ITEM, Item(rm.Sample("2+2?", "five")), Item(rm.Sample([{"role": "user", "content": "Hi"}], "Hello"))]
    found = check_protocol(OpenAIJudge(), Conversation(OpenAIJudge(), judge(verdict)).ask, items)
    assert found.values == pytest.approx([0.75, 0.1, 0.75])
    assert found.details["label_mass"] == pytest.approx([0.8, 1.0, 0.8])
    assert found.details["label/Yes"] == pytest.approx([0.75, 0.1, 0.75])


def test_the_contract_holds_for_numbers() -> None:
    def verdict(question: str) -> Choice:
        return choice("It adds up.\nScore: 9" if "five" not in question else "No.\nScore: 2")

    items = [ITEM, Item(rm.Sample("2+2?", "five"))]
    assert check_protocol(RANGE, Conversation(RANGE, judge(verdict)).ask, items).values == [9.0, 2.0]


def test_a_request_asks_for_logprobs_and_few_tokens() -> None:
    body = asked(OpenAIJudge())
    assert {key: value for key, value in body.items() if key != "messages"} == {
        "model": "judge",
        "temperature": 0,
        "max_tokens": 8,
        "logprobs": True,
        "top_logprobs": 20,
    }
    assert body["messages"][0]["content"].endswith("Answer with one word and nothing else: Yes or No.")


def test_a_request_for_a_number_leaves_room_for_reasons() -> None:
    body = asked(RANGE, ITEM)
    assert (body["max_tokens"], "logprobs" in body) == (1024, False)
    assert "`Score: N`, with a number from 1 (worst) to 10 (best) for N." in body["messages"][0]["content"]


def test_a_further_key_of_the_request_wins_and_null_takes_one_away() -> None:
    extra = {"max_tokens": None, "max_completion_tokens": 9, "temperature": None, "allowed_token_ids": [1, 2]}
    body = asked(OpenAIJudge(extra_body=extra, system="Be strict."))
    assert [message["role"] for message in body["messages"]] == ["system", "user"]
    assert {"max_tokens", "temperature"}.isdisjoint(body)
    assert (body["max_completion_tokens"], body["allowed_token_ids"]) == (9, [1, 2])


@pytest.mark.parametrize("text", ["{completion}", "{prompt}", "{0} {x!r}", "{{}}", "\\1 \\g<0>", '{"a": {"b": 1}}', "}{"])
def test_braces_survive_in_rubrics_and_texts(text: str) -> None:
    protocol = OpenAIJudge(rubric='As {"json": {}}: {prompt} | {completion} {{x}} {other}')
    assert protocol.question(Item(rm.Sample(text, text))) == f'As {{"json": {{}}}}: {text} | {text} {{{{x}}}} {{other}}'


def test_a_text_that_looks_like_a_placeholder_is_not_filled() -> None:
    protocol = OpenAIJudge(rubric="{prompt} | {completion}")
    assert protocol.question(Item(rm.Sample("{completion}", "{prompt}"))) == "{completion} | {prompt}"


def test_conversations_are_written_out() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}, {"role": "user", "content": "Time?"}]
    protocol = OpenAIJudge(rubric="{prompt}|{completion}")
    assert protocol.question(Item(rm.Sample(turns, [call]))) == 'User: Hi\n\nAssistant: Hello\n\nUser: Time?|[{"id": "1"}]'
    assert protocol.question(Item(rm.Sample(turns[:1], "Hello"))) == "Hi|Hello"
    assert protocol.question(Item(rm.Sample([], "Hello"))) == "|Hello"


def test_a_judge_is_sent_no_token_ids() -> None:
    with pytest.raises(DataError, match="A judge reads text"):
        asked(OpenAIJudge(), Item(RenderedSample.of([1, 2])))


def test_a_rubric_comes_from_a_file_beside_the_spec(tmp_path: Path) -> None:
    (tmp_path / "rubric.txt").write_text("Rate: {completion}", encoding="utf-8")
    protocol = component("protocol", {"name": "openai-judge", "rubric_file": str(tmp_path / "rubric.txt")})
    assert protocol.question(ITEM) == "Rate: 4"
    assert protocol.spec == {"name": "openai-judge", "rubric_file": str(tmp_path / "rubric.txt")}


def test_the_model_is_the_only_one_or_the_named_one() -> None:
    both = judge(lambda question: choice("Yes"), models=("small", "large"))
    with pytest.raises(
        UnsupportedError, match=r"lists 'small', 'large'\. Name the model .*\{name: openai-judge, model: NAME\}"
    ):
        Conversation(OpenAIJudge(), both).prepared()
    talk = Conversation(OpenAIJudge(model="large"), both)
    assert talk.answer([ITEM]).values == [1.0]
    assert [request.path for request in talk.requests] == ["/v1/chat/completions"]


# Labels


@pytest.mark.parametrize(
    ("token", "top", "value", "mass"),
    [
        ("Yes", {"Yes": 0.9, "No": 0.1}, 0.9, 1.0),
        (" yes", {" yes": 0.3, "YES": 0.1, "Yes": 0.2, "no": 0.1, " NO": 0.1, "Maybe": 0.2}, 0.75, 0.8),
        ("Yes", {"Yes": 0.7}, 1.0, 0.7),  # the other label is not among the top ones
        ("No", {"Yes": 0.2, "Maybe": 0.1}, 0.2 / 0.201, 0.201),  # nor is the chosen token itself, whose logprob is there
        ("\u2581Yes", {"\u2581Yes": 0.5, "\u0120No": 0.5}, 0.5, 1.0),  # as vocabularies have them
    ],
)
def test_a_grade_is_the_expected_value_over_the_labels(token: str, top: dict[str, float], value: float, mass: float) -> None:
    found = graded(choice((token, top)), OpenAIJudge(min_label_mass=0.2))
    assert found.values == pytest.approx([value])
    assert found.details["label_mass"] == pytest.approx([mass])
    assert found.details["label/Yes"] == pytest.approx([value])
    assert found.details["label/No"] == pytest.approx([1 - value])


def test_labels_have_the_values_that_are_told() -> None:
    protocol = OpenAIJudge(labels={"A": -1.0, "a": 1.0, "B": 5.0}, rubric="{completion}")
    found = graded(choice(("A", {"A": 0.25, "a": 0.25, "b": 0.5})), protocol)
    assert found.values == pytest.approx([2.5])  # A and a are different labels, b is B


def test_a_variant_of_two_labels_is_neither() -> None:
    protocol = OpenAIJudge(labels={"OK": 1.0, "Ok": 2.0, "Bad": 0.0}, rubric="{completion}", min_label_mass=0.1)
    found = graded(choice(("OK", {"OK": 0.5, "ok": 0.3, "bad": 0.2})), protocol)
    assert found.details["label_mass"] == pytest.approx([0.7])


def test_labels_without_their_mass_are_no_grade() -> None:
    message = failure(choice(("Maybe", {"Maybe": 0.6, "Yes": 0.3, "No": 0.1}), "."))
    assert message.startswith(
        "the labels Yes, No have a total probability of 0.4 in the judge's answer, less than min_label_mass (0.5)"
    )
    assert message.endswith("the answer begins with 'Maybe.'")
    assert failure(choice("\u2026"))


def test_the_mass_is_told_of_an_item_that_failed_by_it() -> None:
    details = graded(choice(("Maybe", {"Yes": 0.3, "Maybe": 0.7}))).details
    assert list(details) == ["label_mass"]
    assert details["label_mass"] == pytest.approx([0.3])


@pytest.mark.parametrize(
    "tokens",
    [
        ("\n\n", " ", ("Yes", {"Yes": 0.8, "No": 0.2})),
        ("<think>", "Yes", " or", " No", "?", "</think>", "\n\n", ("Yes", {"Yes": 0.8, "No": 0.2})),
        ("<think>", "No", "</", "think", ">\n", ("Yes", {"Yes": 0.8, "No": 0.2}), "<|im_end|>"),
    ],
)
def test_white_space_and_reasoning_come_before_the_answer(tokens: Any) -> None:
    assert graded(choice(*tokens)).values == pytest.approx([0.8])


def test_reasoning_that_the_server_took_out_of_the_content_is_passed_over() -> None:
    tokens = ("No", " or", " Yes", "?", "<final>", ("Yes", {"Yes": 0.8, "No": 0.2}), "<end>")
    assert graded(choice(*tokens, content="Yes", reasoning_content="No or Yes?")).values == pytest.approx([0.8])
    assert "empty after its reasoning" in failure(choice("No", " or", content="", reasoning_content="No or"))


@pytest.mark.parametrize(
    ("tokens", "content", "value"),
    [
        (
            ("No", " or", " Yes", "?", "<end>", ("Yes", {"Yes": 0.8, "No": 0.2})),
            "Yes",
            0.8,
        ),  # a server that shows no reasoning at all
        (("No", " or", " Yes", "?"), "", None),
        (("\u0120Yes", "\u0120it", "\u0120is", "\u010a"), "Yes it is", 1.0),
        ((("Yes", {"Yes": 0.8, "No": 0.2}),), "Yes, because of the sum.", 0.8),  # logprobs of the first token only
        (("No", " or", " Yes"), "Indeed.", None),
    ],
)
def test_the_answer_is_the_content_and_not_what_else_has_logprobs(tokens: Any, content: str, value: float | None) -> None:
    assert graded(choice(*tokens, content=content)).values[0] == pytest.approx(value)


def test_a_second_verdict_in_the_answer_is_no_grade() -> None:
    assert "two different verdicts, 'Yes' and 'No'" in failure(choice("Yes", "\n", "Verdict", ":", " No"))


@pytest.mark.parametrize("reason", ["abort", "error", "insufficient_system_resource", "safety"])
@pytest.mark.parametrize("protocol", [OpenAIJudge(), RANGE])
def test_an_answer_that_something_else_ended_is_no_grade(protocol: OpenAIJudge, reason: str) -> None:
    message = f"the judge's answer is not whole (finish_reason: {reason})"
    assert failure(choice("Yes" if protocol is not RANGE else "Score: 7", finish_reason=reason), protocol) == message


def test_a_number_in_a_content_of_parts_is_read() -> None:
    parts = [{"type": "thinking", "thinking": "Score: 3"}, {"type": "text", "text": "Fine.\nScore: 7"}]
    found = {**choice(""), "message": {"role": "assistant", "content": parts}}
    assert graded(found, RANGE).values == [7.0]
    parts.append({"type": "refusal", "refusal": "I may not."})
    assert failure(found, RANGE) == "the judge refused to answer: I may not."


@pytest.mark.parametrize("tokens", [("<think>", "Yes", " or"), (), ("\n", " "), ("<think>", "</think>", "\n")])
def test_an_answer_that_was_not_come_to_is_no_grade(tokens: Any) -> None:
    assert "reasoning did not end within max_tokens" in failure(choice(*tokens, finish_reason="length"))


@pytest.mark.parametrize(
    ("labels", "tokens", "word"),
    [
        ({"Yes": 1.0, "No": 0.0}, ("No", "ne", " of", " it"), "None"),
        ({"1": 1.0, "2": 2.0}, ("1", "0"), "10"),
        ({"1": 1.0, "2": 2.0}, ("1", ".", "5"), "1.5"),
    ],
)
def test_a_word_that_only_begins_like_a_label_is_no_grade(labels: dict[str, float], tokens: Any, word: str) -> None:
    message = failure(choice(*tokens), OpenAIJudge(labels=labels, rubric="{completion}"))
    assert message == f"the judge answered '{word}', which begins with a label but is not one"


@pytest.mark.parametrize("tokens", [("Yes", ", it", " is"), ("Yes", "."), ("Yes", "\n"), ("Yes", "<|im_end|>")])
def test_what_follows_a_label_does_not_matter(tokens: Any) -> None:
    assert graded(choice(*tokens, finish_reason="length")).values == [1.0]


def test_a_server_without_logprobs_is_named_as_such() -> None:
    with pytest.raises(UnsupportedError, match=r"the answer has no logprobs, .*`range: \[1, 10\]` instead of `labels`"):
        graded(choice("Yes", logprobs=False))
    with pytest.raises(UnsupportedError, match=r"no top_logprobs.*`range: \[1, 10\]`"):
        OpenAIJudge().scale.grade({"message": {"content": "Yes"}, "logprobs": {"content": [{"token": "Yes", "logprob": -0.1}]}})


def test_an_answer_of_nothing_is_no_grade_whether_it_has_logprobs_or_not() -> None:
    assert failure(choice(content="", logprobs=False)) == "the judge's answer is empty (finish_reason: stop)"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda entry: entry.update(top_logprobs="Yes"), "top_logprobs is 'Yes'"),
        (lambda entry: entry["top_logprobs"][0].update(logprob=float("nan")), "the logprob of 'Yes' is nan"),
        (lambda entry: entry["top_logprobs"][0].update(logprob=None), "the logprob of 'Yes' is None"),
        (lambda entry: entry["top_logprobs"][0].update(logprob=0.5), "add up to 1.6"),
        (lambda entry: entry.pop("token"), "a list of tokens was expected"),
    ],
)
def test_logprobs_that_are_none_are_refused(change: Callable[[Any], Any], message: str) -> None:
    found = choice(("Yes", {"Yes": 0.9}))
    change(found["logprobs"]["content"][0])
    response = Conversation(OpenAIJudge(), judge(lambda question: found))
    with pytest.raises(AnswerError, match=message):
        OpenAIJudge().scale.grade(json.loads(json.dumps(found)))
    assert response.prepared().facts == {"model": "judge"}


# Numbers


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Good.\nScore: 7", 7.0),
        ("Score: 7.5\nSo:\n\n**Score:** 7.5.\n", 7.5),
        ("Score: \uff18", 8.0),  # a wide digit
        ("score = 10", 10.0),
        ("<think>Score: 2</think>\nScore: 9", 9.0),
    ],
)
def test_a_number_is_read_from_the_last_line(text: str, value: float) -> None:
    assert graded(choice(text), RANGE).values == [value]


@pytest.mark.parametrize(
    "text",
    [
        "Score: 7/10",
        "Score: .5",
        "Score: 7 or 8",
        "Score: seven",
        "Score: nan",
        "7",
        "Score: 3-4",
        "Score: 1_0",
        "I'd give 3 to A and 4 to B",
        "Score: 7\nThat is all.",
        "Score: 1e1",
    ],
)
def test_an_answer_without_a_score_is_no_grade(text: str) -> None:
    assert "has no score where one was expected" in failure(choice(text), RANGE)


@pytest.mark.parametrize("text", ["Score: 0", "Score: 11", "Score: -3", "Score: 10.5"])
def test_a_score_out_of_range_is_no_grade(text: str) -> None:
    assert "is not between 1 and 10" in failure(choice(text), RANGE)


def test_a_pattern_finds_the_number_elsewhere() -> None:
    protocol = OpenAIJudge(range=[0, 100], pattern=r"\[\[(.+?)\]\]")
    assert graded(choice("[[85]], as I said: [[85.0]]"), protocol).values == [85.0]
    assert failure(choice("[[many]]"), protocol) == "the judge's score 'many' is not a number"
    for written in ("nan", "1_0", "1e400", "3-4", "inf"):
        assert failure(choice(f"[[{written}]]"), protocol) == f"the judge's score {written!r} is not a number"


def test_two_numbers_are_no_grade() -> None:
    protocol = OpenAIJudge(range=[0, 100], pattern=r"\[\[(.+?)\]\]")
    message = "the judge's answer has different scores, 20 and 85"
    assert failure(choice("[[20]] at first, [[85]] in the end"), protocol) == message
    assert failure(choice("Score: 2\nBut then:\n\nScore: 7.5"), RANGE) == "the judge's answer has different scores, 2 and 7.5"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<think>[[20]]</think>\nNo idea.", "has no score"),
        ("<think>[[20]]", "reasoning did not end"),
        ("Let me see.\n<think>[[20]]", "reasoning did not end"),
        ("[THINK][[20]][/THINK]No idea.", "has no score"),
        ("<|channel|>analysis<|message|>[[20]]<|end|>", "reasoning did not end"),
    ],
)
def test_a_number_in_the_reasoning_is_no_grade(text: str, reason: str) -> None:
    assert reason in failure(choice(text), OpenAIJudge(range=[0, 100], pattern=r"\[\[(.+?)\]\]"))


def test_an_answer_that_was_cut_off_is_no_grade() -> None:
    assert "was cut off at max_tokens" in failure(choice("Score: 1", finish_reason="length"), RANGE)


@pytest.mark.parametrize("protocol", [OpenAIJudge(), RANGE])
def test_a_refusal_is_no_grade(protocol: OpenAIJudge) -> None:
    assert (
        failure(choice("Yes", refusal="I cannot judge this."), protocol) == "the judge refused to answer: I cannot judge this."
    )
    assert "content filter" in failure(choice("Score: 5", finish_reason="content_filter"), protocol)


# Keys


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"labels": {"Yes": 1.0, "No": 0.0}, "range": [1, 5]}, "labels: .* exclude each other"),
        ({"labels": {"Yes": 1.0}}, "labels: needs at least two texts"),
        ({"labels": {"Yes": 1.0, " No": 0.0}}, "labels: needs at least two texts without white space"),
        ({"labels": {"Yes": 1.0, "No": float("inf")}}, "labels: the value of 'No' must be a finite number"),
        ({"labels": {"1": 1.0, "10": 10.0}}, "labels: '10' begins with '1', .*answer with a number"),
        ({"labels": {True: 1.0, False: 0.0}}, "valid string"),
        ({"min_label_mass": 0.0}, "min_label_mass: must be a probability above 0"),
        ({"top_logprobs": 21}, "top_logprobs: must be from 1 to 20"),
        ({"max_tokens": 0}, "max_tokens: must be at least 1"),
        ({"pattern": "(x)"}, "pattern: needs 'range'"),
        ({"range": [5, 1]}, r"range: must be the lowest and the highest number, .*not \[5, 1\]"),
        ({"range": [1]}, "range: must be the lowest"),
        ({"range": [1, 5], "pattern": "("}, "pattern: '\\(' is not a valid regular expression"),
        ({"range": [1, 5], "pattern": "x"}, "pattern: must have one group"),
        ({"rubric": "Is it good?"}, r"rubric: the rubric needs the placeholder \{completion\}"),
        ({"rubric": "{completion}", "rubric_file": "/dev/null"}, "rubric: .* exclude each other"),
        ({"rubric_file": "/dev/null"}, r"rubric_file: the rubric needs the placeholder \{completion\}"),
        ({"rubric_file": "/"}, "rubric_file: the rubric in / cannot be read"),
    ],
)
def test_keys_that_do_not_fit_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        component("protocol", {"name": "openai-judge", **keys})


def test_a_judge_goes_to_another_process() -> None:
    assert pickle.loads(pickle.dumps(RANGE)).question(ITEM) == RANGE.question(ITEM)
