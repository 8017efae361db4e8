"""Samples that nothing renders here, and empty ones: refused where another number would come back, and warned of where it may."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import rm_plugins as rm
from rm_plugins.errors import ScoringError
from rm_plugins.protocols import TEI, VLLM, Native, OpenAIJudge, OpenInference, OpenRLHF, Protocol, SGLang, Swift
from rm_plugins.providers.remote import Remote
from rm_plugins.samples import RenderedSample
from tests.conftest import MakeFolder
from tests.drop_ins import served
from tests.fake_servers import logit, pair_tokens, tokens
from tests.fake_servers.judge import choice, judge
from tests.fake_servers.native import native
from tests.fake_servers.oip import oip
from tests.fake_servers.openrlhf import openrlhf, reward_of
from tests.fake_servers.sglang import FakeSGLang
from tests.fake_servers.swift import swift
from tests.fake_servers.tei import FakeTEI
from tests.fake_servers.vllm import FakeVLLM
from tests.remote.sent import SAMPLES, TWO_TEXTS, decoder, encoder, remote

EMPTY = rm.Sample("", "")


@pytest.mark.parametrize(("protocol", "app"), [(OpenRLHF(), openrlhf), (OpenInference(), oip)])
def test_a_text_without_a_token_has_no_score_where_texts_are_padded(
    protocol: Protocol, app: Callable[[], Any], tmp_path: Path
) -> None:
    folder, _ = decoder(tmp_path, pad="<|pad|>")
    with remote(protocol, app()) as (provider, _):
        scores = provider.attempt([SAMPLES[0], EMPTY, SAMPLES[1]])
    assert list(scores.errors) == [1]
    assert "The text is empty" in str(scores.errors[1])
    with remote(protocol, app(), tokenizer=folder) as (provider, _):
        assert provider.score([SAMPLES[0], EMPTY]).values[1] == pytest.approx(reward_of("<|end|>"))  # rendered, it has its EOS


def test_an_empty_completion_of_a_pair_fails_alone(tmp_path: Path) -> None:
    folder, _ = encoder(tmp_path, types=True)
    samples = [SAMPLES[0], rm.Sample("What is two and two?", ""), SAMPLES[2]]
    expected = logit(pair_tokens(*TWO_TEXTS[0], closes=True))
    for settings in ({"tokenizer": folder}, {}):
        for endpoint in ("classify", "pooling", "score"):
            with remote(VLLM(endpoint=endpoint), FakeVLLM(closes=True), pair=True, **settings) as (provider, seen):
                scores = provider.attempt(samples)
            assert list(scores.errors) == [1]
            assert "vLLM drops an empty second text" in str(scores.errors[1])
            assert scores.values[0] == pytest.approx(expected)
            assert "" not in seen.sent("/score", "text_2")
        with remote(TEI(), FakeTEI(closes=True), pair=True, **settings) as (provider, _):
            assert not provider.attempt(samples).errors


def test_a_server_that_cuts_by_itself_is_sent_no_conversation_that_is_cut_here(tmp_path: Path) -> None:
    folder, _ = decoder(tmp_path, pad="<|pad|>")
    template = tmp_path / "template.jinja"
    template.write_text("{% for message in messages %}{{ message.content }} {% endfor %}")
    chats = [rm.Sample([{"role": "user", "content": "what is two and two " * times}], "four") for times in (1, 20)]
    settings = {"tokenizer": folder, "chat_template": str(template), "max_length": 30}
    with remote(Swift(), swift(), **settings) as (provider, _):
        scores = provider.attempt(chats[1:])
    assert "renders conversations itself" in str(scores.errors[0])
    with (
        remote(Swift(), swift(prompt_tokens=99), **settings) as (provider, _),
        pytest.raises(ScoringError, match="has 99 tokens"),
    ):
        provider.score(chats[:1])


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
    for alone in (rm.Sample("", "the sea"), rm.Sample("the sea", "")):
        with remote(protocol(), app()) as (provider, _), pytest.raises(ScoringError, match="`pair: true` or `pair: false`"):
            provider.score([alone])
    with remote(protocol(), app()) as (provider, _):
        scores = provider.attempt(SAMPLES)
        assert list(scores.errors) == [0, 1, 2]  # the third has no prompt, which as a pair is another row all the same
        assert "`pair: true` or `pair: false`" in str(scores.errors[0])
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
    with remote(protocol, app(), pair=False) as (provider, _), pytest.raises(ScoringError, match="The spec sets `pair: false`"):
        provider.score(SAMPLES)


OPEN = "nor the client ends texts with EOS"


@pytest.mark.parametrize(
    ("protocol", "app"),
    [
        (VLLM(), FakeVLLM),
        (VLLM(), lambda: FakeVLLM(told={"version": "1", "server": "rm-plugins 1"})),
        (VLLM(endpoint="score"), FakeVLLM),
        (SGLang(), FakeSGLang),
        (TEI(), FakeTEI),
    ],
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
        (Native(), lambda: native(lambda sample: 1.0), {}),
        (OpenRLHF(), openrlhf, {}),
        (Swift(texts="messages"), swift, {}),
        (OpenAIJudge(), lambda: judge(lambda question: choice(("Yes", {"Yes": 0.5, "No": 0.5}))), {}),
    ],
)
def test_others_are_not_warned_of(
    protocol: Protocol, app: Callable[[], Any], settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with remote(protocol, app(), **settings) as (provider, _):
        provider.score(SAMPLES)
    assert OPEN not in caplog.text


BARE = "texts are sent unchanged to"


@pytest.mark.parametrize(("protocol", "app"), [(OpenRLHF(), openrlhf), (OpenInference(), oip)])
def test_texts_that_reach_a_model_bare_are_warned_of_once(
    protocol: Protocol, app: Callable[[], Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with remote(protocol, app(), append_eos=False) as (provider, _):
        provider.score(SAMPLES)
    with remote(protocol, app()) as (provider, _):
        provider.score([RenderedSample.of("the sea")])
        provider.attempt([rm.Sample([{"role": "user", "content": "hi"}], "ho")])
    folder, _ = decoder(tmp_path, pad="<|pad|>")
    with remote(protocol, app(), tokenizer=folder) as (provider, _):
        provider.score(SAMPLES)
    assert BARE not in caplog.text
    with remote(protocol, app()) as (provider, _):
        for _ in range(2):
            provider.score(SAMPLES)
    (told,) = [record for record in caplog.records if BARE in record.message]
    assert told.levelno == logging.WARNING
    assert "Name the model's `tokenizer`" in told.message
    assert "`append_eos: false`" in told.message


def test_a_decoder_that_is_sent_two_texts_is_warned_of_though_they_have_no_eos(caplog: pytest.LogCaptureFixture) -> None:
    with remote(VLLM(endpoint="score"), FakeVLLM(), append_eos=False) as (provider, _):
        for _ in range(2):
            provider.score(SAMPLES)
    assert [record.message for record in caplog.records if "tokenizes prompts and completions separately" in record.message]
    assert OPEN not in caplog.text


def test_what_is_rendered_is_not_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder, _ = decoder(tmp_path, pad="<|pad|>")
    with remote(VLLM(), FakeVLLM(), tokenizer=folder) as (provider, _):
        provider.score(SAMPLES)
    with remote(VLLM(), FakeVLLM()) as (provider, _):
        provider.score([RenderedSample.of("the sea"), RenderedSample.of([5, 6])])
    assert OPEN not in caplog.text


@pytest.mark.parametrize("protocol", [VLLM(), TEI()], ids=["vllm", "tei"])
def test_the_tokenizer_of_another_model_is_warned_of_once(
    protocol: Protocol, tiny_decoder: MakeFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tiny_decoder()
    other, _ = encoder(tmp_path, types=False)
    with served(rm.load(folder)) as client:
        url = str(client.base_url).rstrip("/")
        for tokenizer, warnings in ((str(folder), 0), (other, 1)):
            provider = Remote(url=url, protocol=protocol, tokenizer=tokenizer, pair=False if warnings else None)
            for _ in range(2):
                provider.attempt(SAMPLES)
            provider.close()
            assert caplog.text.count("gives other token ids for a text than that of") == warnings
