"""What a server is sent so that it reads the token, and encodes the pair, that the model was trained with; or why it is sent nothing."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

import rm_plugins as rm
from rm_plugins.errors import ModelError, ScoringError
from rm_plugins.protocols import TEI, VLLM, Native, OpenAIJudge, OpenInference, OpenRLHF, Protocol, SGLang, Swift
from rm_plugins.providers.remote import Remote
from rm_plugins.samples import RenderedSample
from tests.conftest import CORPUS, make_tokenizer
from tests.fake_servers import logit, pair_tokens, tokens
from tests.fake_servers.judge import choice, judge
from tests.fake_servers.native import native
from tests.fake_servers.oip import oip
from tests.fake_servers.openrlhf import openrlhf
from tests.fake_servers.sglang import FakeSGLang
from tests.fake_servers.swift import swift
from tests.fake_servers.tei import FakeTEI
from tests.fake_servers.vllm import FakeVLLM
from tests.servers import serving

SAMPLES = [rm.Sample("What is two and two? ", "four"), rm.Sample("name a colour ", "rain"), rm.Sample("", "the sea")]


class Seen:
    """Another app, whose requests are kept."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.bodies: list[tuple[str, Any]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def kept() -> Any:
            message = await receive()
            if message["type"] == "http.request" and message.get("body"):
                self.bodies.append((scope["path"], json.loads(message["body"])))
            return message

        await self.app(scope, kept, send)

    def sent(self, path: str, key: str) -> list[Any]:
        return [entry for asked, body in self.bodies if asked == path for entry in body[key]]


@contextmanager
def remote(protocol: Protocol, app: Any, **settings: Any) -> Iterator[tuple[Remote, Seen]]:
    seen = Seen(app)
    with serving(seen, lifespan="off") as url:
        provider = Remote(url=url, protocol=protocol, concurrency=1, **settings)
        yield provider, seen
        provider.close()


# Which token is read


def decoder(folder: Path, *, pad: str = "<|end|>") -> tuple[str, Any]:
    """The folder of a decoder's tokenizer, whose padding is EOS unless it is told otherwise."""
    tokenizer = make_tokenizer(pad=pad)
    tokenizer.save_pretrained(folder)
    return str(folder), tokenizer


def ids_of(tokenizer: Any, sample: rm.Sample, *, closed: bool) -> list[int]:
    text = f"{sample.prompt}{sample.completion}{tokenizer.eos_token if closed else ''}"
    return [int(token) for token in tokenizer(text)["input_ids"]]


@pytest.mark.parametrize(
    ("pad", "read", "closed"),
    [
        ("<|end|>", "before-padding", False),
        ("<|end|>", "last", True),
        ("<|pad|>", "before-padding", True),
        ("<|pad|>", "last", True),
    ],
)
def test_a_server_that_reads_the_last_token_is_sent_rows_that_end_with_the_one_to_read(
    pad: str, read: Any, closed: bool, tmp_path: Path
) -> None:
    folder, tokenizer = decoder(tmp_path, pad=pad)
    rows = [ids_of(tokenizer, sample, closed=closed) for sample in SAMPLES]
    for protocol, app, path, key in (
        (VLLM(), FakeVLLM(), "/classify", "input"),
        (VLLM(endpoint="pooling"), FakeVLLM(), "/pooling", "input"),
        (SGLang(), FakeSGLang(), "/classify", "input_ids"),
    ):
        with remote(protocol, app, tokenizer=folder, read=read) as (provider, seen):
            assert provider.score(SAMPLES).values.tolist() == pytest.approx([logit(row) for row in rows])
        assert sorted(seen.sent(path, key)) == sorted(rows)
    for sender, server in ((OpenRLHF(), openrlhf()), (VLLM(), FakeVLLM("0.13.0"))):
        with remote(sender, server, tokenizer=folder, read=read) as (provider, seen):
            provider.score(SAMPLES)
        texts = [*seen.sent("/get_reward", "query"), *seen.sent("/classify", "input")]
        assert sorted(tokenizer(texts)["input_ids"]) == sorted(rows)


@pytest.mark.parametrize("extra", ["<|end|>", "<|end|><|end|>"])
def test_a_completion_that_is_closed_already_is_read_where_it_would_be_here(extra: str, tmp_path: Path) -> None:
    folder, tokenizer = decoder(tmp_path)
    sample = rm.Sample("2+2? ", f"four{extra}")
    for protocol, app in ((VLLM(), FakeVLLM()), (OpenRLHF(), openrlhf())):
        with remote(protocol, app, tokenizer=folder, read="before-padding") as (provider, seen):
            provider.score([sample])
        sent = [*seen.sent("/classify", "input"), *map(tokenizer.encode, seen.sent("/get_reward", "query"))]
        assert sent == [ids_of(tokenizer, rm.Sample("2+2? ", "four"), closed=False)]


def test_token_ids_of_a_sample_are_cut_as_well(tmp_path: Path) -> None:
    folder, tokenizer = decoder(tmp_path)
    end = tokenizer.eos_token_id
    with remote(VLLM(), FakeVLLM(), tokenizer=folder, read="before-padding") as (provider, seen):
        provider.score([RenderedSample.of([70, 71, end, end]), RenderedSample.of([70, end, 71]), RenderedSample.of([end])])
    assert seen.sent("/classify", "input") == [[70, 71], [70, end, 71], [end]]


@pytest.mark.parametrize(("protocol", "app"), [(TEI(), FakeTEI), (Swift(), swift)])
def test_a_server_that_reads_before_padding_is_not_sent_what_is_read_at_padding(
    protocol: Protocol, app: Callable[[], Any], tmp_path: Path
) -> None:
    folder, _ = decoder(tmp_path)
    with remote(protocol, app(), tokenizer=folder, read="last") as (provider, seen):
        with pytest.raises(ScoringError, match=r"`read: last`.*this server reads the last one that is not.*vLLM, SGLang"):
            provider.score(SAMPLES)
        assert not seen.sent("/predict", "inputs")
        open_end = RenderedSample.of("four") if isinstance(protocol, TEI) else None
        if open_end is not None:  # it ends with no padding, so there is nothing to disagree about
            assert not provider.score([open_end]).errors


def test_tei_is_sent_texts_up_to_the_token_that_is_read(tmp_path: Path) -> None:
    folder, _ = decoder(tmp_path)
    with remote(TEI(), FakeTEI(), tokenizer=folder, read="before-padding") as (provider, seen):
        provider.score(SAMPLES)
    assert sorted(seen.sent("/predict", "inputs")) == sorted([[f"{sample.prompt}{sample.completion}"] for sample in SAMPLES])


def test_a_server_of_which_nobody_knows_what_it_reads_is_sent_what_both_kinds_read_alike(tmp_path: Path) -> None:
    folder, tokenizer = decoder(tmp_path)

    def texts(seen: Seen) -> list[str]:
        return sorted(text for path, body in seen.bodies if path.endswith("/infer") for text in body["inputs"][0]["data"])

    joined = sorted(f"{sample.prompt}{sample.completion}" for sample in SAMPLES)
    closed = [f"{text}{tokenizer.eos_token}" for text in joined]
    for protocol in (OpenInference(), OpenInference(reads="last"), OpenInference(reads="before-padding")):
        with remote(protocol, oip(), tokenizer=folder, read="before-padding") as (provider, seen):
            provider.score(SAMPLES)
        assert texts(seen) == joined
    with remote(OpenInference(reads="last"), oip(), tokenizer=folder, read="last") as (provider, seen):
        provider.score(SAMPLES)
    assert texts(seen) == closed
    for unsure, message in (
        ("unknown", r"`protocol: {name: NAME, reads: last}`"),
        ("before-padding", "reads the last one that is not"),
    ):
        other = OpenInference() if unsure == "unknown" else OpenInference(reads="before-padding")
        with remote(other, oip(), tokenizer=folder, read="last") as (provider, seen):
            with pytest.raises(ScoringError, match=message):
                provider.score(SAMPLES)
            assert texts(seen) == []


def test_our_own_server_is_sent_whole_rows_and_knows_what_it_reads(tmp_path: Path) -> None:
    folder, tokenizer = decoder(tmp_path)
    with remote(Native(), native(lambda sample: 1.0), tokenizer=folder, read="before-padding") as (provider, seen):
        provider.score(SAMPLES[:1])
    assert seen.sent("/v1/rewards", "samples") == [{"token_ids": ids_of(tokenizer, SAMPLES[0], closed=True)}]


def test_what_nothing_tells_is_warned_of_as_where_the_model_is_loaded(tmp_path: Path) -> None:
    folder, _ = decoder(tmp_path)
    with pytest.warns(UserWarning, match=r"pads with its EOS token.*`read: before-padding` or `read: last`"):
        Remote(url="http://127.0.0.1:9", tokenizer=folder)


# Pairs


def encoder(folder: Path, *, types: bool) -> tuple[str, Any]:
    """The folder of an encoder's tokenizer: BERT's with token types, or RoBERTa's without."""
    words = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    words.train_from_iterator(CORPUS, trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False))
    pair = "[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1" if types else "[CLS]:0 $A:0 [SEP]:0 [SEP]:0 $B:0 [SEP]:0"
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair=pair, special_tokens=[(token, special.index(token)) for token in ("[CLS]", "[SEP]")]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", *(["token_type_ids"] if types else []), "attention_mask"],
    )
    tokenizer.save_pretrained(folder)
    return str(folder), tokenizer


TWO_TEXTS = [(str(sample.prompt), str(sample.completion)) for sample in SAMPLES]


def test_a_pair_with_token_types_is_sent_as_two_texts_where_that_is_possible(tmp_path: Path) -> None:
    folder, _ = encoder(tmp_path, types=True)
    expected = [logit(pair_tokens(one, other, closes=True)) for one, other in TWO_TEXTS]
    for protocol in (VLLM(), VLLM(endpoint="score"), VLLM(endpoint="pooling")):
        with remote(protocol, FakeVLLM(closes=True), tokenizer=folder, pair=True) as (provider, seen):
            assert provider.score(SAMPLES).values.tolist() == pytest.approx(expected)
        found = zip(seen.sent("/score", "text_1"), seen.sent("/score", "text_2"), strict=True)
        assert sorted(found) == sorted(TWO_TEXTS)
    for tei in (TEI(), TEI(endpoint="rerank")):
        with remote(tei, FakeTEI(closes=True), tokenizer=folder, pair=True) as (provider, seen):
            assert provider.score(SAMPLES).values.tolist() == pytest.approx(expected)
        assert sorted(seen.sent("/predict", "inputs")) == (sorted(map(list, TWO_TEXTS)) if tei.batches else [])


@pytest.mark.parametrize(
    ("protocol", "app", "message"),
    [
        (SGLang(), lambda: FakeSGLang(closes=True), "Use a protocol that sends pairs"),
        (OpenRLHF(), openrlhf, "Use a protocol that sends pairs"),
        (Swift(), swift, "ms-swift renders every sample as a conversation"),
        (Native(), lambda: native(lambda sample: 1.0), "Leave `pair` and `tokenizer` out"),
        (VLLM(label=1), lambda: FakeVLLM(closes=True), "Leave the label out"),
    ],
)
def test_a_pair_with_token_types_is_refused_elsewhere(
    protocol: Protocol, app: Callable[[], Any], message: str, tmp_path: Path
) -> None:
    folder, _ = encoder(tmp_path, types=True)
    with remote(protocol, app(), tokenizer=folder, pair=True) as (provider, _):
        scores = provider.attempt(SAMPLES)
        assert set(scores.errors) == {0, 1, 2}
        assert message in str(scores.errors[0])


def test_a_pair_with_token_types_that_is_cut_is_refused_alone(tmp_path: Path) -> None:
    folder, _ = encoder(tmp_path, types=True)
    long = rm.Sample("what is two and two " * 9, "four")
    for protocol, app in ((VLLM(), FakeVLLM(closes=True)), (TEI(), FakeTEI(closes=True))):
        with remote(protocol, app, tokenizer=folder, pair=True, max_length=16) as (provider, _):
            scores = provider.attempt([SAMPLES[1], long])
            assert list(scores.errors) == [1]
            assert "is sent as its two whole texts" in str(scores.errors[1])


def test_a_pair_without_token_types_is_a_row_like_others(tmp_path: Path) -> None:
    folder, tokenizer = encoder(tmp_path, types=False)
    rows = tokenizer([one for one, _ in TWO_TEXTS], [other for _, other in TWO_TEXTS])["input_ids"]
    for protocol, app, key in ((VLLM(), FakeVLLM(closes=True), "input"), (SGLang(), FakeSGLang(closes=True), "input_ids")):
        with remote(protocol, app, tokenizer=folder, pair=True) as (provider, seen):
            assert provider.score(SAMPLES).values.tolist() == pytest.approx([logit(row) for row in rows])
        assert sorted(seen.sent("/classify", key)) == sorted(rows)
    with remote(OpenRLHF(), openrlhf(), tokenizer=folder, pair=True) as (provider, seen):
        provider.score(SAMPLES)
        sent = tokenizer(seen.sent("/get_reward", "query"), add_special_tokens=False)["input_ids"]
        assert sorted(sent) == sorted(rows)


def test_an_endpoint_of_pairs_is_not_sent_what_it_would_encode_otherwise(tmp_path: Path) -> None:
    folder, _ = decoder(tmp_path, pad="<|pad|>")
    with remote(VLLM(endpoint="score"), FakeVLLM(), tokenizer=folder) as (provider, seen):
        with pytest.raises(ScoringError, match=r"has other token ids than the model's own rendering.*closes them with EOS"):
            provider.score(SAMPLES)
        assert not seen.sent("/score", "text_1")
    with remote(VLLM(endpoint="score"), FakeVLLM(), tokenizer=folder, append_eos=False) as (provider, seen):
        # A decoder's tokenizer puts nothing between two texts, so that a pair is the model's own row unless a token spans both.
        scores = provider.attempt([rm.Sample("What is two and two?", "four"), rm.Sample("What is a col", "our"), SAMPLES[2]])
        assert list(scores.errors) == [1]
        assert sorted(seen.sent("/score", "text_1")) == ["", "What is two and two?"]
    other, _ = encoder(tmp_path / "encoder", types=True)
    with (
        remote(TEI(endpoint="rerank"), FakeTEI(closes=True), tokenizer=other, pair=False) as (provider, _),
        pytest.raises(ScoringError, match="Use another endpoint"),
    ):
        provider.score(SAMPLES)


def test_an_encoder_of_which_nothing_tells_is_asked_about(tmp_path: Path) -> None:
    folder, _ = encoder(tmp_path, types=True)
    with (
        remote(VLLM(), FakeVLLM(closes=True), tokenizer=folder) as (provider, seen),
        pytest.raises((ModelError, ScoringError), match="`pair: true` or `pair: false`"),
    ):
        provider.score(SAMPLES)
    assert not seen.sent("/classify", "input")


# Without a tokenizer

CLOSING: dict[str, tuple[Callable[[], Protocol], Callable[[], Any]]] = {
    "vllm": (VLLM, lambda: FakeVLLM(closes=True)),
    "sglang": (SGLang, lambda: FakeSGLang(closes=True)),
    "tei": (TEI, lambda: FakeTEI(closes=True)),
}


@pytest.mark.parametrize("name", CLOSING)
def test_samples_that_may_be_pairs_are_refused_until_that_is_said(name: str) -> None:
    protocol, app = CLOSING[name]
    joined = [logit(tokens(f"{one}{other}", closes=True)) for one, other in TWO_TEXTS]
    with remote(protocol(), app()) as (provider, _):
        scores = provider.attempt(SAMPLES)
        assert list(scores.errors) == [0, 1]  # the third has no prompt
        assert "`pair: true` or `pair: false`" in str(scores.errors[0])
        assert scores.values[2] == pytest.approx(joined[2])
    with remote(protocol(), app(), pair=False) as (provider, _):
        assert provider.score(SAMPLES).values.tolist() == pytest.approx(joined)
    with remote(protocol(), app(), pair=True) as (provider, _):
        if name == "sglang":
            with pytest.raises(ScoringError, match="Use a protocol that sends pairs"):
                provider.score(SAMPLES)
        else:
            expected = [logit(pair_tokens(one, other, closes=True)) for one, other in TWO_TEXTS]
            assert provider.score(SAMPLES).values.tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("protocol", "app"),
    [(VLLM(endpoint="score"), lambda: FakeVLLM(closes=True)), (TEI(endpoint="rerank"), lambda: FakeTEI(closes=True))],
)
def test_an_endpoint_of_pairs_says_it(protocol: Protocol, app: Callable[[], Any]) -> None:
    expected = [logit(pair_tokens(one, other, closes=True)) for one, other in TWO_TEXTS]
    with remote(protocol, app()) as (provider, _):
        assert provider.score(SAMPLES).values.tolist() == pytest.approx(expected)
    with remote(protocol, app(), pair=False) as (provider, _), pytest.raises(ScoringError, match="The spec says `pair: false`"):
        provider.score(SAMPLES)


OPEN = "does not end texts with EOS"


@pytest.mark.parametrize(
    ("protocol", "app"),
    [(VLLM(), FakeVLLM), (VLLM(endpoint="score"), FakeVLLM), (SGLang(), FakeSGLang), (TEI(), FakeTEI)],
)
def test_texts_that_nobody_closes_are_warned_of_once(
    protocol: Protocol, app: Callable[[], Any], caplog: pytest.LogCaptureFixture
) -> None:
    with remote(protocol, app()) as (provider, _):
        for _ in range(2):
            provider.score(SAMPLES)
    (told,) = [record for record in caplog.records if OPEN in record.message]
    assert told.levelno == logging.WARNING
    assert "Name its `tokenizer`" in told.message
    assert "`append_eos: false`" in told.message


@pytest.mark.parametrize(
    ("protocol", "app", "settings"),
    [
        (VLLM(), FakeVLLM, {"append_eos": False}),
        (VLLM(), lambda: FakeVLLM(closes=True), {"pair": False}),
        (VLLM(), lambda: FakeVLLM(closes=None), {}),
        (VLLM(), lambda: FakeVLLM(told={"version": "1", "server": "rm-plugins 1"}), {}),
        (Native(), lambda: native(lambda sample: 1.0), {}),
        (OpenRLHF(), openrlhf, {}),
        (Swift(), swift, {}),
        (OpenAIJudge(), lambda: judge(lambda question: choice(("Yes", {"Yes": 0.5, "No": 0.5}))), {}),
    ],
)
def test_others_are_not_warned_of(
    protocol: Protocol, app: Callable[[], Any], settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with remote(protocol, app(), **settings) as (provider, _):
        provider.score(SAMPLES)
    assert OPEN not in caplog.text


def test_a_decoder_that_is_sent_two_texts_is_warned_of_though_they_have_no_eos(caplog: pytest.LogCaptureFixture) -> None:
    with remote(VLLM(endpoint="score"), FakeVLLM(), append_eos=False) as (provider, _):
        for _ in range(2):
            provider.score(SAMPLES)
    assert [record.message for record in caplog.records if "tokenizes prompts and completions apart" in record.message]
    assert OPEN not in caplog.text


def test_what_is_rendered_is_not_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder, _ = decoder(tmp_path, pad="<|pad|>")
    with remote(VLLM(), FakeVLLM(), tokenizer=folder) as (provider, _):
        provider.score(SAMPLES)
    with remote(VLLM(), FakeVLLM()) as (provider, _):
        provider.score([RenderedSample.of("the sea"), RenderedSample.of([5, 6])])
    assert OPEN not in caplog.text
