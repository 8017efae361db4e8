"""Requests of NeMo Gym: their messages, and wrong ones, which are refused with what is wrong and where."""

from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.testclient import TestClient

from rm_plugins_engines.gym_requests import sample_of
from rm_plugins_engines.nemo_gym import NeMoGymReward
from rm_plugins_engines.verifiers import _call
from tests.engines.doubles import with_nemo_gym

MIXED = "tests.engines.failing:by_text"
ANSWER = {"role": "assistant", "content": "4"}


def request(*output: Any, **params: Any) -> dict[str, Any]:
    return {"responses_create_params": {"input": "2+2?", **params}, "response": {"output": [*output]}}


def test_items_become_messages() -> None:
    tools = [{"type": "function", "name": "weather", "parameters": {"type": "object"}}]
    output = [
        {"type": "function_call", "name": "weather", "call_id": "1", "arguments": '{"city": "Rome"}'},
        {"type": "function_call_output", "call_id": "1", "output": "sunny"},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Sunny."}]},
    ]
    sample = sample_of({**request(*output, instructions="Be brief.", tools=tools), "answer": "sunny"})
    assert [message["role"] for message in sample.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert sample.messages[2]["tool_calls"][0]["function"] == {"name": "weather", "arguments": {"city": "Rome"}}
    assert sample.columns["tools"][0]["function"]["name"] == "weather"
    assert sample.columns["answer"] == "sunny"


def test_a_text_and_the_calls_after_it_are_one_turn() -> None:
    """As in the chat form of the same turn. A template would put the end of a turn between two messages."""
    calls = [{"type": "function_call", "name": name, "call_id": name, "arguments": "{}"} for name in ("a", "b")]
    results = [{"type": "function_call_output", "call_id": name, "output": name} for name in ("a", "b")]
    turn = [{"type": "reasoning", "summary": []}, {"role": "assistant", "content": "Let me see."}, *calls]
    _, *completion = sample_of(request(*turn, *results, ANSWER)).messages
    assert [message["role"] for message in completion] == ["assistant", "tool", "tool", "assistant"]
    assert completion[0]["content"] == "Let me see."
    assert [call["function"]["name"] for call in completion[0]["tool_calls"]] == ["a", "b"]
    assert sample_of(request(*turn, *results, ANSWER, input=[{"role": "user", "content": "Q"}, *turn])).prompt[1:] == [
        completion[0]
    ]


@pytest.mark.parametrize("output", [[], [{"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm"}]}]])
def test_a_response_without_a_message_is_an_empty_completion(output: list[Any]) -> None:
    assert sample_of(request(*output)).completion == [{"role": "assistant", "content": ""}]


@pytest.mark.parametrize("arguments", ["[" * 100_000, "1" * 5000, '{"a": NaN}', "Rome"])
def test_arguments_that_are_not_json_stay_text(arguments: str) -> None:
    """As in verifiers' traces."""
    assert _call({"name": "f", "id": "1", "arguments": arguments})["function"] == {"name": "f", "arguments": arguments}
    (message,) = sample_of(request({"type": "function_call", "name": "f", "arguments": arguments})).messages[1:]
    assert message["tool_calls"][0]["function"]["arguments"] == arguments


def call(**fields: Any) -> dict[str, Any]:
    return {"type": "function_call", "name": "f", **fields}


WRONG = {
    "NaN": "`body` must be an object",
    "[NaN]": "`body` must be an object",
    "null": "`body` must be an object",
    "[]": "`body` must be an object",
    "": "not valid JSON",
    '{"a":': "not valid JSON",
    "[" * 100_000: "not valid JSON",
    "1" * 6000: "not valid JSON",
    "{}": "no `responses_create_params.input` or no `response.output`",
    **{
        json.dumps(body): message
        for body, message in [
            ({**request(ANSWER), "row": {"scores": [1.0, float("nan")]}}, "`body.row.scores[1]` is nan"),
            ({**request(ANSWER), "row": float("-inf")}, "`body.row` is -inf"),
            ({**request(ANSWER), "row": "\ud800"}, "`body.row` has a lone surrogate"),
            ({**request(ANSWER), "row": {"\ud800": 1}}, "`body.row` has a name with a lone surrogate"),
            (request({"role": "assistant", "content": "\ud800"}), "`body.response.output[0].content` has a lone surrogate"),
            ({**request(ANSWER), "response": None}, "no `response.output`"),
            ({**request(ANSWER), "response": {"output": None}}, "no `response.output`"),
            ({**request(ANSWER), "response": [ANSWER]}, "`response` must be an object"),
            ({**request(ANSWER), "responses_create_params": ["Q"]}, "`responses_create_params` must be an object"),
            ({**request(), "response": {"output": {}}}, "`response.output` must be a list"),
            (request(ANSWER, None), "`response.output[1]` must be an object"),
            (request("text"), "`response.output[0]` must be an object"),
            (request({"content": "4"}), "`response.output[0]` is a message without a role"),
            (request({"role": "robot", "content": "4"}), "unknown role 'robot'"),
            (request({"role": "user"}), "`response.output[0]` has no content"),
            (request({**ANSWER, "content": 4}), "`response.output[0].content` must be text"),
            (request({**ANSWER, "content": {"text": "4"}}), "`response.output[0].content` must be text"),
            (request({**ANSWER, "content": [4]}), "`response.output[0].content[0]` must be an object"),
            (request({**ANSWER, "content": [{"type": "output_text", "text": 4}]}), "`response.output[0].content[0]` is a part"),
            (request({**ANSWER, "content": [{"type": "input_image"}]}), "`response.output[0].content[0]` is a part"),
            (request({"type": "image_call"}), "'image_call', which has no message form"),
            (request({"type": ["message"], "role": "assistant"}), "['message'], which has no message form"),
            (request({"type": "function_call"}), "`response.output[0]` is a function call without a name"),
            (request(call(arguments=5)), "`response.output[0].arguments` must be text"),
            (request(call(), {"type": "function_call_output", "output": 5}), "`response.output[1].output` must be text"),
            (request(ANSWER, input=5), "`responses_create_params.input` must be a list"),
            (request(ANSWER, input={}), "`responses_create_params.input` must be a list"),
            (request(ANSWER, input=[{}]), "`responses_create_params.input[0]` is a message without a role"),
            (request(ANSWER, instructions=5), "`responses_create_params.instructions` must be text"),
            (request(ANSWER, tools=5), "`responses_create_params.tools` must be a list"),
            (request(ANSWER, tools=[5]), "`responses_create_params.tools[0]` must be an object"),
            (request(ANSWER, tools=[{"type": "web_search"}]), "`responses_create_params.tools[0]` is a tool without a name"),
        ]
    },
}


@pytest.mark.parametrize("body", WRONG)
def test_a_wrong_request_is_told_what_is_wrong_and_where(body: str) -> None:
    with TestClient(NeMoGymReward(MIXED).app()) as client:
        told = client.post("/verify", content=body)
        assert told.status_code == 422
        assert WRONG[body] in told.json()["detail"]
        assert client.post("/verify", json=request(ANSWER)).json()["reward"] == 4.0


def test_nemo_gym_s_own_server_tells_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    with_nemo_gym(monkeypatch)
    with TestClient(NeMoGymReward(MIXED).resources_server()().setup_webserver()) as client:
        told = client.post("/verify", json=request({"role": "robot", "content": "4"}))
        assert (told.status_code, "unknown role" in told.json()["detail"]) == (422, True)
        none = client.post("/verify", json=request({**ANSWER, "content": "none"}))
        assert (none.status_code, "it abstained" in none.json()["detail"]) == (500, True)
        assert client.post("/verify", json=request(ANSWER)).json()["reward"] == 4.0
