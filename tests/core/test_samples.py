"""Samples: their texts, messages, contents in parts, and keys."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

import rm_plugins as rm
from rm_plugins.errors import DataError, UnsupportedError
from rm_plugins.samples import RenderedSample, text_of
from tests.conftest import MakeFolder

USER = {"role": "user", "content": "2+2?"}


ASSISTANT = {"role": "assistant", "content": "4"}


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

    def test_the_text_of_some_turns(self) -> None:
        call = {"type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}}
        completion: list[Any] = [
            {"role": "assistant", "content": "let me see", "tool_calls": [call, {"name": "stop"}, 7]},
            {"role": "tool", "name": "add", "content": [{"type": "text", "text": "4"}]},
            ASSISTANT,
            {"role": "user", "content": "sure?"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
        ]
        sample = rm.Sample([USER], completion)
        assert sample.text_of_turns("assistant") == sample.completion_text == "let me see\n4"
        assert sample.text_of_turns("last") == ""
        assert rm.Sample([USER], completion[:3]).text_of_turns("last") == "4"
        assert sample.text_of_turns("all").split("\n") == [
            "assistant: let me see",
            'assistant calls add({"a": 2})',
            "assistant calls stop()",
            "assistant calls ?()",
            "tool add: 4",
            "assistant: 4",
            "user: sure?",
            'assistant calls add({"a": 2})',
        ]
        assert {rm.Sample("Q", "text").text_of_turns(turns) for turns in ("assistant", "last", "all")} == {"text"}
        assert rm.Sample([USER], [{"role": "user", "content": "x"}]).text_of_turns("last") == ""
        image: Any = {"role": "tool", "content": [{"type": "image"}]}
        assert rm.Sample([USER], [image, ASSISTANT]).text_of_turns("last") == "4"
        with pytest.raises(DataError, match="a part of the type 'image'"):
            rm.Sample([USER], [image, ASSISTANT]).text_of_turns("all")

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
            ([{"role": "user", "content": [22]}], "4", r"prompt\[0\].content\[0\] is not a part with a 'type'"),
            ([{"role": "user", "content": [{"type": "text"}]}], "4", r"prompt\[0\].content\[0\] .* 'text' but has no text"),
        ],
    )
    def test_anything_else_is_refused(self, prompt: Any, completion: Any, message: str) -> None:
        with pytest.raises(DataError, match=message):
            rm.Sample(prompt, completion)

    @pytest.mark.parametrize("key", ["tool_calls", "reasoning_content", "reasoning", "thinking"])
    def test_a_message_that_says_nothing_may_have_no_content(self, key: str) -> None:
        sample = rm.Sample([USER], [{"role": "assistant", "content": None, key: ["hm"]}])
        assert (sample.completion_text, sample.text_messages[-1]["content"]) == ("", "")

    def test_a_tool_may_return_anything(self) -> None:
        rows = [{"type": "text", "title": "T"}, {"type": 3}, 7, "x", {"type": "text", "text": "y"}]
        sample = rm.Sample([USER], [{"role": "tool", "content": rows}])
        assert sample.text_of_turns("all") == 'tool: {"title": "T", "type": "text"}{"type": 3}7xy'

    def test_text_has_no_messages(self) -> None:
        with pytest.raises(UnsupportedError, match="has no messages"):
            _ = rm.Sample("Q", "4").messages

    def test_it_can_be_pickled(self) -> None:
        sample = rm.Sample([USER], "4", {"answer": 4})
        assert pickle.loads(pickle.dumps(sample)) == sample


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
            DataError, match=r"Item 1 cannot be rendered: .* of the type 'image', but only text can be"
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
