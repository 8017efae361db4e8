"""OpenRLHF, the Open Inference Protocol and ms-swift: what they are sent, and the traps in what they answer."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

import rm_plugins as rm
from rm_plugins.errors import AnswerError, DataError, ScoringError, UnsupportedError
from rm_plugins.protocols import Item, OpenInference, OpenRLHF, Response, ServerFacts, Swift
from rm_plugins.samples import RenderedSample
from rm_plugins.testing import check_protocol
from tests.fake_servers.oip import oip
from tests.fake_servers.openrlhf import openrlhf, reward_of
from tests.fake_servers.swift import swift
from tests.servers import Conversation

SAMPLES = [
    rm.Sample("2+2? ", "4", {"answer": "4"}),
    rm.Sample("2+2? ", "five", {"answer": "4"}),
    rm.Sample("", "Hi", {"answer": None}),
]
ITEMS = [Item(sample, f"{sample.prompt}{sample.completion}") for sample in SAMPLES]
CHAT = rm.Sample([{"role": "user", "content": "Hi"}], "Hello", {"tools": [{"name": "f"}], "source": "web"})
TEXTS = ["2+2? 4", "2+2? five", "Hi"]
REWARDS = [reward_of(text) for text in TEXTS]


def told(answer: Any, protocol: Any, items: int = 3) -> Any:
    """What the protocol makes of an answer."""
    response = Response(200, json.dumps(answer).encode())
    return protocol.answer(response, ITEMS[:items], ServerFacts(protocol, "a server"), "request-1").values


# OpenRLHF


@pytest.mark.parametrize("form", [{}, {"nested": True}, {"old": True}])
def test_openrlhf_keeps_the_contract_in_every_form_of_its_answer(form: dict[str, bool]) -> None:
    found = check_protocol(OpenRLHF(), Conversation(OpenRLHF(), openrlhf(**form)).ask, ITEMS)
    assert found.values == REWARDS


def test_openrlhf_is_sent_what_its_own_client_sends() -> None:
    app = openrlhf()
    found = Conversation(OpenRLHF(labels="answer"), app).answer(ITEMS)
    assert app.state.bodies == [{"query": TEXTS, "prompts": ["2+2? ", "2+2? ", ""], "labels": ["4", "4", None]}]
    assert found.details == {"scores": REWARDS, "dummy_scores": REWARDS}


def test_openrlhf_is_sent_no_labels_and_no_prompts_that_are_messages() -> None:
    app = openrlhf()
    Conversation(OpenRLHF(), app).answer([Item(CHAT, "<u>Hi<a>Hello")])
    assert app.state.bodies == [{"query": ["<u>Hi<a>Hello"]}]


def test_openrlhf_needs_text_and_the_label_that_was_named() -> None:
    with pytest.raises(DataError, match="Name the model's tokenizer"):
        OpenRLHF().request([Item(CHAT)], ServerFacts(OpenRLHF(), ""), "r")
    with pytest.raises(
        DataError, match="no column 'truth', which the spec of the protocol names as `labels`; its columns are answer"
    ):
        OpenRLHF(labels="truth").request(ITEMS, ServerFacts(OpenRLHF(), ""), "r")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"rewards": [1.0, 2.0]}, "rewards has 2 entries for 3 items"),
        ({"rewards": [1.0, 2.0, 3.0, 4.0]}, "rewards has 4 entries for 3 items"),
        ({"rewards": [1.0, None, 3.0]}, r"rewards\[1\] is None; a number was expected"),
        ({"rewards": [1.0, 2.0, float("nan")]}, r"rewards\[2\] is nan"),
        ({"rewards": [[1.0, 2.0], 2.0, 3.0]}, r"rewards\[0\] is \[1.0, 2.0\]"),
        ({"rewards": 1.0}, "a list of 3 numbers"),
        ({"scores": [1.0, 2.0, 3.0]}, "a mapping with 'rewards'"),
        ([1.0, 2.0, 3.0], "a mapping with 'rewards'"),
    ],
)
def test_openrlhf_answers_that_are_no_rewards_are_refused(answer: Any, message: str) -> None:
    with pytest.raises(AnswerError, match=message):
        told(answer, OpenRLHF())


def test_openrlhf_rewards_of_several_numbers_are_refused_for_good() -> None:
    with pytest.raises(UnsupportedError, match="several numbers for each item"):
        told({"rewards": [[1.0, 2.0], [2.0, 3.0], [3.0, 4.0]]}, OpenRLHF())


def test_openrlhf_is_known_by_its_path() -> None:
    assert Conversation(OpenRLHF(), openrlhf()).detected() == "an OpenRLHF reward server"
    assert Conversation(OpenRLHF(), swift()).detected() is None


@pytest.mark.parametrize("protocol", [OpenRLHF(), OpenInference()])
@pytest.mark.parametrize("empty", [Item(rm.Sample("", ""), ""), Item(rm.Sample("", ""), "", ())])
def test_a_text_without_a_token_is_not_sent_to_servers_that_pad(protocol: Any, empty: Item) -> None:
    with pytest.raises(
        DataError, match=r"The text is empty, so it has no token.*the score of the padding.*Leave the sample out"
    ):
        protocol.request([ITEMS[0], empty], ServerFacts(protocol, ""), "r")


# The Open Inference Protocol


@pytest.mark.parametrize(
    "form",
    [
        {},
        {"flat": True},
        {"double": True},
        {"metadata": False},
        {"metadata": False, "lists": ""},
        {"described": False},
        {"model": "judge", "text": "text", "reward": "score"},
        {"model": "judge", "lists": "/v2/models"},
        {"others": ["tokenizer"]},
        {"described": False, "reward": "score"},
    ],
)
def test_oip_keeps_the_contract_in_every_form_of_its_tensors(form: dict[str, Any]) -> None:
    found = check_protocol(OpenInference(), Conversation(OpenInference(), oip(**form)).ask, ITEMS)
    assert found.values == REWARDS
    assert found.details == {"exceeded": [0.0, 1.0, 0.0]}


@pytest.mark.parametrize("double", [True, False])
def test_oip_reads_rewards_that_come_as_bytes_though_json_was_asked_for(double: bool) -> None:
    found = Conversation(OpenInference(), oip(binary=True, double=double)).answer(ITEMS)
    assert found.values == (REWARDS if double else [float(np.float32(reward)) for reward in REWARDS])
    assert found.details == {"exceeded": [0.0, 1.0, 0.0]}


def test_oip_is_sent_one_tensor_of_texts() -> None:
    talk = Conversation(OpenInference(), oip())
    talk.answer(ITEMS)
    assert talk.requests[-1].path == "/v2/models/reward_model/infer"
    assert talk.requests[-1].body == {
        "id": "request-1",
        "inputs": [{"name": "sentences", "shape": [3, 1], "datatype": "BYTES", "data": TEXTS}],
        "parameters": {"binary_data_output": False},
    }


def test_oip_tells_mlserver_that_its_bytes_are_texts() -> None:
    app = oip(name="mlserver")
    Conversation(OpenInference(), app).answer(ITEMS)
    assert app.state.bodies[-1]["inputs"][0]["parameters"] == {"content_type": "str"}


def test_oip_is_known_by_what_the_server_calls_itself() -> None:
    assert Conversation(OpenInference(), oip()).detected() == "triton 2.51.0"
    assert Conversation(OpenInference(), openrlhf()).detected() is None


def test_oip_scores_one_by_one_where_the_model_has_no_batches() -> None:
    assert Conversation(OpenInference(), oip()).prepared().max_items is None
    assert Conversation(OpenInference(), oip(batch=1)).prepared().max_items == 1
    with pytest.raises(UnsupportedError, match="takes exactly 8 texts per request"):
        Conversation(OpenInference(), oip(batch=8)).prepared()


@pytest.mark.parametrize(
    ("protocol", "app", "error", "message"),
    [
        (OpenInference(), oip(ready=False), ScoringError, "/v2/health/ready answered 400 .* the server is not ready"),
        (
            OpenInference(),
            oip(loaded=False),
            ScoringError,
            "the model 'reward_model', if it exists, is not ready",
        ),
        (OpenInference(model="other"), oip(), UnsupportedError, "no model 'other'; it has 'reward_model'. .*model: NAME}`"),
        (OpenInference(model="other"), oip(lists="/v2/models"), UnsupportedError, "no model 'other'; it has 'reward_model'"),
        (
            OpenInference(model="other"),
            oip(lists=""),
            UnsupportedError,
            "no model 'other' .*is not found.*, and does not list its models. .*model: NAME}`",
        ),
        (OpenInference(), oip(lists="", loaded=False), ScoringError, "the model 'reward_model', .* is not ready"),
        (OpenInference(), oip(model="a", others=["b"]), UnsupportedError, "the models 'a', 'b'. .*model: NAME}`"),
        (
            OpenInference(input="text"),
            oip(),
            UnsupportedError,
            r"no input 'text'; its inputs are 'sentences' \(BYTES\), 'tokens'",
        ),
        (OpenInference(input="tokens"), oip(), UnsupportedError, "'tokens' .* has the datatype 'INT64'; BYTES is needed"),
        (OpenInference(output="score"), oip(), UnsupportedError, "no output 'score'; its outputs are 'rewards' .*, 'exceeded'"),
        (OpenInference(output="exceeded"), oip(), UnsupportedError, "has the datatype 'BOOL'; FP32 or FP64 is needed"),
        (OpenInference(), openrlhf(), UnsupportedError, "does not speak the Open Inference Protocol"),
    ],
)
def test_oip_says_why_a_model_cannot_be_used(protocol: OpenInference, app: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Conversation(protocol, app).prepared()


def output(**changes: Any) -> dict[str, Any]:
    return {"name": "rewards", "shape": [3, 1], "datatype": "FP32", "data": [1.0, 2.0, 3.0], **changes}


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ([], "has 0 outputs of FP32 or FP64 with one number for each of 3 items; its outputs are none"),
        ([output(name="a"), output(name="b")], "has 2 outputs of FP32 or FP64 .* its outputs are 'a', 'b'. Name the reward"),
        ([output(name="a", shape=[3, 2])], "has 0 outputs of FP32 or FP64"),
        ([output(), output()], "has 2 outputs called 'rewards'"),
        ([output(datatype="INT32")], "has the datatype 'INT32'; FP32 or FP64 was expected"),
        ([output(shape=[1, 3])], r"has the shape \[1, 3\] for 3 items"),
        ([output(shape=[3, 2], data=[1.0] * 6)], r"has the shape \[3, 2\]"),
        ([output(data=[1.0, 2.0])], "the data of 'rewards' has 2 entries for 3 items"),
        ([output(data=[1.0, 2.0, float("nan")])], r"the data of 'rewards'\[2\] is nan"),
        ([output(data=None)], "a list of 3 numbers"),
        (None, "a mapping with 'outputs'"),
    ],
)
def test_oip_answers_that_are_no_rewards_are_refused(outputs: Any, message: str) -> None:
    lasts = "'a', 'b'" in message or "INT32" in message  # what the next answer will have as well
    with pytest.raises(UnsupportedError if lasts else AnswerError, match=message):
        told({"id": "request-1", "outputs": outputs}, OpenInference())


def test_oip_reads_the_output_that_was_named_and_no_other() -> None:
    outputs = [output(name="a"), output(name="b", data=[4.0, 5.0, 6.0])]
    assert told({"outputs": outputs}, OpenInference(output="b")) == [4.0, 5.0, 6.0]
    with pytest.raises(UnsupportedError, match="has 0 outputs called 'rewards'; its outputs are 'a', 'b'"):
        told({"outputs": outputs}, OpenInference(output="rewards"))


@pytest.mark.parametrize(
    ("datatype", "data", "said", "length", "message"),
    [
        ("FP32", bytes(8), 8, 0, "3 elements of FP32 need 12 bytes; got 8"),
        ("FP32", bytes(24), 24, 0, "need 12 bytes; got 24"),
        ("FP32", bytes(12), 13, 0, "only 12 bytes are left after the JSON"),
        ("FP32", bytes(12), 8, 0, "4 bytes after the JSON do not belong to any tensor"),
        ("FP32", bytes(12), -1, 0, "it must be a number of bytes"),
        ("FP32", bytes(12), None, 0, "12 bytes after the JSON do not belong to any tensor"),
        ("FP32", bytes(12), 12, 1000, "Inference-Header-Content-Length is .*, but the body has"),
        ("FP32", bytes(12), 12, -5, "the answer is not valid JSON"),
        ("FP16", bytes(6), 6, 0, "has the datatype 'FP16'; FP32 or FP64 was expected"),
        ("FP32", b"\0\0\x80\x7f" * 3, 12, 0, "is inf"),
        ("FP64", b"\xff" * 24, 24, 0, "is nan"),
    ],
)
def test_oip_bytes_that_are_no_rewards_are_refused(
    datatype: str, data: bytes, said: int | None, length: int, message: str
) -> None:
    entry = {"name": "rewards", "shape": [3, 1], "datatype": datatype, "parameters": {"binary_data_size": said}}
    content = json.dumps({"outputs": [entry]}).encode()
    headers = {"inference-header-content-length": str(len(content) + length)}
    with pytest.raises(UnsupportedError if datatype == "FP16" else AnswerError, match=message):
        OpenInference().answer(Response(200, content + data, headers), ITEMS, ServerFacts(OpenInference(), ""), "request-1")


def test_oip_answers_to_another_request_are_refused() -> None:
    assert told({"outputs": [output(data=[[1.0], [2.0], [3.0]])]}, OpenInference()) == [1.0, 2.0, 3.0]
    with pytest.raises(AnswerError, match="for the request 'request-2', not for 'request-1'"):
        told({"id": "request-2", "outputs": [output()]}, OpenInference())


def test_oip_errors_are_told_in_their_own_words() -> None:
    facts = ServerFacts(OpenInference(model="other"), "a server")
    response = Conversation(OpenInference(), oip()).response(ITEMS, facts)
    assert OpenInference().message(response) == "Request for unknown model: 'other' is not found"
    assert OpenInference().failure(response, 3) == "refused"


# ms-swift

TEXTS_TOO = Swift(texts="messages")


@pytest.mark.parametrize("kind", ["regression", "list"])
def test_swift_keeps_the_contract_in_every_form_of_its_score(kind: Any) -> None:
    check_protocol(TEXTS_TOO, Conversation(TEXTS_TOO, swift(kind=kind)).ask, [*ITEMS, Item(CHAT)])


def test_swift_is_sent_a_conversation() -> None:
    app = swift()
    talk = Conversation(TEXTS_TOO, app)
    for item in (ITEMS[0], ITEMS[2], Item(CHAT)):
        talk.answer([item])
    user, assistant = {"role": "user", "content": "2+2? "}, {"role": "assistant", "content": "4"}
    assert app.state.bodies == [
        {"model": "rm", "messages": [user, assistant]},
        {"model": "rm", "messages": [{"role": "assistant", "content": "Hi"}]},
        {"model": "rm", "messages": CHAT.messages, "tools": [{"name": "f"}]},
    ]


def test_swift_is_sent_no_text_as_messages_unless_that_is_meant() -> None:
    app = swift()
    with pytest.raises(DataError, match=r"another score than `rm.load` gives.*`protocol: {name: swift, texts: messages}`"):
        Conversation(Swift(), app).answer(ITEMS[:1])
    assert app.state.bodies == []


@pytest.mark.parametrize("prompt_tokens", [16, 123])
def test_swift_with_another_template_is_told_by_the_number_of_tokens(prompt_tokens: int) -> None:
    item = Item(CHAT, "<u>Hi<a>Hello", (1, 2), length=16)  # of which two are before the padding
    talk = Conversation(TEXTS_TOO, swift(prompt_tokens=prompt_tokens))
    if prompt_tokens == 16:
        assert talk.answer([item]).values != [None]
    else:
        with pytest.raises(
            UnsupportedError,
            match=r"has 123 tokens, but that of the `tokenizer` in the spec has 16.*`--template_backend jinja`",
        ):
            talk.answer([item])
    assert talk.answer([Item(CHAT)]).values != [None]  # nothing is rendered here to compare with
    assert talk.answer([Item(SAMPLES[0], "2+2? 4", (1, 2), length=2)]).values != [None]  # nor is a text a conversation


def test_swift_is_sent_nothing_rendered() -> None:
    server = ServerFacts(Swift(), "", facts={"model": "rm"})
    with pytest.raises(DataError, match="renders conversations itself"):
        Swift().request([Item(RenderedSample.of([1, 2]))], server, "r")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("classifier", "its content 1 is a class: .*--num_labels 1 --problem_type regression"),
        ("multi-label", r"its content \[1\] is a class"),
        ("generator", "the text 'The answer is good.': the server generates"),
        ("calculator", "the text '42': the server generates"),
    ],
)
def test_swift_models_that_are_no_reward_models_are_told_apart(kind: Any, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        Conversation(TEXTS_TOO, swift(kind=kind)).answer(ITEMS[:1])


@pytest.mark.parametrize(
    "content", ["nan", "NaN", "Infinity", "1_0", "", "true", None, True, [], [1.0, 2.0], ["x"], {"score": 1.0}]
)
def test_swift_content_that_is_no_number_is_refused(content: Any) -> None:
    # A text is what a model that generates answers, and so it will the next time.
    lasts = isinstance(content, str) or content in ([1.0, 2.0], ["x"])
    with pytest.raises(UnsupportedError if lasts else AnswerError):
        told({"choices": [{"message": {"content": content}}]}, Swift(), items=1)


@pytest.mark.parametrize(
    "answer", [{"choices": []}, {"choices": [{"message": {"content": 1.0}}] * 2}, {"message": "x", "object": "error"}, 1.0]
)
def test_swift_answers_without_one_choice_are_refused(answer: Any) -> None:
    with pytest.raises(AnswerError, match="one of the 'choices'"):
        told(answer, Swift(), items=1)


def test_swift_has_its_model_named_where_there_are_several() -> None:
    app = swift(models=("base", "adapter"))
    with pytest.raises(UnsupportedError, match=r"lists 'base', 'adapter'. Name the model .*\{name: swift, model: NAME\}"):
        Conversation(Swift(), app).prepared()
    Conversation(Swift(model="adapter", texts="messages"), app).answer(ITEMS[:1])
    assert app.state.bodies[0]["model"] == "adapter"


@pytest.mark.parametrize(
    ("app", "protocol", "meaning"),
    [
        (swift(key="secret"), TEXTS_TOO, "refused"),
        (swift(), Swift(model="other", texts="messages"), "refused"),
        (swift(failing="CUDA out of memory. Tried to allocate 2 GiB"), TEXTS_TOO, "overload"),
        (swift(failing="the row is longer than max_length"), TEXTS_TOO, "rejected"),
    ],
)
def test_swift_400s_are_told_apart_by_their_message(app: Any, protocol: Swift, meaning: str) -> None:
    assert protocol.failure(Conversation(protocol, app).response(ITEMS[:1]), 1) == meaning


def test_swift_is_known_by_the_owner_of_its_models() -> None:
    assert Conversation(Swift(), swift()).detected() == "ms-swift with rm"
    assert Conversation(Swift(), openrlhf()).detected() is None
