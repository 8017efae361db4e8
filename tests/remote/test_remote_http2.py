"""By HTTP/2, answers have the numbers of their requests: in any order, over one connection, each text gets its own score."""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h2.config
import h2.connection
import h2.events
import numpy as np
import pytest

import rm_plugins as rm
from rm_plugins.protocols import OpenRLHF
from rm_plugins.providers.remote import Remote
from tests.fake_servers.openrlhf import reward_of

SAMPLES = [rm.Sample("Q: ", f"{number} is a text of its own {number**3}") for number in range(16)]
EXPECTED = [reward_of(f"Q: {sample.completion}") for sample in SAMPLES]


class HTTP2Server:
    """Answers as OpenRLHF's server, what came together in the reverse order; every third time with what `fault` says."""

    def __init__(self, fault: str = "") -> None:
        self.fault = fault
        self.counts: Counter[str] = Counter()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.counts["connections"] += 1
        connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        connection.initiate_connection()
        bodies: dict[int, bytes] = {}
        writer.write(connection.data_to_send())
        try:
            while data := await reader.read(65536):
                ended: list[int] = []
                for event in connection.receive_data(data):
                    if isinstance(event, h2.events.DataReceived):
                        bodies[event.stream_id] = bodies.get(event.stream_id, b"") + event.data
                        connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                    elif isinstance(event, h2.events.StreamEnded):
                        ended.append(event.stream_id)
                writer.write(connection.data_to_send())
                await asyncio.sleep(0.02 if ended else 0)
                for stream in reversed(ended):
                    self._answer(connection, stream, bodies.get(stream, b""))
                    writer.write(connection.data_to_send())
                    await writer.drain()
                    if self.fault == "goes away" and self.counts["requests"] % 3 == 0:
                        return
                    if self.fault == "garbage" and self.counts["requests"] % 3 == 0:
                        writer.write(b"\xff" * 100)
        except ConnectionError:
            pass
        finally:
            writer.close()

    def _answer(self, connection: Any, stream: int, body: bytes) -> None:
        self.counts["requests"] += 1
        content = json.dumps({"rewards": [reward_of(text) for text in json.loads(body)["query"]]}).encode()
        wrong = self.fault if self.counts["requests"] % 3 == 0 else ""
        length = len(content) + (5 if wrong == "too long" else -5 if wrong == "too short" else 0)
        connection.send_headers(stream, [(":status", "200"), ("content-length", str(length))])
        if wrong == "reset":
            connection.send_data(stream, content[:5])
            connection.reset_stream(stream)
        else:
            connection.send_data(stream, content, end_stream=True)


@contextmanager
def serving_http2(server: HTTP2Server, certificate: tuple[Path, Path]) -> Iterator[str]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate[1], certificate[0])
    context.set_alpn_protocols(["h2"])
    started, loop = threading.Event(), asyncio.new_event_loop()
    urls: list[str] = []

    async def serve() -> None:
        listening = await asyncio.start_server(server.accept, "127.0.0.1", 0, ssl=context)
        urls.append(f"https://127.0.0.1:{listening.sockets[0].getsockname()[1]}")
        started.set()
        await ended.wait()
        listening.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    ended = asyncio.Event()
    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), daemon=True)
    thread.start()
    assert started.wait(10)
    try:
        yield urls[0]
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join(10)
        loop.close()


def scored(server: HTTP2Server, certificate: tuple[Path, Path], calls: int = 1, **settings: Any) -> Any:
    with serving_http2(server, certificate) as url:
        provider = Remote(
            url=url, protocol=OpenRLHF(), ca_file=str(certificate[1]), batch_size=1, timeout=1.0, deadline=20, **settings
        )
        scores = [provider.score(SAMPLES, on_error="abstain") for _ in range(calls)]
        provider.close()
    return scores


def test_one_connection_carries_all_in_any_order(certificate: tuple[Path, Path]) -> None:
    server = HTTP2Server()
    for scores in scored(server, certificate, calls=3):
        assert scores.values.tolist() == EXPECTED
    assert server.counts["requests"] >= 48
    assert server.counts["connections"] <= 3


@pytest.mark.parametrize("fault", ["reset", "too long", "too short", "garbage", "goes away"])
def test_what_is_broken_gives_no_wrong_score(fault: str, certificate: tuple[Path, Path]) -> None:
    for scores in scored(HTTP2Server(fault), certificate, concurrency=4):
        for row, value in enumerate(scores.values.tolist()):
            assert value == EXPECTED[row] or (np.isnan(value) and str(scores.errors[row]))
        assert np.isfinite(scores.values).sum() >= len(SAMPLES) // 2
