"""What a server is sent so that it reads the token, and encodes the pair, that the model was trained with; or why it is sent nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import rm_plugins as rm
from rm_plugins.errors import ModelError, ScoringError
from rm_plugins.protocols import TEI, VLLM, Native, OpenInference, OpenRLHF, Protocol, SGLang, Swift
from rm_plugins.providers.remote import Remote
from rm_plugins.samples import RenderedSample
from tests.fake_servers import logit, pair_tokens
from tests.fake_servers.native import native
from tests.fake_servers.oip import oip
from tests.fake_servers.openrlhf import openrlhf
from tests.fake_servers.sglang import FakeSGLang
from tests.fake_servers.swift import swift
from tests.fake_servers.tei import FakeTEI
from tests.fake_servers.vllm import FakeVLLM
from tests.remote.sent import SAMPLES, TWO_TEXTS, Seen, decoder, encoder, remote

# Which token is read


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
    for sender, server in ((OpenRLHF(reads="last"), openrlhf()), (VLLM(), FakeVLLM("0.13.0"))):
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
        with pytest.raises(
            ScoringError, match=r"`read: last`.*this server reads the last token that is not padding.*vLLM, SGLang"
        ):
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


@pytest.mark.parametrize(("spoken", "app"), [(OpenInference, oip), (OpenRLHF, openrlhf)])
def test_a_server_of_which_nobody_knows_what_it_reads_is_sent_what_both_kinds_read_alike(
    spoken: Any, app: Callable[[], Any], tmp_path: Path
) -> None:
    folder, tokenizer = decoder(tmp_path)

    def texts(seen: Seen) -> list[str]:
        tensors = [body["inputs"][0]["data"] for path, body in seen.bodies if path.endswith("/infer")]
        return sorted([*(text for data in tensors for text in data), *seen.sent("/get_reward", "query")])

    joined = sorted(f"{sample.prompt}{sample.completion}" for sample in SAMPLES)
    closed = [f"{text}{tokenizer.eos_token}" for text in joined]
    for protocol in (spoken(), spoken(reads="last"), spoken(reads="before-padding")):
        with remote(protocol, app(), tokenizer=folder, read="before-padding") as (provider, seen):
            provider.score(SAMPLES)
        assert texts(seen) == joined
    with remote(spoken(reads="last"), app(), tokenizer=folder, read="last") as (provider, seen):
        provider.score(SAMPLES)
    assert texts(seen) == closed
    for other, message in (
        (spoken(), rf"`protocol: {{name: {spoken.name}, reads: last}}`"),
        (spoken(reads="before-padding"), "reads the last token that is not padding"),
    ):
        with remote(other, app(), tokenizer=folder, read="last") as (provider, seen):
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
        (VLLM(label=1), lambda: FakeVLLM(closes=True), "Leave `label` out"),
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
            assert "can only be sent as two whole texts" in str(scores.errors[1])


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
        with pytest.raises(ScoringError, match=r"gives other token ids than the model's own rendering.*ends them with EOS"):
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
