"""What the server takes, from whom, and by what name: each limit by itself."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from rm_plugins.server import Settings, create_app
from rm_plugins.server.bodies import LONG_BODY, BodyChecker, BodyReader
from rm_plugins.server.connections import Connections
from rm_plugins.server.dialects.dialect import Problem
from rm_plugins.server.request_log import Repeated, shortened
from rm_plugins.server.security import Visitors, is_from_here, own_names
from rm_plugins.testing import FixedProvider
from tests.attacks.watching import exchange, request, status_of
from tests.server.conftest import lengths, problem, served
from tests.servers import serving


async def wait(condition: Callable[[], bool]) -> None:
    for _ in range(1_000):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it never came to that")


class TestBodies:
    @pytest.mark.parametrize(
        ("body", "cause"),
        [
            (b"[" + b"[]," * 100 + b"1]", None),
            (b"[" + b"[]," * 120 + b"1]", "too-large"),
            (b"[" + b"{}," * 120 + b"1]", "too-large"),
            (b"[" + b"[],[]," * 50_000 + b"NaN]", "too-large"),
            (b"[" * 64 + b"]" * 64, None),
            (b"[" * 65 + b"]" * 65, "invalid"),
            (b"[" * 65, "invalid"),
            (b'{"a":' * 65 + b"1" + b"}" * 65, "invalid"),
            (b"[" + b"1," * 990 + b"1]", None),
            (b"[" + b"1," * 1_000 + b"1]", "too-large"),
            (b"{" + b'"a":1,' * 500 + b'"b":1}', "too-large"),
            (b'["' + b', [ { \\" ' * 5_000 + b'"]', None),
            ("[1]".encode("utf-16"), "invalid"),
            ("[1]".encode("utf-32-le"), "invalid"),
            (b"\xef\xbb\xbf" + b"[]," * 200, "too-large"),
            (b"[" + b"[]," * 120 + b"9" * 5_000 + b"]", "too-large"),
            (b'["\\\\", ' + b"[]," * 120 + b'"]', "too-large"),
            (b'["\\\\\\"' + b"[]," * 500 + b'"]', None),
        ],
    )
    def test_are_bounded_before_they_are_read(self, body: bytes, cause: str | None) -> None:
        checker = BodyChecker(1_000)
        for text in (body, body + b" " * LONG_BODY if body[-1:] != b"\0" else body):
            if cause is None:
                assert asyncio.run(checker.check(text)) <= 1_000
                continue
            with pytest.raises(Problem) as raised:
                asyncio.run(checker.check(text))
            assert raised.value.cause == cause

    def test_the_memory_of_all_is_bounded_and_one_client_has_half_of_it(self) -> None:
        async def play() -> None:
            reader = BodyReader(limit=1_000_000, most_held=1_000_000, seconds=5)
            ends = asyncio.Event()

            async def hold(client: str, size: int) -> None:
                async def receive() -> dict[str, Any]:
                    return {"type": "http.request", "body": b" " * size}

                async with reader.read(receive, client):
                    await ends.wait()

            kept = [asyncio.ensure_future(hold("a", 400_000))]
            await wait(lambda: reader.held == 400_000)
            with pytest.raises(Problem, match="too many long requests") as raised:
                await hold("a", 200_000)
            assert (raised.value.status, raised.value.headers) == (503, {"Retry-After": "1"})
            kept.append(asyncio.ensure_future(hold("b", 500_000)))
            await wait(lambda: reader.held == 900_000)
            for client in ("a", "b", "c"):
                with pytest.raises(Problem, match="too many long requests"):
                    await hold(client, 150_000)
                kept.append(asyncio.ensure_future(hold(client, 1_000)))  # short ones are let in
            await wait(lambda: reader.held == 903_000)
            ends.set()
            await asyncio.gather(*kept)
            assert reader.held == 0
            await hold("a", 900_000)  # one alone is let in

        asyncio.run(play())

    def test_a_text_that_is_not_ascii_counts_four_times(self) -> None:
        async def play() -> int:
            reader = BodyReader(limit=1_000, most_held=1_000, seconds=5)

            async def receive() -> dict[str, Any]:
                return {"type": "http.request", "body": "é".encode() * 10}

            async with reader.read(receive):
                return reader.held

        assert asyncio.run(play()) == 80

    def test_one_that_pauses_or_takes_too_long_is_not_waited_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("rm_plugins.server.bodies._SECONDS_BETWEEN_BYTES", 0.3)
        head = request("POST", "/v1/rewards", b"")[:-2].replace(b"Content-Length: 0", b"Content-Length: 1000") + b"\r\n"
        with serving(create_app(FixedProvider(scores=lengths), Settings(body_seconds=0.5))) as url:
            port = int(url.rpartition(":")[2])
            assert status_of(exchange(port, head + b'{"')) == 408
            with socket.create_connection(("127.0.0.1", port), 5) as connection:
                connection.sendall(head)
                started = time.monotonic()
                answer = b""
                connection.settimeout(0.1)
                while not answer and time.monotonic() < started + 20:
                    connection.sendall(b" ")
                    try:
                        answer = connection.recv(1_000)
                    except TimeoutError:
                        continue
            assert status_of(answer) == 408
            assert time.monotonic() < started + 15

    def test_a_request_has_no_more_characters_than_may_wait(self) -> None:
        with served(FixedProvider(scores=lengths), max_queue_characters=10_000) as client:
            body = {"queries": "a" * 1_000, "documents": ["b"] * 20}
            assert b"21," and client.post("/score", json=body).status_code == 413
            assert client.post("/score", json=body | {"documents": ["b"]}).status_code == 200

    @pytest.mark.parametrize(
        ("path", "body"),
        [
            ("/v1/rewards", lambda rows: {"samples": rows}),
            ("/classify", lambda rows: {"input": rows}),
            ("/score", lambda rows: {"queries": "a", "documents": rows}),
            ("/predict", lambda rows: {"inputs": [[row] for row in rows]}),
            ("/get_reward", lambda rows: {"query": rows}),
            (
                "/v2/models/fixed/infer",
                lambda rows: {"inputs": [{"name": "sentences", "shape": [len(rows)], "datatype": "BYTES", "data": rows}]},
            ),
        ],
    )
    def test_too_many_samples_are_refused_before_any_is_made(
        self, path: str, body: Callable[[list[str]], Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made: list[object] = []
        monkeypatch.setattr("rm_plugins.samples.Sample.__post_init__", made.append)
        with served(FixedProvider(scores=lengths), max_items=8) as client:
            assert client.post(path, json=body(["x"] * 9)).status_code in (413, 422)
        assert not made


class TestHeads:
    @pytest.fixture
    def port(self) -> Iterator[int]:
        settings = Settings(max_head_bytes=2_000, head_seconds=0.5, max_client_connections=8)
        with serving(create_app(FixedProvider(scores=lengths), settings), http=Connections(settings).protocol) as url:
            yield int(url.rpartition(":")[2])

    @pytest.mark.parametrize(
        ("head", "status"),
        [
            (b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", 200),
            (b"GET /health HTTP/1.1\r\nHost: localhost\r\nA: " + b"a" * 3_000 + b"\r\n\r\n", 431),
            (b"GET /health HTTP/1.1\r\nHost: localhost\r\nA: " + b"a" * 3_000, 431),
            (b"GET /health HTTP/1.1\r\n" + b"a" * 3_000, 431),
            (b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + b"A: b\r\n" * 101 + b"\r\n", 431),
            (b"GET /" + b"a" * 9_000 + b" HTTP/1.1\r\n", 414),
            (b"GET /health HTTP/1.1\r\nHost: localhost\r\n", 408),
            (b"GET /hea", 408),
        ],
    )
    def test_are_short_and_come_in_time(self, head: bytes, status: int, port: int) -> None:
        assert status_of(exchange(port, head, timeout=20)) == status

    def test_a_connection_that_says_nothing_is_closed(self, port: int) -> None:
        asking = request("GET", "/health", Connection="keep-alive")
        for said, more in ((b"", b""), (b"\r\n", b"\r\n"), (asking, b"\r\n"), (asking, b"GET / HT")):
            with socket.create_connection(("127.0.0.1", port), 20) as connection:
                connection.sendall(said)
                if said == asking:
                    assert b"200 OK" in connection.recv(1_000)
                connection.sendall(more)
                started = time.monotonic()
                while connection.recv(1_000):
                    pass
                assert time.monotonic() < started + 20

    def test_requests_in_advance_are_few(self, port: int) -> None:
        short = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"
        assert exchange(port, short * 8, timeout=20).count(b"200 OK") == 8
        assert exchange(port, short * 20, timeout=20).count(b"200 OK") < 20


class TestConnections:
    @pytest.fixture
    def port(self) -> Iterator[int]:
        settings = Settings(max_client_connections=8)  # time enough for a head: a busy machine opens eight connections slowly
        with serving(create_app(FixedProvider(scores=lengths), settings), http=Connections(settings).protocol) as url:
            yield int(url.rpartition(":")[2])

    def test_one_client_has_so_many_connections_and_the_oldest_idle_one_makes_room(self, port: int) -> None:
        opened = [socket.create_connection(("127.0.0.1", port), 3) for _ in range(8)]
        alive = request("GET", "/health", Connection="keep-alive")
        for connection in opened:
            connection.sendall(alive)
            assert b"200 OK" in connection.recv(1_000)
        opened[0].sendall(alive)  # the second has done nothing for longest now
        assert b"200 OK" in opened[0].recv(1_000)
        assert status_of(exchange(port, request("GET", "/v1/info"))) == 200
        assert opened[1].recv(1_000) == b""
        opened[0].sendall(alive)
        assert b"200 OK" in opened[0].recv(1_000)
        for connection in opened:
            connection.close()

    def test_where_all_connections_are_busy_health_is_told_and_nothing_else(self, port: int) -> None:
        head = request("POST", "/v1/rewards").replace(b"Content-Length: 0", b"Content-Length: 9")
        busy = [socket.create_connection(("127.0.0.1", port), 3) for _ in range(8)]
        for connection in busy:
            connection.sendall(head)
        time.sleep(0.2)
        assert status_of(exchange(port, request("GET", "/health"))) == 200
        refused = exchange(port, request("GET", "/v1/info"))
        assert status_of(refused) == 503
        assert b"Retry-After: 1" in refused
        for connection in busy:
            connection.close()


class TestVisitors:
    @pytest.mark.parametrize(
        "host",
        ["localhost", "localhost:8000", "127.0.0.1:1", "[::1]:8000", "127.9.9.9", "gpu-1:8000", "LOCALHOST", "a.localhost"],
    )
    def test_the_server_is_called_by_its_names(self, host: str) -> None:
        assert Visitors(["gpu-1"]).check({"host": host}) == ""

    @pytest.mark.parametrize(
        ("host", "address"),
        [("192.0.2.1:80", "192.0.2.1"), ("192.0.2.1", "::ffff:192.0.2.1"), ("[2001:DB8::1]", "2001:db8::1")],
    )
    def test_and_by_the_address_at_which_it_is_reached(self, host: str, address: str) -> None:
        assert Visitors().check({"host": host}, address) == ""
        with pytest.raises(Problem, match="does not accept the host name"):
            Visitors().check({"host": host}, "192.0.2.2")

    @pytest.mark.parametrize(
        "host",
        ["", "evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "192.0.2.1", "gpu-2", "localhost@evil", "[::2]",
         "localhost:8000:1", "evil.example#localhost", "xn--localhost"],
    )  # fmt: skip
    def test_and_by_no_other(self, host: str) -> None:
        with pytest.raises(Problem, match="does not accept the host name"):
            Visitors(["gpu-1"]).check({"host": host})
        if host not in ("", "localhost@evil", "localhost:8000:1", "evil.example#localhost"):
            assert Visitors(["*"]).check({"host": host}) == ""

    @pytest.mark.parametrize(
        "headers",
        [
            {"origin": "http://evil.example"},
            {"origin": "null"},
            {"origin": "http://localhost:9999"},
            {"origin": "http://localhost"},
            {"sec-fetch-site": "cross-site"},
            {"sec-fetch-site": "same-site"},
            {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "origin": "http://evil.example"},
        ],
    )
    def test_pages_of_other_origins_are_refused(self, headers: dict[str, str]) -> None:
        with pytest.raises(Problem, match="a page of another site"):
            Visitors().check({"host": "localhost:8000", **headers})

    @pytest.mark.parametrize(
        "headers",
        [
            {},
            {"origin": "http://localhost:8000", "sec-fetch-site": "same-origin"},
            {"sec-fetch-site": "none"},
            {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"},  # a link to the page
        ],
    )
    def test_the_servers_own_page_and_programs_are_not(self, headers: dict[str, str]) -> None:
        assert Visitors().check({"host": "localhost:8000", **headers}) == ""

    def test_an_origin_that_is_allowed_may_read(self) -> None:
        page = {"Origin": "https://Rewards.example"}
        with served(FixedProvider(scores=lengths), allowed_origins=["https://rewards.example/"]) as client:
            answer = client.post("/v1/rewards", json={"samples": []}, headers=page)
            assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, "https://rewards.example")
            asked = client.options("/v1/rewards", headers=page | {"Access-Control-Request-Method": "POST"})
            assert asked.status_code == 204
            assert "Authorization" in asked.headers["access-control-allow-headers"]
            assert "access-control-allow-origin" not in client.post("/v1/rewards", json={"samples": []}).headers
            problem(client.get("/v1/info", headers={"Origin": "https://other.example"}), 403, "forbidden")

    def test_health_is_told_by_any_name(self) -> None:
        with served(FixedProvider(scores=lengths)) as client:
            for path, status in (("/health", 200), ("/ready", 200), ("/metrics", 421), ("/v1/info", 421)):
                assert client.get(path, headers={"Host": "balancer"}).status_code == status

    def test_a_server_for_every_address_knows_its_own(self) -> None:
        assert socket.gethostname().lower() in own_names("0.0.0.0")
        with served(FixedProvider(scores=lengths)) as client:
            problem(client.get("/v1/info", headers={"X-Forwarded-For": "x" * 1_000, "Host": "evil.example"}), 421, "forbidden")

    def test_a_clients_address_that_is_made_up_is_short(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, logger="rm_plugins.server.request_log")
        with served(FixedProvider(scores=lengths)) as client:
            client.get("/v1/info", headers={"X-Forwarded-For": "x" * 1_000})
        (line,) = [record.fields for record in caplog.records if hasattr(record, "fields")]
        assert line["client"] == "x" * 64

    def test_who_may_have_the_reward_loaded_again(self) -> None:
        header = {"X-RM-Plugins": "reload"}
        with served(FixedProvider(scores=lengths)) as client:
            problem(client.post("/v1/reload"), 403, "forbidden")
            problem(client.post("/v1/reload", headers=header | {"X-Forwarded-For": "192.0.2.7"}), 403, "forbidden")
            assert "made in Python" in problem(client.post("/v1/reload", headers=header), 422, "invalid")
        with served(FixedProvider(scores=lengths), api_keys=["key"]) as client:
            assert "made in Python" in problem(client.post("/v1/reload"), 422, "invalid")
            problem(client.post("/v1/reload", headers=header | {"Authorization": "Bearer no"}), 401, "unauthorized")
        assert is_from_here("::1")
        assert not is_from_here("localhost.evil.example")


class TestLog:
    def record(self, text: str, line: int = 1) -> logging.LogRecord:
        return logging.LogRecord("a", logging.WARNING, "file.py", line, text, (), None)

    def test_what_is_repeated_is_left_out_and_counted(self) -> None:
        now = 0.0
        repeated = Repeated(3, lambda: now)
        assert [repeated.filter(self.record("failed")) for _ in range(5)] == [True] * 3 + [False] * 2
        assert repeated.filter(self.record("failed", line=2))
        now = 60.0
        later = self.record("failed")
        assert repeated.filter(later)
        assert later.getMessage() == "failed [2 records like this were left out]"

    def test_a_record_is_bounded(self) -> None:
        assert len(shortened("x" * 1_000_000)) < 8_100
        assert shortened("short") == "short"

    def test_a_request_whose_samples_all_fail_is_one_record(self, caplog: pytest.LogCaptureFixture) -> None:
        def failing(sample: Any) -> float:
            raise RuntimeError(f"it failed: {sample.completion}")

        with served(FixedProvider(scores=failing)) as client:
            samples = [{"prompt": "", "completion": str(row)} for row in range(64)]
            assert client.post("/v1/rewards", json={"samples": samples}).status_code == 500
        failures = [one for one in caplog.records if "64 samples failed" in one.getMessage()]
        assert len(failures) == 1
        assert len([one for one in caplog.records if one.levelno >= logging.WARNING]) == 1


def test_a_long_body_is_looked_at_while_others_are_answered() -> None:
    body = json.dumps({"samples": [{"prompt": "", "completion": "x"}], "id": None, "unknown": [[1]] * 100_000}).encode()
    with served(FixedProvider(scores=lengths)) as client, ThreadPoolExecutor(4) as pool:
        long = [
            pool.submit(client.post, "/v1/rewards", content=body, headers={"Content-Type": "application/json"})
            for _ in range(4)
        ]
        slowest = 0.0
        while not all(one.done() for one in long):
            started = time.monotonic()
            assert client.get("/health").status_code == 200
            slowest = max(slowest, time.monotonic() - started)
        assert slowest < 1
        assert {one.result().status_code for one in long} <= {413, 422, 503}


def test_there_are_no_more_connections_than_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda which: (140, 140))
    with serving(create_app(FixedProvider(scores=lengths)), http=Connections(Settings()).protocol) as url:
        port = int(url.rpartition(":")[2])
        opened = [socket.create_connection(("127.0.0.1", port), 3) for _ in range(30)]
        time.sleep(0.2)
        assert sum(_is_closed(connection) for connection in opened) == 30 - 12
        for connection in opened:
            connection.close()


def _is_closed(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True
