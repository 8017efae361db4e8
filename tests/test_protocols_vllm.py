"""vLLM's protocol, spoken to servers that behave as its versions do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import pytest
from starlette.responses import JSONResponse

from rm_plugins.errors import AnswerError, DataError, ScoringError, SpecError, UnsupportedError
from rm_plugins.protocols import VLLM, Item, Request, Response
from rm_plugins.samples import RenderedSample, Sample
from tests.fake_servers import BOS, head, logit, pair_tokens, sigmoid, tokens
from tests.fake_servers.vllm import FakeVLLM, Fault
from tests.servers import Conversation

Endpoint = Literal["classify", "pooling", "score"]

TEXTS = ["Q: 2+2?\n4", "Q: 2+2?\n5", "a much longer answer"]
ITEMS = [Item(Sample("", text), text) for text in TEXTS]
WITH_IDS = [Item(Sample("", text), text, tuple(tokens(text, special=False))) for text in TEXTS]
PAIRS = [Item(Sample("2+2?", answer), f"2+2?{answer}") for answer in ("4", "5", "22")]
LOGITS = [logit(tokens(text)) for text in TEXTS]
LOGITS_OF_IDS = [logit(tokens(text, special=False)) for text in TEXTS]
LOGITS_OF_PAIRS = [logit([*tokens("2+2?"), 2, *tokens(answer, special=False)]) for answer in ("4", "5", "22")]

VERSIONS = [
    "0.10.1",
    "0.10.2",
    "0.11.0",
    "0.11.1",
    "0.11.2",
    "0.13.0",
    "0.14.0",
    "0.15.1",
    "0.19.0",
    "0.30.0",
    "0.31.0",
    "0.33.0",
]


def values(protocol: VLLM, app: FakeVLLM, items: list[Item] = ITEMS) -> list[float | None]:
    return list(Conversation(protocol, app).answer(items).values)


@pytest.mark.parametrize("version", VERSIONS)
def test_texts_get_logits_from_every_version_that_has_them(version: str) -> None:
    assert values(VLLM(), FakeVLLM(version)) == pytest.approx(LOGITS)


@pytest.mark.parametrize("version", [version for version in VERSIONS if not version.startswith("0.10") and version != "0.11.0"])
@pytest.mark.parametrize("endpoint", ["classify", "pooling"])
def test_token_ids_get_the_logits_of_exactly_these_tokens(version: str, endpoint: Endpoint) -> None:
    assert values(VLLM(endpoint=endpoint), FakeVLLM(version), WITH_IDS) == pytest.approx(LOGITS_OF_IDS)


@pytest.mark.parametrize("version", VERSIONS)
def test_pairs_get_logits_from_every_version_that_has_them(version: str) -> None:
    assert values(VLLM(endpoint="score"), FakeVLLM(version), PAIRS) == pytest.approx(LOGITS_OF_PAIRS)


@pytest.mark.parametrize(
    ("version", "sent", "not_sent"),
    [
        ("0.10.1", {"activation": False}, "use_activation"),
        ("0.10.2", {"activation": False}, "use_activation"),
        ("0.11.0", {"activation": False}, "use_activation"),
        ("0.11.1", {"use_activation": False}, "activation"),
        ("0.11.2", {"use_activation": False}, "activation"),
        ("0.33.0", {"use_activation": False}, "activation"),
    ],
)
@pytest.mark.parametrize("endpoint", ["classify", "score"])
def test_one_field_asks_for_logits_and_never_both(
    version: str, sent: Mapping[str, Any], not_sent: str, endpoint: Endpoint
) -> None:
    conversation = Conversation(VLLM(endpoint=endpoint), FakeVLLM(version))
    conversation.answer(PAIRS)
    body = conversation.requests[-1].body
    assert sent.items() <= body.items()
    assert not_sent not in body
    assert "truncate_prompt_tokens" not in body


def test_the_fake_falls_into_the_traps_of_the_original() -> None:
    def probability(version: str, **fields: bool) -> float:
        response = Conversation(Sent({"input": [TEXTS[0]], **fields}), FakeVLLM(version)).response(ITEMS[:1])
        found: float = response.json()["data"][0]["probs"][0]
        return found

    hidden = pytest.approx(sigmoid(LOGITS[0]))
    assert probability("0.9.2", use_activation=False, activation=False) == hidden
    assert probability("0.10.0", use_activation=False, activation=False) == hidden
    assert probability("0.10.2", use_activation=False) == hidden
    assert probability("0.11.2", activation=False, use_activation=False) == hidden
    assert probability("0.33.0", activation=False) == hidden
    assert probability("0.33.0", use_activation=False) == pytest.approx(LOGITS[0])
    assert probability("0.11.2", use_activation=False) == pytest.approx(LOGITS[0])


class Sent(VLLM):
    """Sends whatever it was given."""

    def __init__(self, body: Mapping[str, Any]) -> None:
        super().__init__(activation="server")
        self.body = body

    def request(self, *args: object) -> Request:
        return Request("/classify", dict(self.body))


@pytest.mark.parametrize(
    ("version", "endpoint", "first"),
    [
        ("0.8.5.post1", "classify", "0.10.1"),
        ("0.9.2", "classify", "0.10.1"),
        ("0.9.2", "score", "0.10.1"),
        ("0.10.0", "classify", "0.10.1"),
        ("0.10.2", "pooling", "0.11.1"),
    ],
)
def test_a_version_without_logits_is_refused_by_name(version: str, endpoint: Endpoint, first: str) -> None:
    app = FakeVLLM("0.9.2", told={"version": version})
    with pytest.raises(
        UnsupportedError,
        match=rf"vLLM {version} cannot return logits .*Upgrade it to {first}.*activation: sigmoid.*activation: server",
    ):
        Conversation(VLLM(endpoint=endpoint), app).prepared()
    assert app.bodies == []


@pytest.mark.parametrize("endpoint", ["classify", "pooling"])
def test_what_the_server_gives_is_taken_where_the_spec_says_so(endpoint: Endpoint) -> None:
    app = FakeVLLM("0.9.2", problem_type="regression")
    assert values(VLLM(endpoint=endpoint, activation="server"), app) == pytest.approx(LOGITS)
    assert "use_activation" not in app.bodies[-1]
    assert values(VLLM(activation="server"), FakeVLLM("0.33.0")) == pytest.approx([sigmoid(value) for value in LOGITS])


@pytest.mark.parametrize("version", ["0.9.2", "0.10.2", "0.11.0"])
def test_a_version_that_always_adds_special_tokens_is_sent_texts_without(version: str) -> None:
    server = Conversation(VLLM(activation="server"), FakeVLLM(version)).prepared()
    assert server.protocol.server_adds_special_tokens
    assert not Conversation(VLLM(activation="server"), FakeVLLM("0.33.0")).prepared().protocol.server_adds_special_tokens
    with_bos = [Item(item.sample, item.text, tuple(tokens(item.needed_text))) for item in ITEMS]
    assert values(VLLM(activation="server"), FakeVLLM(version, problem_type="regression"), with_bos) == pytest.approx(LOGITS)
    with pytest.raises(DataError, match=rf"vLLM {version} with reward adds the model's special tokens .*0\.11\.1"):
        server.protocol.request([Item(RenderedSample.of("<s>hi", add_special_tokens=False), "<s>hi")], server, "1")


def test_servers_of_several_versions_do_not_mix_up_one_protocol() -> None:
    protocol = VLLM()
    servers = [Conversation(protocol, FakeVLLM(version)).prepared() for version in ("0.10.2", "0.33.0")]
    assert [server.protocol.server_adds_special_tokens for server in servers] == [True, False]
    assert not protocol.server_adds_special_tokens


@pytest.mark.parametrize("version", ["0.11.2", "0.13.0"])
def test_a_version_that_takes_no_token_ids_is_sent_the_text_that_has_them(version: str) -> None:
    conversation = Conversation(VLLM(), FakeVLLM(version))
    conversation.answer(WITH_IDS)
    assert conversation.requests[-1].body["input"] == TEXTS
    assert conversation.requests[-1].body["add_special_tokens"] is False
    with pytest.raises(DataError, match="no text gives the token ids"):
        conversation.answer([Item(Sample("", "cut"), None, (5, 6))])


def test_a_rendered_text_gets_no_second_bos() -> None:
    rendered = [Item(RenderedSample.of(TEXTS[0], add_special_tokens=False), TEXTS[0])]
    plain = [Item(RenderedSample.of(TEXTS[0]), TEXTS[0])]
    assert values(VLLM(), FakeVLLM(), rendered) == pytest.approx([logit(tokens(TEXTS[0], special=False))])
    assert values(VLLM(), FakeVLLM(), plain) == pytest.approx([logit([BOS, *tokens(TEXTS[0], special=False)])])
    with pytest.raises(DataError, match="Score them separately"):
        values(VLLM(), FakeVLLM(), [*rendered, *plain])


@pytest.mark.parametrize(
    "told", [None, {"version": "dev"}, {"version": "0.33.0rc1"}, {"version": 3}, {"version": "0.1.dev1+gabc"}]
)
def test_an_unknown_version_is_seen_to_give_logits(told: Mapping[str, Any] | None) -> None:
    app = FakeVLLM("0.33.0", told=told)
    assert values(VLLM(), app) == pytest.approx(LOGITS)
    assert len(app.bodies) == 3  # a few texts with, the same without, then the samples


@pytest.mark.parametrize("version", ["0.9.2", "0.10.2"])
@pytest.mark.parametrize("endpoint", ["classify", "score"])
def test_an_unknown_version_that_ignores_the_field_is_refused(version: str, endpoint: Endpoint) -> None:
    with pytest.raises(UnsupportedError, match=r"unclear whether .* returns logits or sigmoids"):
        Conversation(VLLM(endpoint=endpoint), FakeVLLM(version, told=None)).prepared()


def test_an_unknown_version_with_a_model_without_activation_gives_logits_where_no_sigmoid_could_be() -> None:
    assert values(VLLM(), FakeVLLM("0.9.2", told=None, problem_type="regression")) == pytest.approx(LOGITS)


def test_equal_answers_that_could_be_sigmoids_are_refused() -> None:
    app = FakeVLLM("0.33.0", told=None, problem_type="regression", outputs=lambda ids: [0.5 + logit(ids) / 20])
    with pytest.raises(UnsupportedError, match="It is unclear whether"):
        Conversation(VLLM(), app).prepared()
    known = FakeVLLM("0.20.0", problem_type="regression", outputs=lambda ids: [0.5 + logit(ids) / 20])
    assert values(VLLM(), known) == pytest.approx([0.5 + value / 20 for value in LOGITS])


@pytest.mark.parametrize("problem_type", [None, "regression"])
@pytest.mark.parametrize("version", ["0.14.0", "0.30.0"])
def test_logits_that_lack_most_of_the_head_are_refused(version: str, problem_type: str | None) -> None:
    app = FakeVLLM(version, broken_head=lambda value: 0.3 * value + 1, problem_type=problem_type)
    with pytest.raises(UnsupportedError, match=r"do not match its probabilities.*upgrade it to 0\.31"):
        Conversation(VLLM(), app).prepared()


def wrong(value: float) -> float:
    """The output of BERT's head as vLLM 0.30 has it without the activation: -0.26816 where -0.26650 is right."""
    return value - 1.66e-3


@pytest.mark.parametrize("closes", [True, None])
@pytest.mark.parametrize("version", ["0.14.0", "0.30.0"])
def test_a_head_that_is_a_little_wrong_has_the_logits_of_its_sigmoids_taken(version: str, closes: bool | None) -> None:
    app = FakeVLLM(version, broken_head=wrong, precision=32, closes=closes)
    expected = [logit(tokens(text, closes=bool(closes))) for text in TEXTS]
    assert values(VLLM(), app) == pytest.approx(expected, abs=1e-5)
    assert app.bodies[-1]["use_activation"] is True
    right = FakeVLLM(version, precision=32, closes=closes)
    assert values(VLLM(), right) == pytest.approx(expected, abs=1e-6)
    assert right.bodies[-1]["use_activation"] is False


def test_pairs_of_such_a_head_are_right_as_well() -> None:
    app = FakeVLLM("0.30.0", broken_head=wrong, precision=32, closes=True)
    expected = [logit(pair_tokens("2+2?", answer, closes=True)) for answer in ("4", "5", "22")]
    for protocol in (VLLM(endpoint="score"), VLLM()):
        pairs = [Item(item.sample, pair=("2+2?", str(item.sample.completion))) for item in PAIRS]
        assert values(protocol, app, pairs) == pytest.approx(expected, abs=1e-5)


def test_a_sigmoid_without_a_logit_is_an_error_of_its_item_alone() -> None:
    app = FakeVLLM(
        "0.30.0", broken_head=wrong, precision=32, closes=True, outputs=lambda ids: [30.0 if len(ids) > 20 else logit(ids)]
    )
    answer = Conversation(VLLM(), app).answer(ITEMS)
    assert answer.values[2] is None
    assert list(answer.errors) == [2]
    assert "the probability of item 2 is 1.0, too near 1" in answer.errors[2]
    assert "upgrade it to 0.31" in answer.errors[2]
    assert answer.values[:2] == pytest.approx([logit(tokens(text, closes=True)) for text in TEXTS[:2]], abs=1e-5)


@pytest.mark.parametrize("shrinks", [1.0, 0.02])
def test_a_wrong_head_without_an_activation_has_what_is_activated_taken(shrinks: float) -> None:
    app = FakeVLLM(
        "0.30.0",
        broken_head=lambda value: value - 5e-4,
        precision=32,
        closes=True,
        problem_type="regression",
        outputs=lambda ids: [0.5 + shrinks * logit(ids)],
    )
    expected = [0.5 + shrinks * logit(tokens(text, closes=True)) for text in TEXTS]
    assert values(VLLM(), app) == pytest.approx(expected, abs=1e-6)


def test_a_decoder_has_no_such_head_and_its_logits_are_taken() -> None:
    noisy = FakeVLLM("0.30.0", broken_head=lambda value: value + 1e-3, precision=32, closes=False)  # half precision inside
    assert values(VLLM(), noisy) == pytest.approx(LOGITS, abs=2e-3)
    assert noisy.bodies[-1]["use_activation"] is False


@pytest.mark.parametrize("version", ["0.9.2", "0.10.2", "0.30.0", "0.33.0"])
def test_the_logits_of_sigmoids_are_taken_where_the_spec_says_so(version: str) -> None:
    app = FakeVLLM(version, precision=32, broken_head=lambda value: 0.3 * value + 1)
    assert values(VLLM(activation="sigmoid"), app) == pytest.approx(LOGITS, abs=1e-5)
    assert len(app.bodies) == 1
    with pytest.raises(UnsupportedError, match="several outputs, so its activation is not a sigmoid"):
        values(VLLM(activation="sigmoid", label=0), FakeVLLM(version, outputs=head(2)))
    with pytest.raises(UnsupportedError, match="a probability was expected"):
        values(VLLM(activation="sigmoid"), FakeVLLM(version, problem_type="regression"))


def test_half_precision_shows_nothing_of_a_head() -> None:
    app = FakeVLLM("0.30.0", broken_head=wrong, precision=16, closes=True)
    with pytest.raises(UnsupportedError, match=r"In half precision, it cannot be checked.*0\.31"):
        Conversation(VLLM(), app).prepared()


def test_several_classes_with_a_wrong_head_are_refused() -> None:
    app = FakeVLLM("0.30.0", broken_head=lambda value: 1.001 * value, precision=32, closes=True, outputs=head(3))
    with pytest.raises(UnsupportedError, match=r"upgrade it to 0\.31"):
        Conversation(VLLM(label=1), app).prepared()


@pytest.mark.parametrize("version", ["0.13.0", "0.31.0", "0.33.0"])
def test_a_version_that_is_known_to_be_right_is_asked_for_nothing_twice(version: str) -> None:
    app = FakeVLLM(version)
    Conversation(VLLM(), app).prepared()
    assert app.bodies == []


def test_several_classes_are_proven_by_their_softmax() -> None:
    app = FakeVLLM("0.33.0", told=None, outputs=head(3))
    assert values(VLLM(label=1), app) == pytest.approx([value - 1 for value in LOGITS])


def test_a_probe_that_fails_says_whether_it_is_worth_another_try() -> None:
    with pytest.raises(UnsupportedError, match="501: The model does not support Classification API"):
        Conversation(VLLM(), FakeVLLM(told=None, task="token_classify")).prepared()
    with pytest.raises(UnsupportedError, match="404: The model `other` does not exist"):
        Conversation(VLLM(model="other"), FakeVLLM(told=None)).prepared()

    class Busy(FakeVLLM):
        async def classify(self, request: Any) -> Any:
            return self.error("overloaded", 503)

    with pytest.raises(ScoringError, match="503: overloaded"):
        Conversation(VLLM(), Busy(told=None)).prepared()


def test_an_rm_plugins_server_is_treated_as_the_newest() -> None:
    app = FakeVLLM("0.33.0", told={"version": "0.1.0", "server": "rm-plugins 0.1.0"})
    conversation = Conversation(VLLM(), app)
    assert conversation.prepared().description == "rm-plugins 0.1.0 0.1.0 with reward"
    assert app.bodies == []
    assert list(conversation.answer(WITH_IDS).values) == pytest.approx(LOGITS_OF_IDS)
    assert conversation.requests[-1].body["use_activation"] is False


@pytest.mark.parametrize("version", ["0.10.1.1", "0.10.2+cu128", "0.11.0.post1"])
def test_builds_of_a_release_count_as_it(version: str) -> None:
    app = FakeVLLM("0.10.2", told={"version": version})
    conversation = Conversation(VLLM(), app)
    conversation.prepared()
    assert app.bodies == []
    assert "activation" in conversation.protocol.request(ITEMS, conversation.prepared(), "1").body


def test_prompts_are_the_queries_and_completions_the_documents() -> None:
    conversation = Conversation(VLLM(endpoint="score"), FakeVLLM())
    conversation.answer(PAIRS)
    assert [conversation.requests[-1].body[name] for name in ("text_1", "text_2")] == [["2+2?"] * 3, ["4", "5", "22"]]


@pytest.mark.parametrize("endpoint", ["classify", "pooling", "score"])
def test_a_pair_goes_to_the_endpoint_that_encodes_pairs(endpoint: Endpoint) -> None:
    conversation = Conversation(VLLM(endpoint=endpoint), FakeVLLM(closes=True))
    pairs = [Item(Sample("Q", "A"), pair=("2+2?", answer)) for answer in ("4", "5")]
    expected = [logit(pair_tokens("2+2?", answer, closes=True)) for answer in ("4", "5")]
    assert list(conversation.answer(pairs).values) == pytest.approx(expected)
    assert conversation.requests[-1].path == "/score"


def test_a_pair_without_token_types_goes_as_its_token_ids() -> None:
    ids = tuple(pair_tokens("2+2?", "4", closes=True))
    conversation = Conversation(VLLM(), FakeVLLM(closes=True))
    assert list(conversation.answer([Item(Sample("Q", "A"), None, ids, ("2+2?", "4"))]).values) == pytest.approx([logit(ids)])
    assert conversation.requests[-1].path == "/classify"


@pytest.mark.parametrize("endpoint", ["classify", "pooling", "score"])
@pytest.mark.parametrize("closes", [True, False, None])
def test_a_pair_whose_second_text_would_be_dropped_is_refused(endpoint: Endpoint, closes: bool | None) -> None:
    conversation = Conversation(VLLM(endpoint=endpoint), FakeVLLM(closes=closes))
    for prompt in ("2+2?", ""):
        with pytest.raises(
            DataError, match=r"vLLM drops an empty second text.*another score.*Leave the sample out.*`protocol: tei`"
        ):
            conversation.answer([Item(Sample(prompt, ""), pair=(prompt, ""))])
    if endpoint == "score":
        with pytest.raises(DataError, match="vLLM drops an empty second text"):
            conversation.answer([Item(Sample("2+2?", ""), "2+2?")])
    found = conversation.answer([Item(Sample("", "4"), pair=("", "4"))])  # an empty first text is kept
    assert list(found.values) == pytest.approx([logit(pair_tokens("", "4", closes=bool(closes)))])


def test_an_empty_second_text_is_sent_where_nothing_differs() -> None:
    scored = Conversation(VLLM(endpoint="score"), FakeVLLM(bare=True)).answer([Item(Sample("2+2?", ""), "2+2?")])
    assert list(scored.values) == pytest.approx([logit(tokens("2+2?", special=False))])
    ids = tuple(pair_tokens("2+2?", "", closes=True))
    found = Conversation(VLLM(), FakeVLLM(closes=True)).answer([Item(Sample("2+2?", ""), None, ids, ("2+2?", ""))])
    assert list(found.values) == pytest.approx([logit(ids)])


def test_pairs_are_mixed_with_nothing_else_and_have_one_output() -> None:
    server = Conversation(VLLM(), FakeVLLM()).prepared()
    pair = Item(Sample("Q", "A"), pair=("Q", "A"))
    with pytest.raises(DataError, match="Score them separately"):
        server.protocol.request([pair, ITEMS[0]], server, "1")
    with pytest.raises(DataError, match="Leave `label` out"):
        VLLM(label=1).request([pair], server, "1")


@pytest.mark.parametrize("closes", [True, False, None])
def test_whether_the_server_closes_texts_is_asked_of_its_tokenizer(closes: bool | None) -> None:
    assert Conversation(VLLM(), FakeVLLM(closes=closes)).prepared().closes_texts is closes
    ours = FakeVLLM(told={"version": "0.1.0", "server": "rm-plugins 0.1.0"}, closes=closes)
    assert Conversation(VLLM(), ours).prepared().closes_texts is closes


def test_pairs_are_text() -> None:
    app = FakeVLLM()
    with pytest.raises(DataError, match="is a conversation"):
        values(VLLM(endpoint="score"), app, [Item(Sample([{"role": "user", "content": "hi"}], "4"))])
    with pytest.raises(DataError, match="already rendered"):
        values(VLLM(endpoint="score"), app, [Item(RenderedSample.of("hi"), "hi")])


def test_a_conversation_without_a_tokenizer_cannot_be_sent() -> None:
    with pytest.raises(DataError, match="Name the model's tokenizer"):
        values(VLLM(), FakeVLLM(), [Item(Sample([{"role": "user", "content": "hi"}], "4"))])


@pytest.mark.parametrize("endpoint", ["classify", "pooling"])
def test_one_of_several_classes_must_be_named(endpoint: Endpoint) -> None:
    app = FakeVLLM(outputs=head(3))
    with pytest.raises(UnsupportedError, match=r"has 3 outputs.*label: NUMBER"):
        values(VLLM(endpoint=endpoint), app)
    assert values(VLLM(endpoint=endpoint, label=2), app) == pytest.approx([value - 2 for value in LOGITS])
    with pytest.raises(UnsupportedError, match="there is no label 3"):
        values(VLLM(endpoint=endpoint, label=3), app)


def test_outputs_of_tokens_are_no_reward() -> None:
    server = Conversation(VLLM(endpoint="pooling"), FakeVLLM()).prepared()
    body = b'{"object": "list", "data": [{"index": 0, "object": "pooling", "data": [[0.5], [0.25]]}]}'
    with pytest.raises(UnsupportedError, match=r"each of 2 tokens.*pooler-config\.task classify"):
        server.protocol.answer(Response(200, body), ITEMS[:1], server, "1")
    conversation = Conversation(VLLM(endpoint="pooling"), FakeVLLM(task="token_classify"))
    refused = conversation.response(ITEMS)
    assert refused.status == 400
    assert conversation.protocol.failure(refused, 3) == "refused"


@pytest.mark.parametrize("endpoint", ["classify", "pooling", "score"])
def test_answers_are_put_in_order_and_counted(endpoint: Endpoint) -> None:
    expected = LOGITS_OF_PAIRS
    protocol = VLLM(endpoint=endpoint)
    if endpoint != "score":
        expected = [logit(tokens(item.needed_text)) for item in PAIRS]
    assert values(protocol, FakeVLLM(fault="shuffled"), PAIRS) == pytest.approx(expected)
    faults: dict[Fault, str] = {"short": "2 entries for 3 items", "twice": "each of 0 to 2 was expected once"}
    for fault, message in faults.items():
        with pytest.raises(AnswerError, match=message):
            values(protocol, FakeVLLM(fault=fault), PAIRS)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"object": "list", "data": [{"index": 0, "probs": [NaN], "num_classes": 1}]}', r"probs\[0\] is nan"),
        (b'{"object": "list", "data": [{"index": 0, "probs": [null], "num_classes": 1}]}', r"probs\[0\] is None"),
        (b'{"object": "list", "data": [{"index": 0, "probs": [], "num_classes": 0}]}', r"probs is \[\]"),
        (b'{"object": "list", "data": [{"index": 0, "probs": [1.5], "num_classes": 2}]}', "1 probs, but num_classes is 2"),
        (b'{"object": "error", "message": "no"}', "object 'list'"),
        (b"[0.5]", "object 'list'"),
        (b"<html>", "not valid JSON"),
    ],
)
def test_what_is_no_number_is_no_reward(body: bytes, message: str) -> None:
    server = Conversation(VLLM(), FakeVLLM()).prepared()
    with pytest.raises(AnswerError, match=message):
        server.protocol.answer(Response(200, body), ITEMS[:1], server, "1")


def test_an_answer_of_another_endpoint_is_told_apart() -> None:
    server = Conversation(VLLM(endpoint="score"), FakeVLLM()).prepared()
    body = b'{"object": "list", "data": [{"index": 0, "object": "pooling", "data": [0.5]}]}'
    with pytest.raises(UnsupportedError, match="is a 'pooling'; a 'score' was expected"):
        server.protocol.answer(Response(200, body), ITEMS[:1], server, "1")


def test_nan_is_an_error_whether_the_server_says_so_or_sends_null() -> None:
    conversation = Conversation(VLLM(), FakeVLLM(fault="nan"))
    assert conversation.protocol.failure(conversation.response(ITEMS), 3) == "rejected"
    with pytest.raises(AnswerError, match=r"data\[0\] is None"):
        values(VLLM(endpoint="pooling"), FakeVLLM(fault="nan"))


@pytest.mark.parametrize("version", ["0.10.0", "0.10.2", "0.33.0"])
def test_too_long_is_rejected_in_the_words_of_the_server(version: str) -> None:
    protocol = VLLM(activation="server")
    conversation = Conversation(protocol, FakeVLLM(version, max_model_len=12))
    response = conversation.response([*ITEMS[:1], Item(Sample("", "x" * 30), "x" * 30)])
    assert response.status == 400
    assert protocol.failure(response, 2) == "rejected"
    assert protocol.message(response).startswith("This model's maximum context length is 12 tokens")


def test_what_another_try_would_not_change_is_refused() -> None:
    protocol = VLLM(model="other")
    unknown = Conversation(protocol, FakeVLLM()).response(ITEMS)
    assert (unknown.status, protocol.failure(unknown, 3)) == (404, "refused")
    assert protocol.failure(Response(401, b'{"error": "Unauthorized"}'), 3) == "refused"
    assert protocol.message(Response(401, b'{"error": "Unauthorized"}')) == "Unauthorized"
    for version, status in {"0.11.2": 400, "0.33.0": 501}.items():
        response = Conversation(VLLM(endpoint="score"), FakeVLLM(version, outputs=head(2))).response(PAIRS)
        assert (response.status, protocol.failure(response, 3)) == (status, "refused")
    running = b'{"error": {"message": "Request id classify-7-0 already running."}}'  # as 0.10.2 answers a retry
    assert protocol.failure(Response(400, running), 3) == "retry"
    assert protocol.failure(Response(503, b"{}"), 3) == "overload"
    assert protocol.failure(Response(500, b"{}"), 3) == "retry"


def test_the_model_is_named_only_where_the_spec_names_it() -> None:
    app = FakeVLLM()
    values(VLLM(), app)
    values(VLLM(model="reward"), app)
    assert [body.get("model") for body in app.bodies] == [None, "reward"]


def test_vllm_is_detected_and_nothing_that_resembles_it() -> None:
    assert Conversation(VLLM(), FakeVLLM("0.19.0", model="Qwen2.5-Reward")).detected() == "vLLM 0.19.0 with Qwen2.5-Reward"
    assert Conversation(VLLM(), FakeVLLM(told={"version": "0.1.0", "server": "rm-plugins 0.1.0"})).detected() is None
    assert Conversation(VLLM(), FakeVLLM(told={"version": 3})).detected() is None
    assert Conversation(VLLM(), FakeVLLM(told=None)).detected() is None
    assert Conversation(VLLM(), FakeVLLM(key="secret")).detected() is None

    class Other(FakeVLLM):
        async def models(self, request: Any) -> Any:
            return JSONResponse({"object": "list", "data": [{"id": "reward", "owned_by": "somebody"}]})

    assert Conversation(VLLM(), Other()).detected() is None


def test_a_missing_key_takes_nothing_but_the_models_name() -> None:
    conversation = Conversation(VLLM(), FakeVLLM(key="secret"))
    assert conversation.prepared().description == "vLLM 0.33.0"
    assert list(conversation.answer(ITEMS).values) == pytest.approx(LOGITS)


def test_labels_are_counted_from_0_and_have_no_use_for_pairs() -> None:
    with pytest.raises(SpecError, match="label: outputs are counted from 0"):
        VLLM(label=-1)
    with pytest.raises(SpecError, match="leave `label` out"):
        VLLM(endpoint="score", label=0)
