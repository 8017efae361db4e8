"""Whatever a connection brings, a text gets its own score or none: each fault of HTTP with each protocol."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpcore2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import rm_plugins as rm
from rm_plugins.protocols import TEI, VLLM, Native, OpenAIJudge, OpenInference, OpenRLHF, Protocol, SGLang, Swift
from rm_plugins.protocols.request_ids import REQUEST_ID
from rm_plugins.providers.remote import Remote
from rm_plugins.remote.watched_stream import WatchedStream, WrongBytes
from tests.broken_http import BROKEN_HTTP, HARMLESS_HTTP, BrokenHTTP
from tests.fake_servers.judge import choice, judge
from tests.fake_servers.oip import oip
from tests.fake_servers.openrlhf import openrlhf, reward_of
from tests.fake_servers.sglang import FakeSGLang
from tests.fake_servers.swift import swift
from tests.fake_servers.tei import FakeTEI
from tests.fake_servers.vllm import FakeVLLM
from tests.fault_proxy import Scorer
from tests.servers import serving

SAMPLES = [rm.Sample("Q: ", f"{number} is a text of its own {number**3}") for number in range(16)]


def _graded(question: str) -> Any:
    return choice(("Yes", {"Yes": 0.5 + reward_of(question) / 20, "No": 0.4 - reward_of(question) / 20}))


SPOKEN: dict[str, tuple[Callable[[], Protocol], Callable[[], Any]]] = {
    "rm-plugins": (Native, Scorer),
    "vllm": (VLLM, FakeVLLM),
    "vllm-score": (lambda: VLLM(endpoint="score"), FakeVLLM),
    "sglang": (SGLang, FakeSGLang),
    "tei": (TEI, FakeTEI),
    "tei-rerank": (lambda: TEI(endpoint="rerank"), FakeTEI),
    "openrlhf": (OpenRLHF, openrlhf),
    "oip": (OpenInference, oip),
    "swift": (lambda: Swift(texts="messages"), swift),
    "openai-judge": (OpenAIJudge, lambda: judge(_graded)),
}
WITHOUT_IDS = ("tei", "tei-rerank", "openrlhf", "swift", "openai-judge")
NEEDS_IDS = ("anothers-in-place", "swapped")
"""What these protocols cannot notice: the peer itself gives an answer to the wrong connection, and nothing in it says whose it is."""

CASES = [(spoken, fault) for spoken in SPOKEN for fault in BROKEN_HTTP if not (spoken in WITHOUT_IDS and fault in NEEDS_IDS)]


@cache
def right_scores(spoken: str) -> list[float]:
    protocol, server = SPOKEN[spoken]
    with serving(server(), lifespan="off") as url:
        provider = Remote(url=url, protocol=protocol())
        values: list[float] = provider.score(SAMPLES).values.tolist()
        provider.close()
    assert len(set(values)) == len(SAMPLES), "each text has a score of its own"
    return values


def scored_through(spoken: str, fault: str, share: float, **settings: Any) -> tuple[Any, BrokenHTTP]:
    protocol, server = SPOKEN[spoken]
    with (
        serving(server(), lifespan="off") as target,
        BrokenHTTP(urlsplit(target).port or 0, fault, share=share) as proxy,
    ):
        provider = Remote(
            url=proxy.url, protocol=protocol(), **{"batch_size": 2, "concurrency": 2, "tries": 4, "timeout": 5.0, **settings}
        )
        scores = provider.score(SAMPLES, on_error="abstain")
        provider.close()
    assert proxy.happened[fault] > 0
    return scores, proxy


def check_own_or_none(scores: Any, right: list[float]) -> None:
    for row, value in enumerate(scores.values.tolist()):
        assert value == right[row] or (np.isnan(value) and str(scores.errors[row])), (row, value, right[row])


@pytest.mark.parametrize("fault", HARMLESS_HTTP)
@pytest.mark.parametrize("spoken", SPOKEN)
def test_what_is_harmless_costs_no_score(spoken: str, fault: str) -> None:
    scores, _ = scored_through(spoken, fault, 1.0)
    assert scores.values.tolist() == right_scores(spoken)


@pytest.mark.parametrize(("spoken", "fault"), CASES)
def test_what_is_broken_now_and_then_gives_no_wrong_score(spoken: str, fault: str) -> None:
    scores, _ = scored_through(spoken, fault, 0.3)
    check_own_or_none(scores, right_scores(spoken))
    assert np.isfinite(scores.values).sum() >= len(SAMPLES) // 2


@pytest.mark.parametrize(("spoken", "fault"), [case for case in CASES if case[0] in ("rm-plugins", "vllm", "openrlhf")])
def test_what_is_always_broken_gives_no_wrong_score(spoken: str, fault: str) -> None:
    scores, _ = scored_through(spoken, fault, 1.0, tries=1)
    check_own_or_none(scores, right_scores(spoken))


class Gateway:
    """An ASGI app before another one: what it answers to each scoring request is decided by `choose`, of all answers so far."""

    def __init__(self, app: Any, choose: Callable[[list[bytes]], bytes]) -> None:
        self.app = app
        self.choose = choose
        self.answers: list[bytes] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def passed_on(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [pair for pair in message["headers"] if pair[0] != b"content-length"]
            elif scope["method"] == "POST":
                self.answers.append(message["body"])
                message["body"] = self.choose(self.answers)
            await send(message)

        await self.app(scope, receive, passed_on)


class TestRepeatedAnswers:
    def test_an_answer_that_was_another_requests_is_asked_for_again(self) -> None:
        gateway = Gateway(openrlhf(), lambda answers: answers[-2] if len(answers) in (2, 5, 9) else answers[-1])
        with serving(gateway, lifespan="off") as url:
            provider = Remote(url=url, protocol=OpenRLHF(), batch_size=2, concurrency=1)
            assert provider.score(SAMPLES).values.tolist() == right_scores("openrlhf")
            assert provider.counts["doubts"] >= 1
            provider.close()

    def test_a_reward_of_few_values_is_doubted_once_for_each(self) -> None:
        gateway = Gateway(openrlhf(), lambda answers: b'{"rewards": [%d]}' % (len(answers) // 5 % 2))
        with serving(gateway, lifespan="off") as url:
            provider = Remote(url=url, protocol=OpenRLHF(), batch_size=1, concurrency=1)
            for _ in range(3):
                assert set(provider.score(SAMPLES).values.tolist()) == {0.0, 1.0}
            assert provider.counts["doubts"] <= 4
            assert provider.counts["bad_answers"] <= 2
            provider.close()


class TestIds:
    @pytest.mark.parametrize("header", ["X-Request-ID", "x-request-id"])
    def test_an_answer_whose_header_names_another_request_is_refused(self, header: str) -> None:
        named: list[str] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            async def passed_on(message: Any) -> None:
                if message["type"] == "http.response.start" and scope["method"] == "POST":
                    named.append(dict(scope["headers"])[b"x-request-id"].decode())
                    echoed = named[-2] if len(named) == 3 else named[-1]
                    message["headers"] = [*message["headers"], (header.lower().encode(), echoed.encode())]
                await send(message)

            await openrlhf_app(scope, receive, passed_on)

        openrlhf_app = openrlhf()
        with serving(app, lifespan="off") as url:
            provider = Remote(url=url, protocol=OpenRLHF(), batch_size=2, concurrency=1)
            assert provider.score(SAMPLES).values.tolist() == right_scores("openrlhf")
            assert provider.counts["bad_answers"] == 1
            provider.close()

    def test_they_are_uuids_for_servers_that_take_nothing_else(self) -> None:
        """As llama-cpp-python's: it answers 400 and no body."""
        app = judge(_graded, takes_only_uuids=True)
        with serving(app, lifespan="off") as url:
            provider = Remote(url=url, protocol=OpenAIJudge(), tries=2)
            assert provider.score(SAMPLES).values.tolist() == right_scores("openai-judge")
            provider.close()

    def test_a_logical_request_has_one_and_no_other_has_it(self) -> None:
        named: list[tuple[str, bytes]] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            if scope["path"] != "/get_reward":
                await scorer(scope, receive, send)
                return
            name = dict(scope["headers"])[b"x-request-id"].decode()
            message = await receive()
            named.append((name, message["body"]))
            if len([other for other, _ in named if other == name]) == 1:  # each the first time
                await send({"type": "http.response.start", "status": 500, "headers": []})
                await send({"type": "http.response.body", "body": b""})
                return
            messages = [message]

            async def again() -> Any:
                return messages.pop() if messages else await receive()

            await scorer(scope, again, send)

        scorer = openrlhf()
        with serving(app, lifespan="off") as url:
            provider = Remote(url=url, protocol=OpenRLHF(), batch_size=4, tries=3)
            for _ in range(2):
                assert provider.score(SAMPLES).values.tolist() == right_scores("openrlhf")
            provider.close()
        by_name = {name: {body for other, body in named if other == name} for name, _ in named}
        assert len(by_name) == 8
        assert all(len(bodies) == 1 for bodies in by_name.values())
        assert len(named) == 16
        for name in by_name:
            assert REQUEST_ID.fullmatch(name)
            assert (str(uuid.UUID(name)), uuid.UUID(name).version, uuid.UUID(name).variant) == (name, 8, uuid.RFC_4122)


class TestConnections:
    @pytest.mark.parametrize("encrypted", [False, True])
    def test_each_request_has_one_of_its_own(self, encrypted: bool, certificate: tuple[Path, Path]) -> None:
        peers: list[Any] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            peers.append(scope["client"])
            await scorer(scope, receive, send)

        scorer = Scorer(max_items=1)
        keys: dict[str, Any] = {"ssl_keyfile": str(certificate[0]), "ssl_certfile": str(certificate[1])} if encrypted else {}
        with serving(app, lifespan="off", **keys) as url:
            address = url.replace("http:", "https:") if encrypted else url
            provider = Remote(url=address, protocol=Native(), ca_file=str(certificate[1]), concurrency=1)
            assert provider.score(SAMPLES).values.tolist() == right_scores("rm-plugins")
            provider.close()
        assert len(set(peers)) == len(peers) == len(SAMPLES) + 1

    def test_one_that_speaks_first_is_not_spoken_to(self) -> None:
        stream = WatchedStream(httpcore2.AsyncMockStream([b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]"]))
        with pytest.raises(WrongBytes, match="something before the request"):
            asyncio.run(stream.write(b"POST / HTTP/1.1\r\n\r\n"))

    @given(st.binary(min_size=1, max_size=30), st.integers(0, 30), st.sampled_from(["again", "part", "other", "nothing"]))
    def test_only_an_answer_that_is_there_again_may_come_behind_it(self, body: bytes, cut: int, behind: str) -> None:
        answer = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
        more = {
            "again": answer,
            "part": answer[: cut + 1],
            "other": b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
            "nothing": b"",
        }

        async def read() -> None:
            stream = WatchedStream(httpcore2.AsyncMockStream([b"", answer + more[behind]]))
            await stream.write(b"GET")
            await stream.read(1 << 16)
            await stream.check_end("GET", closes=True)

        if behind in ("again", "nothing"):
            asyncio.run(read())
        else:
            with pytest.raises(WrongBytes, match="sent more than one answer"):
                asyncio.run(read())
