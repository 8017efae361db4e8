"""SGLang's protocol, spoken to a server that behaves as SGLang does."""

from __future__ import annotations

from typing import Literal

import pytest

from rm_plugins.errors import AnswerError, DataError, SpecError, UnsupportedError
from rm_plugins.protocols import Item, Request, Response, SGLang
from rm_plugins.samples import RenderedSample, Sample
from tests.fake_servers import head, logit, tokens
from tests.fake_servers.sglang import FakeSGLang
from tests.fake_servers.vllm import FakeVLLM
from tests.servers import Conversation

TEXTS = ["Q: 2+2?\n4", "Q: 2+2?\n5", "a much longer answer"]
ITEMS = [Item(Sample("", text), text) for text in TEXTS]
WITH_IDS = [Item(Sample("", text), text, tuple(tokens(text, special=False))) for text in TEXTS]
LOGITS = [logit(tokens(text)) for text in TEXTS]


@pytest.mark.parametrize("older", [False, True])
def test_texts_get_logits(older: bool) -> None:
    assert list(Conversation(SGLang(), FakeSGLang(older=older)).answer(ITEMS).values) == LOGITS


def test_token_ids_get_the_logits_of_exactly_these_tokens() -> None:
    conversation = Conversation(SGLang(), FakeSGLang())
    found = conversation.answer(WITH_IDS)
    assert list(found.values) == [logit(tokens(text, special=False)) for text in TEXTS]
    assert set(conversation.requests[-1].body) == {"input_ids", "rid"}


@pytest.mark.parametrize("items", [ITEMS[:1], WITH_IDS[:1]])
def test_a_single_item_is_a_list_of_one(items: list[Item]) -> None:
    conversation = Conversation(SGLang(), FakeSGLang())
    assert len(conversation.answer(items).values) == 1
    sent, names = conversation.requests[-1].body.values()
    assert len(names) == 1
    assert isinstance(sent[0], str | list)


def test_the_endpoint_with_a_softmax_is_not_asked() -> None:
    class Softmax(SGLang):
        def request(self, *args: object) -> Request:
            return Request("/v1/classify", {"input": TEXTS})

    found = Conversation(Softmax(), FakeSGLang()).response(ITEMS).json()
    assert [entry["probs"] for entry in found["data"]] == [[1.0]] * 3  # whatever is scored
    conversation = Conversation(SGLang(), FakeSGLang())
    conversation.answer(ITEMS)
    assert conversation.requests[-1].path == "/classify"


def test_what_has_its_special_tokens_goes_as_token_ids_alone() -> None:
    conversation = Conversation(SGLang(), FakeSGLang())
    with pytest.raises(DataError, match="Name the model's tokenizer"):
        conversation.answer([Item(RenderedSample.of("<s>hi", add_special_tokens=False), "<s>hi")])
    with pytest.raises(DataError, match="Score them separately"):
        conversation.answer([ITEMS[0], WITH_IDS[1]])
    with pytest.raises(DataError, match="there is no tokenizer to render it"):
        conversation.answer([Item(Sample([{"role": "user", "content": "hi"}], "4"))])


def test_one_of_several_outputs_must_be_named() -> None:
    app = FakeSGLang(outputs=head(3))
    with pytest.raises(UnsupportedError, match=r"has 3 outputs.*label: NUMBER"):
        Conversation(SGLang(), app).answer(ITEMS)
    assert list(Conversation(SGLang(label=1), app).answer(ITEMS).values) == pytest.approx([value - 1 for value in LOGITS])
    with pytest.raises(UnsupportedError, match="there is no label 3"):
        Conversation(SGLang(label=3), app).answer(ITEMS)
    with pytest.raises(SpecError, match="label: outputs are counted from 0"):
        SGLang(label=-1)


@pytest.mark.parametrize(
    ("fault", "message"),
    [("short", "2 entries for 3 items"), ("null", "is None; a number"), ("aborted", "aborted by the server: Abort in waiting")],
)
def test_what_is_no_score_is_an_error(fault: Literal["short", "null", "aborted"], message: str) -> None:
    with pytest.raises(AnswerError, match=message):
        Conversation(SGLang(), FakeSGLang(fault=fault)).answer(ITEMS)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"embedding": [0.5]}', "a list of mappings"),
        (b"[0.5]", "a list of mappings"),
        (b'[{"meta_info": {}}]', "the embedding of item 0 is None"),
        (b'[{"embedding": []}]', r"the embedding of item 0 is \[\]"),
        (b'[{"embedding": [Infinity]}]', "must be finite"),
    ],
)
def test_other_answers_are_refused(body: bytes, message: str) -> None:
    server = Conversation(SGLang(), FakeSGLang()).prepared()
    with pytest.raises(AnswerError, match=message):
        server.protocol.answer(Response(200, body), ITEMS[:1], server, "1")


def test_too_long_is_rejected_in_the_words_of_the_server() -> None:
    conversation = Conversation(SGLang(), FakeSGLang(context_length=15))
    response = conversation.response(ITEMS)
    assert conversation.protocol.failure(response, 3) == "rejected"
    assert conversation.protocol.message(response).startswith("The input (21 tokens) is longer than the model's context length")


def test_a_server_that_truncates_without_a_word_is_found_out() -> None:
    conversation = Conversation(SGLang(), FakeSGLang(context_length=15, auto_truncate=True))
    answer = conversation.answer(WITH_IDS)
    assert answer.values[2] is None
    assert answer.errors[2].startswith("the server truncated it to 15 of its 20 tokens")
    assert list(conversation.answer(WITH_IDS[:2]).values) == [logit(tokens(text, special=False)) for text in TEXTS[:2]]


def test_the_errors_of_the_server_are_told_apart() -> None:
    protocol = SGLang()
    server = Conversation(protocol, FakeSGLang()).prepared()
    full = Conversation(protocol, FakeSGLang(queue_full=True)).response(ITEMS, server)
    assert (protocol.failure(full, 3), protocol.message(full)) == ("overload", "The request queue is full.")
    closed = Conversation(protocol, FakeSGLang(key="secret")).response(ITEMS, server)
    assert (protocol.failure(closed, 3), protocol.message(closed)) == ("refused", "Unauthorized")
    generating = Conversation(protocol, FakeSGLang(is_generation=True)).response(ITEMS, server)
    assert (generating.status, protocol.failure(generating, 3)) == (400, "refused")


def test_a_server_that_generates_text_is_refused_before_anything_is_sent() -> None:
    conversation = Conversation(SGLang(), FakeSGLang(is_generation=True))
    with pytest.raises(UnsupportedError, match="Launch it with `--is-embedding`"):
        conversation.prepared()
    assert all(request.method == "GET" for request in conversation.requests)


@pytest.mark.parametrize("closes", [True, False])
def test_whether_the_server_closes_texts_is_asked_of_its_tokenizer(closes: bool) -> None:
    assert Conversation(SGLang(), FakeSGLang(closes=closes)).prepared().closes_texts is closes


def test_a_pair_with_token_types_cannot_be_sent() -> None:
    with pytest.raises(DataError, match=r"takes prompt and completion as a pair.*`vllm`, `tei`"):
        Conversation(SGLang(), FakeSGLang(closes=True)).answer([Item(Sample("Q", "A"), pair=("Q", "A"))])


def test_a_server_without_the_key_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="Unauthorized"):
        Conversation(SGLang(), FakeSGLang(key="secret")).prepared()


def test_the_version_of_the_weights_is_the_fingerprint_once_they_were_changed() -> None:
    assert Conversation(SGLang(), FakeSGLang()).answer(ITEMS).fingerprint == ""
    assert Conversation(SGLang(), FakeSGLang(weight_version="step-40")).answer(ITEMS).fingerprint == "step-40"


def test_sglang_is_detected_and_nothing_that_resembles_it() -> None:
    assert Conversation(SGLang(), FakeSGLang()).detected() == "SGLang with reward"
    assert Conversation(SGLang(), FakeSGLang(older=True)).detected() == "SGLang with reward"
    assert Conversation(SGLang(), FakeSGLang()).prepared().description == "SGLang 0.5.23 with reward"
    assert Conversation(SGLang(), FakeVLLM()).detected() is None
