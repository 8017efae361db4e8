"""What a server can make the client hold in memory, read, or reach: no more than was asked for."""

from __future__ import annotations

import gzip
import json
import socket
import threading
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rm_plugins.errors import AnswerError, ScoringError
from rm_plugins.protocols import Native, OpenAIJudge, OpenRLHF, Protocol, Response
from rm_plugins.protocols.protocol import MOST_NESTED
from rm_plugins.providers.remote import Remote
from rm_plugins.remote.hosts import is_loopback, proxy_of
from rm_plugins.remote.requests import ANSWER_BYTES
from tests.fault_proxy import Scorer, json_reply
from tests.remote.conftest import EXPECTED, SAMPLES, remote, replies
from tests.servers import serving

MOST = ANSWER_BYTES + 5 * Protocol.answer_bytes
MOST_FOR_ONE = ANSWER_BYTES + Protocol.answer_bytes


@contextmanager
def peak_memory() -> Iterator[list[int]]:
    """The most bytes that were held at a time while the block ran."""
    found: list[int] = []
    tracemalloc.start()
    try:
        yield found
    finally:
        found.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()


def answering(body: Callable[[], Iterator[bytes]], **headers: str) -> Any:
    """An ASGI app that answers scoring requests so."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/openapi.json":
            pieces: Iterator[bytes] = iter([b"{}"])
            named: dict[str, str] = {}
        else:
            pieces, named = body(), headers
        pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in named.items()]
        await send({"type": "http.response.start", "status": 200, "headers": pairs})
        for piece in pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    return app


def without_end() -> Iterator[bytes]:
    yield b'{"rewards": ['
    for _ in range(50_000):
        yield b"1.0," * 4000


def bomb() -> Iterator[bytes]:
    packed = zlib.compressobj(wbits=31)
    for _ in range(500):
        yield packed.compress(b" " * 1_000_000)
    yield packed.flush()


BOMB_IN_A_BOMB = gzip.compress(gzip.compress(b" " * 50_000_000))


class TestAnswersWithoutEnd:
    @pytest.mark.parametrize(
        ("body", "headers", "told"),
        [
            (without_end, {}, f"longer than the limit of {MOST_FOR_ONE:,} bytes"),
            (bomb, {"content_encoding": "gzip"}, f"longer than the limit of {MOST_FOR_ONE:,} bytes"),
            (lambda: iter([BOMB_IN_A_BOMB]), {"content_encoding": "gzip, gzip"}, "encoded with gzip, gzip"),
            (lambda: iter([b"\x1f\x8b what?"]), {"content_encoding": "gzip"}, "cannot be decompressed"),
            (lambda: iter([gzip.compress(b"{}")[:-9]]), {"content_encoding": "gzip"}, "is incomplete"),
        ],
    )
    def test_they_are_given_up_at_the_limit(
        self, body: Callable[[], Iterator[bytes]], headers: dict[str, str], told: str
    ) -> None:
        with remote(answering(body, **headers), protocol=OpenRLHF(), tries=1) as provider, peak_memory() as peak:
            begun = time.monotonic()
            with pytest.raises(ScoringError, match=told):
                provider.score(SAMPLES[:1])
            assert time.monotonic() - begun < 20
        assert peak[0] < 15 * MOST_FOR_ONE

    def test_what_is_compressed_though_it_was_not_asked_for_is_read(self) -> None:
        body = gzip.compress(json.dumps({"rewards": [0.5, 1, 2, 3, 4]}).encode())
        with remote(answering(lambda: iter([body]), content_encoding="gzip"), protocol=OpenRLHF()) as provider:
            assert provider.score(SAMPLES).values.tolist() == [0.5, 1, 2, 3, 4]

    def test_a_long_answer_within_the_limit_is_read(self) -> None:
        body = json.dumps({"rewards": [0.5, 1, 2, 3, 4], "extra_logs": {"why": "x" * (MOST - 200)}}).encode()
        with remote(answering(lambda: iter([body])), protocol=OpenRLHF()) as provider:
            assert provider.score(SAMPLES).values.tolist() == [0.5, 1, 2, 3, 4]

    def test_a_judge_may_say_as_much_as_it_is_asked_for(self) -> None:
        assert OpenAIJudge().answer_bytes == 512 * 8 * 21
        assert OpenAIJudge(range=[1, 10], extra_body={"max_completion_tokens": 30_000}).answer_bytes == 512 * 30_000

    def test_what_a_server_says_of_itself_is_bounded_as_well(self) -> None:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            for _ in range(5000):
                await send({"type": "http.response.body", "body": b" " * 64_000, "more_body": True})

        with (
            remote(app, tries=1, deadline=20) as provider,
            peak_memory() as peak,
            pytest.raises(ScoringError, match="longer than the"),
        ):
            provider.score(SAMPLES)
        assert peak[0] < 15 * ANSWER_BYTES


class TestMessages:
    @pytest.mark.parametrize("status", [200, 400, 500])
    def test_what_a_server_says_is_one_line_and_not_too_long(self, status: int) -> None:
        told = "first\nWARNING second \x1b[31m \ud800" + "x" * 100_000
        scorer = Scorer(reward=lambda text: ValueError(told))
        if status != 200:
            scorer.before = replies(*[json_reply(status, {"error": {"message": told}})] * 99)
        with remote(scorer, tries=1) as provider, pytest.raises(ScoringError, match="first WARNING second") as caught:
            provider.score(SAMPLES)
        assert len(str(caught.value)) < 3000
        assert str(caught.value).encode().decode().isprintable()


class TestDeepAnswers:
    @pytest.mark.parametrize("depth", [MOST_NESTED + 1, 900, 5_000, 200_000])
    @pytest.mark.parametrize("opening", ["[", '{"a":', '[{"error":'])
    @pytest.mark.parametrize("status", [200, 500])
    def test_they_are_a_wrong_answer(self, opening: str, depth: int, status: int) -> None:
        closing = "".join({"[": "]", "{": "}"}.get(character, "") for character in reversed(opening))
        body = (opening * depth + "0" + closing * depth).encode()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": status if scope["method"] == "POST" else 404, "headers": []})
            await send({"type": "http.response.body", "body": body})

        with remote(app, protocol=OpenRLHF(), tries=1) as provider, pytest.raises(ScoringError) as caught:
            provider.score(SAMPLES)
        assert caught.value.rows == frozenset(range(5))
        assert "RecursionError" not in str(caught.value)
        with pytest.raises(AnswerError, match=r"nested more than 100 levels deep|is not valid JSON"):
            Response(200, body).json()

    @given(st.text(), st.integers(0, MOST_NESTED - 2), st.booleans())
    def test_others_are_read_whatever_their_texts_hold(self, text: str, depth: int, named: bool) -> None:
        value: Any = f'"{text}[{{"'
        for _ in range(depth):
            value = {text: value} if named else [text, value]
        expected = [value, '[{"\\' * 200, [[]] * 200]
        assert Response(200, json.dumps(expected).encode()).json() == expected


SPELLINGS = ["127.0.0.1", "127.0.0.2", "127.1", "127.0.1", "2130706433", "0x7f000001", "0x7F.1", "017700000001", "localhost",
             "LOCALHOST", "localhost.", "a.localhost", "ip6-localhost", "[::1]", "[0:0:0:0:0:0:0:1]", "[::ffff:127.0.0.1]",
             "[::ffff:7f00:1]", "127.0.0.1."]  # fmt: skip


class TestProxies:
    @pytest.mark.parametrize("host", SPELLINGS)
    def test_loopback_is_known_in_every_spelling(self, host: str, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, "http://proxy.example:3128")
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        for scheme in ("http", "https"):
            assert proxy_of(urlsplit(f"{scheme}://{host}:8000")) is None

    @pytest.mark.parametrize("host", ["127.1", "0x7f000001", "localhost.", "[::ffff:127.0.0.1]", "2130706433"])
    def test_and_reached_without_the_proxy(self, host: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
        with serving(Scorer(), lifespan="off") as url:
            provider = Remote(url=f"http://{host}:{urlsplit(url).port}", protocol=Native(), deadline=10)
            try:
                assert provider.score(SAMPLES).values.tolist() == EXPECTED
            finally:
                provider.close()

    @pytest.mark.parametrize(
        ("host", "exceptions", "proxied"),
        [
            ("gpu.example", "", True),
            ("gpu.example", "example", False),
            ("gpu.example", "other.example", True),
            ("gpu.example", "*", False),
            ("10.1.2.3", "10.0.0.0/8", False),
            ("11.1.2.3", "10.0.0.0/8,192.168.0.0/16", True),
            ("127.0.0.1.example.com", "", True),
            ("128.0.0.1", "", True),
            ("[::ffff:10.0.0.1]", "", True),
        ],
    )
    def test_other_machines_are_reached_as_the_environment_says(
        self, host: str, exceptions: str, proxied: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HTTP_PROXY", "proxy.example:3128")
        monkeypatch.setenv("NO_PROXY", exceptions)
        monkeypatch.setenv("no_proxy", exceptions)
        expected = "http://proxy.example:3128" if proxied else None
        assert proxy_of(urlsplit(f"http://{host}:8000")) == expected

    def test_a_proxy_is_gone_through_with_its_password(self, monkeypatch: pytest.MonkeyPatch) -> None:
        heads: list[bytes] = []
        with socket.create_server(("127.0.0.1", 0)) as listening, serving(Scorer(), lifespan="off") as url:
            threading.Thread(target=_serve_as_proxy, args=[listening, urlsplit(url).port, heads], daemon=True).start()
            monkeypatch.setenv("HTTP_PROXY", f"http://me:pass%20word@127.0.0.1:{listening.getsockname()[1]}")
            for name in ("NO_PROXY", "no_proxy"):
                monkeypatch.delenv(name, raising=False)
            provider = Remote(url="http://scorer.example", protocol=Native(), deadline=10)
            assert provider.score(SAMPLES).values.tolist() == EXPECTED
            provider.close()
        assert all(b"http://scorer.example/v1/" in head for head in heads)
        assert all(b"proxy-authorization: basic bwu6cgfzcyb3b3jk" in head.lower() for head in heads)

    @given(st.integers(0, 2**24 - 1), st.sampled_from(["{0}", "0x{0:x}", "0{0:o}"]))
    def test_every_address_of_loopback_is_known_as_a_number(self, offset: int, form: str) -> None:
        assert is_loopback(form.format(0x7F000000 + offset))
        assert not is_loopback(form.format(0x80000000 + offset))


def _serve_as_proxy(listening: socket.socket, port: int | None, heads: list[bytes]) -> None:
    while True:
        try:
            client, _ = listening.accept()
        except OSError:
            return
        request = client.recv(1 << 20)
        head = request.partition(b"\r\n\r\n")[0]
        length = next((int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0)
        while len(request) - len(head) - 4 < length:
            request += client.recv(1 << 20)
        heads.append(head)
        with socket.create_connection(("127.0.0.1", port or 0)) as target:
            target.sendall(request.replace(b"http://scorer.example/", b"/", 1))
            while data := target.recv(1 << 16):
                client.sendall(data)
        client.close()
