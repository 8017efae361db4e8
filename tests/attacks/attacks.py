"""What is tried. Each attack has a server of its own, lasts for about `seconds`, and returns what it met."""

from __future__ import annotations

import gzip
import os
import shutil
import signal
import socket
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tests.attacks.watching import BODIES_MIB, GOOD, HEADS_MIB, Seen, WatchedServer, request, status_of

RULES = '''
import re, time

def stubborn(completions):
    """Holds Python's lock for longer than anybody waits, or hangs, where it is told to."""
    for completion in completions:
        if completion == "lock":
            re.match("(a+)+$", "a" * 60 + "b")
        if completion == "hang":
            time.sleep(1e6)
    return [float(len(completion)) for completion in completions]

def failing(completions):
    if completions == ["good"]:
        return [1.0]
    raise RuntimeError("it failed: " + "x" * 500)
'''

Deed = Callable[[WatchedServer, float], str]


@dataclass(frozen=True, slots=True)
class Attack:
    """An attack.

    Args:
        name: What it is called.
        deed: Does it, and says what it met; raises AssertionError where it got what it must not.
        spec: What is served, in the folder with ``rules.py``.
        options: Of the server.
        descriptors: How many files each process of the server may have open.
        stated: MiB that may be taken beside the share of the idle server's.
    """

    name: str
    deed: Deed
    spec: str = "rule.yaml"
    options: Sequence[str] = ()
    descriptors: int | None = None
    stated: float = HEADS_MIB


def run(attack: Attack, folder: Path, seconds: float) -> tuple[Seen, str]:
    """Attack a server; returns what was seen, and what the attack met."""
    (folder / "rules.py").write_text(RULES, encoding="utf-8")
    for name in ("rule.yaml", "moved.yaml"):
        (folder / name).write_text("{provider: length-window, high: 100}", encoding="utf-8")
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    spec = attack.spec if ":" in attack.spec else str(folder / attack.spec)
    with WatchedServer(spec, *attack.options, stated=attack.stated, descriptors=attack.descriptors, PYTHONPATH=path) as server:
        met = attack.deed(server, seconds)
    return server.seen, met


def _flood(server: WatchedServer, seconds: float, head: bytes, more: bytes) -> str:
    """Send a head and then the same bytes for as long as they are taken, from a few connections at a time."""
    sent: Counter[str] = Counter()

    def send() -> None:
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            with suppress(OSError), socket.create_connection(("127.0.0.1", server.port), 5) as connection:
                connection.sendall(head)
                while time.monotonic() < ends:
                    sent["bytes"] += connection.send(more)

    threads = [threading.Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    _is_well(server)
    return f"{sent['bytes'] / 1e6:.0f} MB were sent"


def _is_well(server: WatchedServer) -> None:
    for _ in range(100):
        with suppress(OSError):
            server.seen.answer = status_of(server.ask(GOOD))
        if server.seen.answer == 200:
            return
        time.sleep(0.1)
    raise AssertionError(f"a good request was answered {server.seen.answer}")


def _long(head: bytes, more: bytes) -> Deed:
    return lambda server, seconds: _flood(server, seconds, head, more)


def _held_open(data: bytes, number: int) -> Deed:
    """Opens connections that send something and then nothing."""

    def deed(server: WatchedServer, seconds: float) -> str:
        with ExitStack() as stack:
            refused = 0
            for _ in range(number):
                try:
                    connection = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), 5))
                    connection.sendall(data)
                except OSError:
                    refused += 1
            time.sleep(seconds)
            _is_well(server)
        return f"{number - refused} connections were opened"

    return deed


def _bodies(
    body: Callable[[], bytes], times: int = 6, path: str = "/v1/rewards", headers: Mapping[str, str] = MappingProxyType({})
) -> Deed:
    """Sends long bodies at once."""

    def deed(server: WatchedServer, seconds: float) -> str:
        data, statuses = request("POST", path, body(), **headers), Counter[int]()

        def send() -> None:
            with suppress(OSError):
                statuses[status_of(server.ask(data, 60))] += 1

        ends = time.monotonic() + seconds
        while True:
            threads = [threading.Thread(target=send) for _ in range(times)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            if time.monotonic() >= ends:
                break
        _is_well(server)
        assert not statuses[500], statuses
        return ", ".join(f"{status or 'closed'}: {number}" for status, number in sorted(statuses.items()))

    return deed


def _of_somebody_else(server: WatchedServer, seconds: float) -> str:
    """Asks as a browser does for a page of somebody else's."""
    evil = {"Host": "evil.example", "Origin": "http://evil.example"}
    rebound: list[tuple[str, str, dict[str, Any]]] = [
        ("GET", "/v1/info", {"Host": "evil.example"}),
        ("GET", "/metrics", {"Host": f"evil.example:{server.port}"}),
        ("GET", "/openapi.json", {"Host": "localhost.evil.example"}),
        ("GET", "/", {"Host": "127.0.0.1.evil.example"}),
        ("GET", "/v1/info", {"Host": ""}),
        ("POST", "/v1/rewards", evil),
        ("POST", "/v1/reload", evil),
        ("POST", "/v1/reload", evil | {"X_RM_Plugins": "reload"}),
        ("POST", "/v1/reload", {"Origin": "null"}),
        ("POST", "/v1/reload", {"Content_Type": "text/plain"}),
        ("POST", "/v1/reload", {}),
        ("GET", "/v1/info", {"Origin": "http://evil.example"}),
        ("GET", "/v1/info", {"Origin": f"http://localhost.evil.example:{server.port}"}),
        ("GET", "/v1/info", {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "no-cors"}),
        ("OPTIONS", "/v1/rewards", {"Origin": "http://evil.example", "Access_Control_Request_Method": "POST"}),
    ]
    for method, path, headers in rebound:
        answer = server.ask(request(method, path, **headers))
        assert status_of(answer) in (403, 421), f"{method} {path} {headers}: {answer!r:.200}"
        assert b"access-control-allow" not in answer.lower()
    _is_well(server)
    return f"{len(rebound)} requests were refused"


def _stubborn(word: str) -> Deed:
    def deed(server: WatchedServer, seconds: float) -> str:
        body = f'{{"samples": [{{"prompt": "", "completion": "{word}"}}]}}'.encode()
        with socket.create_connection(("127.0.0.1", server.port), 5) as connection:
            connection.sendall(request("POST", "/v1/rewards", body))
            time.sleep(seconds)
        return "the reward does not return"

    return deed


def _given_up(server: WatchedServer, seconds: float) -> str:
    body = b'{"samples": [{"prompt": "", "completion": "lock"}]}'
    status = status_of(server.ask(request("POST", "/v1/rewards", body), 30))
    assert status == 503, status
    _is_well(server)
    return "the reward was ended and loaded again"


def _killed(server: WatchedServer, seconds: float) -> str:
    """Ends one of the processes while the reward's file is not there."""
    spawned = [pid for pid in server.pids if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8")]
    spec = next(Path(part) for part in server.server.command if part.endswith("moved.yaml"))
    shutil.move(spec, spec.with_suffix(".away"))
    os.kill(spawned[0], signal.SIGKILL)
    ends = time.monotonic() + seconds + 3
    answers = Counter[int]()
    while time.monotonic() < ends:
        with suppress(OSError):  # a connection that the ended process had accepted
            answers[status_of(server.ask(GOOD))] += 1
        time.sleep(0.02)
    assert server.server.process.poll() is None, "the whole server ended"
    health = server.ask(request("GET", "/health"))
    assert b"degraded" in health, health
    shutil.move(spec.with_suffix(".away"), spec)
    for _ in range(300):
        if b'"alive"' in server.ask(request("GET", "/health")):
            break
        time.sleep(0.1)
    else:
        raise AssertionError("it was not started again")
    _is_well(server)
    return f"{answers[200]} of {answers.total()} requests meanwhile were answered"


def _logged(server: WatchedServer, seconds: float) -> str:
    """Sends a short request of which each sample fails."""
    samples = ", ".join(f'{{"prompt": "", "completion": "{row}"}}' for row in range(40))
    data = request("POST", "/v1/rewards", f'{{"samples": [{samples}]}}'.encode())
    before, number = len(server.server.log), 0
    ends = time.monotonic() + seconds
    while time.monotonic() < ends or not number:
        server.ask(data)
        number += 1
    time.sleep(0.5)
    written = len(server.server.log) - before
    assert written < 20 * 8_300 + 600 * number, f"{number} requests of {len(data):,} bytes had {written:,} bytes written"
    _is_well(server)
    return f"{number} requests of {len(data):,} bytes: {written:,} bytes in the log"


def _values(value: bytes, size: int = 15_000_000) -> Callable[[], bytes]:
    def body() -> bytes:
        number = size // (len(value) + 1)
        return b'{"samples": [{"prompt": "", "completion": "", "columns": {"a": [' + b",".join([value] * number) + b"]}}]}"

    return body


def _texts() -> bytes:
    sample = b'{"prompt": "", "completion": "' + b"word, [word] " * 4_000 + b'"}'
    return b'{"samples": [' + b",".join([sample] * 250) + b"]}"


def _token_ids(elements: int) -> bytes:
    parameters = b'"parameters": {"binary_data_size": %d}' % (4 * elements)
    tensor = b'{"name": "input_ids", "datatype": "INT32", "shape": [1, %d], %s}' % (elements, parameters)
    content = b'{"inputs": [%s]}' % tensor
    return content.ljust(200) + b"\1\2\3\0" * elements


_POST = b"POST /v1/rewards HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
_CHUNKED = _POST + b"Transfer-Encoding: chunked\r\n\r\n"
_GET = b"GET /v1/info HTTP/1.1\r\nHost: localhost\r\n"
_PUT = b"PUT /v1/info HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999999999999\r\n\r\n"
_BLOCK = 2**17
"""Bytes that are sent at a time."""


_LINE = b"Name: value\r\n"
_ENDLESS = {
    "a header without end": (_GET + b"A: ", b"a" * _BLOCK),
    "a header's name without end": (_GET, b"a" * _BLOCK),
    "headers without end": (_GET, _LINE * (_BLOCK // 13)),
    "a URL without end": (b"GET /", b"a" * _BLOCK),
    "a method without end": (b"", b"G" * _BLOCK),
    "empty lines without end": (b"", b"\r\n" * (_BLOCK // 2)),
    "trailers without end": (_CHUNKED + b"2\r\n{}\r\n0\r\n", _LINE * (_BLOCK // 13)),
    "a trailer without end": (_CHUNKED + b"2\r\n{}\r\n0\r\nA: ", b"a" * _BLOCK),
    "an extension of a chunk without end": (_CHUNKED + b"2;", b"a" * _BLOCK),
    "a body without end, in chunks": (_CHUNKED, b"10000\r\n" + b" " * 0x10000 + b"\r\n"),
    "a body without end, after a refusal": (_PUT, b"a" * _BLOCK),
    "requests without end": (b"", (_GET + b"\r\n") * (_BLOCK // 44)),
    "answers that nobody reads": (b"", _GET.replace(b"/v1/info", b"/openapi.json") + b"\r\n"),
}
"""What is sent once, and what is sent after it for as long as it is taken."""

_LONG_HALF = _POST + b"Content-Length: 16000000\r\n\r\n" + b" " * 15_900_000
_HELD_OPEN = {
    "half of a head, from many connections": (_GET, 600, None),
    "half of a head, with few descriptors": (_GET, 400, 256),
    "connections without a request, with few descriptors": (b"", 400, 256),
    "half of a body, from many connections": (_POST + b"Content-Length: 1000000\r\n\r\n" + b" " * 60_000, 200, None),
    "most of a long body, from many connections": (_LONG_HALF, 12, None),
}
"""What is sent on each of so many connections, before nothing more is, and how many files the server may have open."""

_LONG_BODIES: dict[str, tuple[str, Callable[[], bytes]]] = {
    "empty lists": ("/v1/rewards", _values(b"[]")),
    "empty objects": ("/v1/rewards", _values(b"{}")),
    "objects in objects": ("/v1/rewards", _values(b'{"a":{"b":{}}}')),
    "numbers": ("/v1/rewards", _values(b"1234")),
    "short texts": ("/v1/rewards", _values(b'"ab"')),
    "as many lists as are taken": ("/v1/rewards", _values(b"[]", 330_000)),
    "as many samples as fit": ("/classify", lambda: b'{"input": ["a"' + b',"a"' * 900_000 + b"]}"),
    "nesting": ("/v1/rewards", lambda: b'{"samples": ' + b"[" * 10_000_000),
    "lists in UTF-16": ("/v1/rewards", lambda: ("[" + "[]," * 2_000_000 + "[]]").encode("utf-16")),
    "long texts": ("/v1/rewards", _texts),
    "one long prompt for many completions": (
        "/score",
        lambda: b'{"queries": "' + b"a" * 900_000 + b'", "documents": ["a"' + b',"a"' * 255 + b"]}",
    ),
}
"""Where bodies are sent, and what makes one."""

_BEHIND_JSON = {"Inference_Header_Content_Length": "200"}
_PACKED_BODIES: dict[str, tuple[Callable[[], bytes], dict[str, str]]] = {
    "a body that unpacks without end": (lambda: gzip.compress(b" " * 300_000_000), {"Content_Encoding": "gzip"}),
    "a body that unpacks to numbers": (lambda: zlib.compress(_values(b"1234")()), {"Content_Encoding": "deflate"}),
    "as many binary token ids as fit": (lambda: _token_ids(4_000_000), _BEHIND_JSON),
    "as many binary token ids as are taken": (lambda: _token_ids(990_000), _BEHIND_JSON),
}
"""What is sent to an endpoint that takes compressed bodies, and bytes behind the JSON."""

ATTACKS = [
    *[Attack(name, _long(head, more)) for name, (head, more) in _ENDLESS.items()],
    *[
        Attack(name, _held_open(data, number), descriptors=descriptors, stated=BODIES_MIB if len(data) > _BLOCK else HEADS_MIB)
        for name, (data, number, descriptors) in _HELD_OPEN.items()
    ],
    *[Attack(name, _bodies(body, path=path), stated=BODIES_MIB) for name, (path, body) in _LONG_BODIES.items()],
    *[
        Attack(
            name,
            _bodies(body, path="/v2/models/rule/infer", headers=headers),
            options=("--model-name", "rule"),
            stated=BODIES_MIB,
        )
        for name, (body, headers) in _PACKED_BODIES.items()
    ],
    Attack("pages of somebody else's", _of_somebody_else),
    Attack("a reward that holds Python's lock", _stubborn("lock"), "rules:stubborn"),
    Attack("a reward that hangs", _stubborn("hang"), "rules:stubborn"),
    Attack("a reward that is given up", _given_up, "rules:stubborn", ("--max-score-seconds", "2")),
    Attack("a process that cannot be replaced", _killed, "moved.yaml", ("--workers", "2")),
    Attack("a reward's process that cannot be replaced", _killed, "moved.yaml"),
    Attack("a failure of each sample", _logged, "rules:failing"),
]
