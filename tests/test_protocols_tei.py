"""TEI's protocol, spoken to a server that behaves as TEI does."""

from __future__ import annotations

import json
from typing import Any, Literal

import pytest
from starlette.responses import JSONResponse

from rm_plugins.errors import AnswerError, DataError, SpecError, UnsupportedError
from rm_plugins.protocols import TEI, Item, Request, Response
from rm_plugins.samples import RenderedSample, Sample
from tests.fake_servers import logit, pair_tokens, sigmoid, tokens
from tests.fake_servers.sglang import FakeSGLang
from tests.fake_servers.tei import FakeTEI
from tests.servers import Conversation

TEXTS = ["Q: 2+2?\n4", "Q: 2+2?\n5", "a much longer answer"]
ITEMS = [Item(Sample("", text), text) for text in TEXTS]
LOGITS = [logit(tokens(text)) for text in TEXTS]
CLASSES = ("bad", "good", "neither")


@pytest.mark.parametrize("size", [1, 2, 3])
def test_texts_get_logits_each_by_itself(size: int) -> None:
    conversation = Conversation(TEI(), FakeTEI())
    assert list(conversation.answer(ITEMS[:size]).values) == LOGITS[:size]
    assert conversation.requests[-1].body == {
        "inputs": [[text] for text in TEXTS[:size]],
        "raw_scores": True,
        "truncate": False,
    }


class Sent(TEI):
    """Sends whatever it was given."""

    def __init__(self, body: object) -> None:
        super().__init__()
        self.body = body

    def request(self, *args: object) -> Request:
        return Request("/predict", self.body)


def test_the_fake_falls_into_the_traps_of_the_original() -> None:
    two = Conversation(Sent({"inputs": TEXTS[:2], "raw_scores": True}), FakeTEI()).response(ITEMS[:2]).json()
    assert two == [{"score": logit([*tokens(TEXTS[0]), 2, *tokens(TEXTS[1], special=False)]), "label": "LABEL_0"}]  # one pair
    hidden = Conversation(Sent({"inputs": [[TEXTS[0]]]}), FakeTEI()).response(ITEMS[:1]).json()
    assert hidden[0][0]["score"] == pytest.approx(sigmoid(LOGITS[0]))
    cut = Conversation(Sent({"inputs": [[TEXTS[2]]], "raw_scores": True}), FakeTEI(max_input_length=9)).response(ITEMS[:1])
    assert cut.json()[0][0]["score"] == logit(tokens(TEXTS[2])[:9])


@pytest.mark.parametrize("label", CLASSES)
def test_a_class_is_found_by_its_name_whatever_its_rank(label: str) -> None:
    def outputs(ids: object) -> list[float]:
        return [0.5, -1.5, 2.5]

    assert list(Conversation(TEI(label=label), FakeTEI(labels=CLASSES, outputs=outputs)).answer(ITEMS[:1]).values) == [
        outputs(())[CLASSES.index(label)]
    ]


def test_one_of_several_classes_must_be_named() -> None:
    app = FakeTEI(labels=CLASSES)
    with pytest.raises(UnsupportedError, match=r"has the classes bad, good, neither.*label: NAME"):
        Conversation(TEI(), app).prepared()
    with pytest.raises(UnsupportedError, match="does not have exactly one class 'great'"):
        Conversation(TEI(label="great"), app).prepared()
    server = Conversation(TEI(), FakeTEI()).prepared()
    answer = Response(200, b'[[{"score": 2, "label": "good"}, {"score": 1, "label": "bad"}]]')
    with pytest.raises(UnsupportedError, match="`label` must choose one as the reward"):
        TEI().answer(answer, ITEMS[:1], server, "1")
    with pytest.raises(UnsupportedError, match="not exactly one for 'great'"):
        TEI(label="great").answer(answer, ITEMS[:1], server, "1")


def test_pairs_are_reranked_one_at_a_time() -> None:
    protocol = TEI(endpoint="rerank")
    assert not protocol.batches
    assert TEI().batches
    conversation = Conversation(protocol, FakeTEI())
    assert list(conversation.answer([Item(Sample("2+2?", "4"))]).values) == [
        logit([*tokens("2+2?"), 2, *tokens("4", special=False)])
    ]
    assert conversation.requests[-1].body == {"query": "2+2?", "texts": ["4"], "raw_scores": True, "truncate": False}


def test_pairs_and_texts_are_one_batch() -> None:
    conversation = Conversation(TEI(), FakeTEI(closes=True))
    pair = Item(Sample("Q", "A"), pair=("2+2?", "4"))
    found = conversation.answer([pair, ITEMS[0], pair])
    expected = [logit(pair_tokens("2+2?", "4", closes=True)), logit(tokens(TEXTS[0], closes=True))]
    assert list(found.values) == [*expected, expected[0]]
    assert conversation.requests[-1].body["inputs"] == [["2+2?", "4"], [TEXTS[0]], ["2+2?", "4"]]


def test_an_empty_second_text_is_kept() -> None:
    found = Conversation(TEI(), FakeTEI(closes=True)).answer([Item(Sample("Q", ""), pair=("Q", ""))])
    assert list(found.values) == [logit(pair_tokens("Q", "", closes=True))]


@pytest.mark.parametrize("closes", [True, False])
def test_whether_the_server_closes_texts_is_asked_of_its_tokenizer(closes: bool) -> None:
    assert Conversation(TEI(), FakeTEI(closes=closes)).prepared().closes_texts is closes
    assert Conversation(TEI(), RmPlugins(closes=closes)).prepared().closes_texts is closes


def test_a_reranked_sample_is_a_prompt_and_a_completion_of_text() -> None:
    conversation = Conversation(TEI(endpoint="rerank"), FakeTEI())
    for sample in (Sample([{"role": "user", "content": "hi"}], "4"), RenderedSample.of("hi")):
        with pytest.raises(DataError, match="use `endpoint: predict`"):
            conversation.answer([Item(sample, "hi")])
    with pytest.raises(UnsupportedError, match="with which TEI does not rerank"):
        Conversation(TEI(endpoint="rerank"), FakeTEI(labels=CLASSES)).prepared()
    with pytest.raises(SpecError, match="leave `label` out"):
        TEI(endpoint="rerank", label="good")


def test_ranks_are_put_in_order_and_counted() -> None:
    protocol = TEI(endpoint="rerank")
    server = Conversation(protocol, FakeTEI()).prepared()
    for body, message in {
        b'[{"index": 1, "score": 0.5}]': "each of 0 to 0 was expected once",
        b"[]": "0 entries for 1 items",
        b'[{"index": 0, "score": null}]': "the score of item 0 is None",
    }.items():
        with pytest.raises(AnswerError, match=message):
            protocol.answer(Response(200, body), ITEMS[:1], server, "1")


def test_a_text_with_its_special_tokens_is_not_sent_for_them_to_double() -> None:
    assert TEI.server_adds_special_tokens
    conversation = Conversation(TEI(), FakeTEI())
    with pytest.raises(DataError, match="Name the model's tokenizer"):
        conversation.answer([Item(RenderedSample.of("<s>hi", add_special_tokens=False), "<s>hi")])
    assert list(conversation.answer([Item(RenderedSample.of("hi"), "hi")]).values) == [logit(tokens("hi"))]
    with_ids = Item(Sample("", TEXTS[0]), TEXTS[0], tuple(tokens(TEXTS[0])))
    assert list(conversation.answer([with_ids]).values) == LOGITS[:1]
    with pytest.raises(DataError, match="no text gives the token ids"):
        conversation.answer([Item(Sample("", "cut"), None, (5, 6))])


@pytest.mark.parametrize("status", [413, 422])
def test_a_text_that_is_too_long_is_rejected_and_not_cut_off(status: Literal[413, 422]) -> None:
    app = FakeTEI(max_input_length=15, validation_status=status)
    conversation = Conversation(TEI(), app)
    response = conversation.response(ITEMS)
    assert response.status == status
    assert conversation.protocol.failure(response, 3) == "rejected"
    assert conversation.protocol.message(response) == "`inputs` must have less than 15 tokens. Given: 21"
    assert list(Conversation(TEI(truncate=True), app).answer(ITEMS).values) == [logit(tokens(text)[:15]) for text in TEXTS]


@pytest.mark.parametrize("status", [413, 422])
def test_a_batch_that_is_too_large_is_to_be_split(status: Literal[413, 422]) -> None:
    app = FakeTEI(max_client_batch_size=2, validation_status=status)
    conversation = Conversation(TEI(), app)
    assert conversation.prepared().max_items == 2
    response = conversation.response(ITEMS)
    assert (response.status, conversation.protocol.failure(response, 3)) == (status, "too-large")
    body = Conversation(TEI(), FakeTEI(payload_limit=50)).response(ITEMS)
    assert (body.status, TEI().failure(body, 3)) == (413, "too-large")


def test_the_errors_of_the_server_are_told_apart() -> None:
    protocol = TEI()
    server = Conversation(protocol, FakeTEI()).prepared()
    busy = Conversation(protocol, FakeTEI(trouble="overloaded")).response(ITEMS, server)
    assert (busy.status, protocol.failure(busy, 3), protocol.message(busy)) == (429, "overload", "Model is overloaded")
    broken = Conversation(protocol, FakeTEI(trouble="backend")).response(ITEMS, server)
    assert (broken.status, protocol.failure(broken, 3)) == (424, "retry")
    no_number = Conversation(protocol, FakeTEI(trouble="nan")).response(ITEMS, server)
    assert (no_number.status, protocol.failure(no_number, 3)) == (424, "rejected")  # of one item, and of it again
    other = Conversation(TEI(endpoint="rerank"), FakeTEI(labels=CLASSES)).response(
        [Item(Sample("2+2?", "4"))], server=Conversation(TEI(endpoint="rerank"), FakeTEI()).prepared()
    )
    assert (other.status, protocol.failure(other, 1)) == (424, "refused")
    empty = Conversation(protocol, FakeTEI()).response([Item(Sample("", ""), "")], server)
    assert (empty.status, protocol.failure(empty, 1)) == (422, "rejected")
    nothing = Conversation(Sent({"inputs": []}), FakeTEI()).response([])
    assert (nothing.status, protocol.failure(nothing, 1)) == (400, "rejected")
    closed = Conversation(protocol, FakeTEI(key="secret")).response(ITEMS, server)
    assert (closed.status, protocol.failure(closed, 3)) == (401, "refused")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'[[{"score": null, "label": "LABEL_0"}]]', "the score of item 0 is None"),
        (b'[[{"score": NaN, "label": "LABEL_0"}]]', "must be finite"),
        (b'[{"score": 1.5, "label": "LABEL_0"}]', "the answer for item 0"),
        (b"[[]]", "the answer for item 0"),
        (b"[[{}], [{}]]", "a list of 1 lists"),
        (b'{"error": "no"}', "a list of 1 lists"),
    ],
)
def test_what_is_no_number_is_no_reward(body: bytes, message: str) -> None:
    server = Conversation(TEI(), FakeTEI()).prepared()
    with pytest.raises(AnswerError, match=message):
        server.protocol.answer(Response(200, body), ITEMS[:1], server, "1")


def test_a_model_that_embeds_texts_is_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"TEI 1\.9\.3 with reward serves a model of the kind 'embedding'"):
        Conversation(TEI(), FakeTEI(labels=())).prepared()


class RmPlugins(FakeTEI):
    """Speaks as TEI does, and says what it is."""

    async def info(self, request: Any) -> Any:
        told = json.loads(bytes((await super().info(request)).body))
        return JSONResponse({**told, "server": "rm-plugins 0.1.0"})


def test_an_rm_plugins_server_can_be_spoken_to_as_tei() -> None:
    assert list(Conversation(TEI(), RmPlugins()).answer(ITEMS).values) == LOGITS


def test_tei_is_detected_and_nothing_that_resembles_it() -> None:
    assert Conversation(TEI(), FakeTEI()).detected() == "TEI 1.9.3 with reward"
    assert Conversation(TEI(), FakeSGLang()).detected() is None
    assert Conversation(TEI(), RmPlugins()).detected() is None
    assert Conversation(TEI(), FakeTEI(key="secret")).detected() is None
    with pytest.raises(UnsupportedError, match="the server requires a key"):
        Conversation(TEI(), FakeTEI(key="secret")).prepared()
