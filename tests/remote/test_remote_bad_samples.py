"""One bad sample among good ones, by every protocol: it fails alone, and the others have the scores that they have alone."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import rm_plugins as rm
from rm_plugins.errors import ScoringError
from rm_plugins.protocols import TEI, VLLM, Native, OpenAIJudge, OpenInference, OpenRLHF, Protocol, SGLang, Swift
from rm_plugins.providers.combinators.ensemble import Ensemble
from rm_plugins.providers.remote import Remote
from rm_plugins.remote import retry
from rm_plugins.samples import RenderedSample
from rm_plugins.server import create_app
from rm_plugins.testing import FixedProvider
from tests.fake_servers.judge import choice, judge
from tests.fake_servers.oip import oip
from tests.fake_servers.openrlhf import openrlhf
from tests.fake_servers.sglang import FakeSGLang
from tests.fake_servers.swift import swift
from tests.fake_servers.tei import FakeTEI
from tests.fake_servers.vllm import FakeVLLM
from tests.servers import serving


def verdict(question: str) -> Any:
    chance = 0.2 + (len(question) % 7) / 10
    return choice(("Yes", {"Yes": chance, "No": 0.9 - chance}))


def length(sample: rm.Sample) -> float:
    return float(len(str(sample.completion)))


SERVERS: dict[str, tuple[Protocol, Callable[[], Any]]] = {
    "native": (Native(), lambda: create_app(FixedProvider(scores=length))),
    "vllm classify": (VLLM(), FakeVLLM),
    "vllm pooling": (VLLM(endpoint="pooling"), FakeVLLM),
    "vllm score": (VLLM(endpoint="score"), FakeVLLM),
    "tei predict": (TEI(), FakeTEI),
    "tei rerank": (TEI(endpoint="rerank"), FakeTEI),
    "sglang": (SGLang(), FakeSGLang),
    "openrlhf": (OpenRLHF(), openrlhf),
    "openrlhf labels": (OpenRLHF(labels="label"), openrlhf),
    "oip": (OpenInference(), oip),
    "swift": (Swift(texts="messages"), swift),
    "judge": (OpenAIJudge(), lambda: judge(verdict)),
}


class Picky:
    """An app behind one that fails at every request with ``POISON`` in it, as the real ones do: the whole request."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.reply: tuple[int, Any] = (400, {"error": {"message": "it is poison"}})
        self.requests = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] == "/tokenize":
            await self.app(scope, receive, send)
            return
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        self.requests += 1
        if b"POISON" in body:
            status, content = self.reply
            headers = [(b"content-type", b"application/json")]
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": json.dumps(content).encode()})
            return
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Any:
            return messages.pop() if messages else await receive()

        await self.app(scope, replay, send)


@pytest.fixture(autouse=True, scope="module")
def quick_retries() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retry, "FIRST_DELAY", 0.001)
        patch.setattr(retry, "LONGEST_DELAY", 0.005)
        yield


@pytest.fixture(scope="module")
def remotes() -> Iterator[dict[str, tuple[Remote, Picky]]]:
    with ExitStack() as stack:
        made = {}
        for name, (protocol, app) in SERVERS.items():
            picky = Picky(app())
            url = stack.enter_context(serving(picky, lifespan="on" if name == "native" else "off"))
            made[name] = (Remote(url=url, protocol=protocol, tries=2), picky)
            stack.callback(made[name][0].close)
        yield made


GOOD = [rm.Sample("Q: ", text, {"label": text}) for text in ("a", "bb", "ccc", "🙂", "\\ud83d", "NaN")]
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
UNFIT = [
    rm.Sample([{"role": "user", "content": "Q"}], [{"role": "assistant", "content": None, "tool_calls": [CALL]}]),
    rm.Sample([{"role": "user", "content": [{"type": "image", "image": object()}]}], "4", {"label": "4"}),
    rm.Sample([{"role": "user", "content": "Q"}, {"role": "tool", "content": "7"}], "4", {"label": "4"}),
    rm.Sample("Q: ", "no label"),
    rm.Sample("Q: ", "4", {"label": object()}),
    rm.Sample("Q: ", "4", {"label": math.nan, "tools": [math.inf]}),
    rm.Sample("Q: ", "4", {"label": "4", "chat_template_kwargs": {"x": object()}}),
    rm.Sample("Q: ", "4", {"label": np.array([1.0, np.inf])}),
    RenderedSample.of([5, 6]),
    RenderedSample.of("text", add_special_tokens=False),
    rm.Sample("Q: ", "half \ud83d", {"label": "half"}),
    rm.Sample("Q: ", "POISON", {"label": "POISON"}),
]
"""Samples that some protocols cannot send, or some servers do not take."""

REPLIES = [
    (400, {"error": {"message": "it is poison"}}), (413, {"error": "too long"}), (422, {"detail": "it is poison"}),
    (424, {"error": "it is poison", "error_type": "Backend"}), (500, {"error": "a bug"}), (200, {"what": "is this"}),
    (200, {"data": [{"index": 0, "probs": [math.nan]}]}),
]  # fmt: skip


@pytest.fixture(scope="module")
def alone(remotes: dict[str, tuple[Remote, Picky]]) -> dict[str, list[float]]:
    return {name: [float(provider.score([sample]).values[0]) for sample in GOOD] for name, (provider, _) in remotes.items()}


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_good_samples_have_the_scores_that_they_have_alone(
    remotes: dict[str, tuple[Remote, Picky]], alone: dict[str, list[float]], data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(sorted(remotes)))
    provider, picky = remotes[name]
    picky.reply = data.draw(st.sampled_from(REPLIES))
    bad = data.draw(st.lists(st.sampled_from(range(len(UNFIT))), min_size=1, max_size=3))
    good = data.draw(st.lists(st.sampled_from(range(len(GOOD))), min_size=1, max_size=8))
    order = data.draw(st.permutations([*((True, place) for place in good), *((False, place) for place in bad)]))
    samples = [GOOD[place] if is_good else UNFIT[place] for is_good, place in order]
    scores = provider.attempt(samples)
    for row, (is_good, place) in enumerate(order):
        if is_good:
            assert row not in scores.errors, (name, scores.errors[row])
            assert scores.values[row] == pytest.approx(alone[name][place], abs=1e-6), name
        elif UNFIT[place].completion == "POISON":
            assert row in scores.errors, name
            assert row in (scores.errors[row].rows or ())
        assert (row in scores.errors) == math.isnan(scores.values[row])
    on_error = provider.score(samples, on_error="abstain")
    assert on_error.values.tolist() == pytest.approx(scores.values.tolist(), nan_ok=True)
    if scores.errors:
        with pytest.raises(ScoringError) as caught:
            provider.score(samples)
        assert caught.value.rows == frozenset(scores.errors)


@pytest.mark.parametrize("name", SERVERS)
def test_others_stand_in_for_the_bad_one_alone(
    remotes: dict[str, tuple[Remote, Picky]], alone: dict[str, list[float]], name: str
) -> None:
    provider, picky = remotes[name]
    picky.reply = (422, {"error": "it is poison"})
    samples = [GOOD[0], UNFIT[-1], GOOD[1]]
    provider.fallback = FixedProvider(scores=lambda sample: 7.0)
    try:
        assert provider.score(samples).values.tolist() == pytest.approx([alone[name][0], 7.0, alone[name][1]])
    finally:
        provider.fallback = None
    ensemble = Ensemble(members=[provider, FixedProvider(scores=lambda sample: 1.0)], quorum=1)
    assert ensemble.score(samples).values[1] == 1.0
    assert ensemble.score(samples).values[0] == pytest.approx((alone[name][0] + 1) / 2)


@pytest.mark.parametrize("status", [500, 200])
@pytest.mark.parametrize("poisons", [[40], [3, 40]])
def test_the_sample_that_a_server_fails_at_is_found_in_the_first_batch(status: int, poisons: list[int]) -> None:
    picky = Picky(FakeVLLM())
    picky.reply = (status, {"error": "a bug"})
    samples = [rm.Sample("POISON" if row in poisons else "Q: ", str(row)) for row in range(64)]
    with serving(picky, lifespan="off") as url:
        provider = Remote(url=url, protocol=VLLM(), tries=2)
        assert sorted(provider.attempt(samples).errors) == poisons
        provider.close()


@pytest.mark.parametrize("status", [500, 200])
@pytest.mark.parametrize(("has_scored", "more"), [(True, 16), (False, 12)])
def test_a_server_that_has_broken_down_is_left_alone_soon(status: int, has_scored: bool, more: int) -> None:
    picky = Picky(FakeVLLM())
    picky.reply = (status, {"error": "out of memory"})
    poisoned = [rm.Sample("POISON", str(number)) for number in range(256)]
    with serving(picky, lifespan="off") as url:
        provider = Remote(url=url, protocol=VLLM(), tries=3, batch_size=64)
        if has_scored:
            provider.score(GOOD)
        before = picky.requests
        assert provider.score(poisoned, on_error="abstain").failed.all()
        assert picky.requests - before <= 4 * 3 + more
        provider.close()
