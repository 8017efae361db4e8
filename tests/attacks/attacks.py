"""What is tried. Each attack has a server of its own, lasts for about `seconds`, and returns what it met."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.attacks.watching import GOOD, Seen, WatchedServer, request, status_of

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
    """

    name: str
    deed: Deed
    spec: str = "rule.yaml"
    options: Sequence[str] = ()
    descriptors: int | None = None


def run(attack: Attack, folder: Path, seconds: float) -> tuple[Seen, str]:
    """Attack a server; returns what was seen, and what the attack met."""
    (folder / "rules.py").write_text(RULES, encoding="utf-8")
    for name in ("rule.yaml", "moved.yaml"):
        (folder / name).write_text("{provider: length-window, high: 100}", encoding="utf-8")
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    spec = attack.spec if ":" in attack.spec else str(folder / attack.spec)
    with WatchedServer(spec, *attack.options, descriptors=attack.descriptors, PYTHONPATH=path) as server:
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


def _bodies(body: Callable[[], bytes], times: int = 6, path: str = "/v1/rewards") -> Deed:
    """Sends long bodies at once."""

    def deed(server: WatchedServer, seconds: float) -> str:
        data, statuses = request("POST", path, body()), Counter[int]()

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
    rebound: list[tuple[str, str, dict[str, str]]] = [
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
    main, *others = server.pids
    assert others
    spec = next(Path(part) for part in server.server.command if part.endswith("moved.yaml"))
    shutil.move(spec, spec.with_suffix(".away"))
    os.kill(others[0], signal.SIGKILL)
    ends = time.monotonic() + seconds + 3
    answers = Counter[int]()
    while time.monotonic() < ends:
        with suppress(OSError):  # a connection that the ended process had accepted
            answers[status_of(server.ask(GOOD))] += 1
        time.sleep(0.02)
    assert server.server.process.poll() is None, "the whole server ended"
    assert b"degraded" in server.ask(request("GET", "/health"))
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


_POST = b"POST /v1/rewards HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
_CHUNKED = _POST + b"Transfer-Encoding: chunked\r\n\r\n"
_GET = b"GET /v1/info HTTP/1.1\r\nHost: localhost\r\n"
_BLOCK = 2**17


def _every() -> Iterator[Attack]:
    yield Attack("a header without end", _long(_GET + b"A: ", b"a" * _BLOCK))
    yield Attack("a header's name without end", _long(_GET, b"a" * _BLOCK))
    yield Attack("headers without end", _long(_GET, b"Name: value\r\n" * (_BLOCK // 13)))
    yield Attack("a URL without end", _long(b"GET /", b"a" * _BLOCK))
    yield Attack("a method without end", _long(b"", b"G" * _BLOCK))
    yield Attack("empty lines without end", _long(b"", b"\r\n" * (_BLOCK // 2)))
    yield Attack("trailers without end", _long(_CHUNKED + b"2\r\n{}\r\n0\r\n", b"Name: value\r\n" * (_BLOCK // 13)))
    yield Attack("a trailer without end", _long(_CHUNKED + b"2\r\n{}\r\n0\r\nA: ", b"a" * _BLOCK))
    yield Attack("an extension of a chunk without end", _long(_CHUNKED + b"2;", b"a" * _BLOCK))
    yield Attack("a body without end, in chunks", _long(_CHUNKED, b"10000\r\n" + b" " * 0x10000 + b"\r\n"))
    yield Attack(
        "a body without end, after a refusal",
        _long(_GET.replace(b"GET", b"PUT") + b"Content-Length: 999999999999\r\n\r\n", b"a" * _BLOCK),
    )
    yield Attack("requests that wait for no answer", _long(b"", (_GET + b"\r\n") * (_BLOCK // 44)))
    yield Attack("half of a head, from many connections", _held_open(_GET, 600))
    yield Attack("half of a head, with few descriptors", _held_open(_GET, 400), descriptors=256)
    yield Attack(
        "half of a body, from many connections", _held_open(_POST + b"Content-Length: 1000000\r\n\r\n" + b" " * 60_000, 200)
    )
    yield Attack("connections without a request, few descriptors", _held_open(b"", 400), descriptors=256)
    yield Attack("empty lists", _bodies(_values(b"[]")))
    yield Attack("empty objects", _bodies(_values(b"{}")))
    yield Attack("objects in objects", _bodies(_values(b'{"a":{"b":{}}}')))
    yield Attack("numbers", _bodies(_values(b"1234")))
    yield Attack("short texts", _bodies(_values(b'"ab"')))
    yield Attack("as many lists as are taken", _bodies(_values(b"[]", 370_000)))
    yield Attack("as many samples as fit", _bodies(lambda: b'{"input": ["a"' + b',"a"' * 900_000 + b"]}", path="/classify"))
    yield Attack("nesting", _bodies(lambda: b'{"samples": ' + b"[" * 10_000_000))
    yield Attack("lists in UTF-16", _bodies(lambda: ("[" + "[]," * 2_000_000 + "[]]").encode("utf-16")))
    yield Attack("long texts", _bodies(_texts))
    yield Attack("one long prompt for many completions", _bodies(
        lambda: b'{"queries": "' + b"a" * 900_000 + b'", "documents": ["a"' + b',"a"' * 255 + b"]}", path="/score"
    ))  # fmt: skip
    yield Attack("pages of somebody else's", _of_somebody_else)
    yield Attack("a reward that holds Python's lock", _stubborn("lock"), "rules:stubborn")
    yield Attack("a reward that hangs", _stubborn("hang"), "rules:stubborn")
    yield Attack("a reward that is given up", _given_up, "rules:stubborn", ("--max-score-seconds", "2"))
    yield Attack("a process that cannot be replaced", _killed, "moved.yaml", ("--workers", "2"))
    yield Attack("a reward's process that cannot be replaced", _killed, "moved.yaml")
    yield Attack("a failure of each sample", _logged, "rules:failing")


ATTACKS = list(_every())
