"""A server process that is watched: its memory, how long its health takes to be told, and how long it takes to end."""

from __future__ import annotations

import os
import resource
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from rm_plugins.server import Settings
from tests.servers import RewardServer

HEALTH_SECONDS = 1.0
DRAIN_SECONDS = 3
END_SECONDS = DRAIN_SECONDS + 15
MEMORY_SHARE = 1.5
HEADS_MIB = 64.0
BODIES_MIB = 6 * Settings().max_held_bytes / 2**20
"""What docs/security.md states for what comes before a body, and for the bodies that are held."""
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE_MIB = resource.getpagesize() / 2**20


@dataclass(slots=True)
class Seen:
    """What was seen of a server under an attack.

    Args:
        stated: MiB that are stated for what is attacked.
        idle: MiB of memory of all its processes before.
        peak: The most MiB meanwhile.
        health: The most seconds that ``GET /health`` took, answered or not; where the server computed for less of them,
            what else ran on the machine is left out.
        failures: How often it was not answered with 200.
        ending: Seconds from SIGTERM to the end.
        answer: What a good request was answered after the attack.
    """

    stated: float = HEADS_MIB
    idle: float = 0.0
    peak: float = 0.0
    health: float = 0.0
    failures: int = 0
    ending: float = 0.0
    answer: int = 0

    @property
    def most(self) -> float:
        """MiB that are allowed."""
        return MEMORY_SHARE * self.idle + self.stated

    @property
    def broken(self) -> list[str]:
        """The promises that were broken."""
        promises = {
            f"memory: {self.peak:.0f} MiB, {self.most:.0f} are allowed": self.peak <= self.most,
            f"health: {self.health:.2f} s": self.health < HEALTH_SECONDS,
            f"health: {self.failures} times not answered": not self.failures,
            f"end: {self.ending:.1f} s after SIGTERM": self.ending <= END_SECONDS,
        }
        return [promise for promise, is_kept in promises.items() if not is_kept]


def exchange(port: int, data: bytes, timeout: float = 10.0) -> bytes:
    """What is answered to bytes on a connection of their own, until it is closed or nothing more comes."""
    with socket.create_connection(("127.0.0.1", port), timeout) as connection:
        connection.sendall(data)
        answer = b""
        try:
            while chunk := connection.recv(65_536):
                answer += chunk
        except TimeoutError:
            pass
    return answer


def status_of(answer: bytes) -> int:
    """The status of an answer; 0 where there is none."""
    return int(answer[9:12]) if answer.startswith(b"HTTP/1.1 ") else 0


def request(method: str, path: str, body: bytes = b"", **headers: str) -> bytes:
    """The bytes of a request."""
    given = {"Host": "localhost", "Connection": "close", "Content-Type": "application/json", "Content-Length": str(len(body))}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name.replace('_', '-')}: {value}" for name, value in (given | headers).items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


class WatchedServer:
    """``rm-plugins serve`` that is watched from the beginning of the block to its end, when it is told to end.

    Args:
        spec: What is served.
        options: Further arguments of the command.
        stated: MiB that may be taken beside the share of the idle server's.
        descriptors: How many files each of its processes may have open; as many as this one by default.
        environment: Further environment variables.
    """

    def __init__(
        self, spec: str | Path, *options: str, stated: float = HEADS_MIB, descriptors: int | None = None, **environment: Any
    ) -> None:
        self.server = RewardServer(spec, "--drain-seconds", str(DRAIN_SECONDS), *options, **environment)
        self.seen = Seen(stated)
        self._descriptors = descriptors
        self._is_over = threading.Event()
        self._watchers = [threading.Thread(target=watch, daemon=True) for watch in (self._watch_memory, self._watch_health)]

    @property
    def port(self) -> int:
        """Where it listens."""
        return self.server.port

    @property
    def pids(self) -> list[int]:
        """Its processes."""
        pids = [self.server.process.pid]
        for pid in pids:
            for task in _entries(f"/proc/{pid}/task"):
                pids += map(int, _text(f"/proc/{pid}/task/{task}/children").split())
        return pids

    @property
    def computed(self) -> float:
        """Seconds that its processes have computed together."""
        fields = [_text(f"/proc/{pid}/stat").rpartition(")")[2].split() for pid in self.pids]
        return sum(int(one[11]) + int(one[12]) for one in fields if one) / _TICKS

    @property
    def memory(self) -> float:
        """MiB that its processes have in memory together."""
        return sum(int((_text(f"/proc/{pid}/statm").split() or ["0", "0"])[1]) for pid in self.pids) * _PAGE_MIB

    def ask(self, data: bytes, timeout: float = 10.0) -> bytes:
        """What it answers to a request."""
        return exchange(self.port, data, timeout)

    def __enter__(self) -> WatchedServer:
        with _descriptors(self._descriptors):
            self.server.start()
        self.ask(GOOD)
        self.seen.idle = self.seen.peak = self.memory
        for watcher in self._watchers:
            watcher.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._is_over.set()
        for watcher in self._watchers:
            watcher.join()
        started = time.monotonic()
        pids = self.pids
        try:
            self.server.stop(signal.SIGTERM, END_SECONDS + 5)
        except Exception:
            for pid in pids:
                _kill(pid)
            self.server.process.wait()
        self.seen.ending = time.monotonic() - started

    def _watch_memory(self) -> None:
        while not self._is_over.wait(0.02):
            self.seen.peak = max(self.seen.peak, self.memory)

    def _watch_health(self) -> None:
        while not self._is_over.wait(0.05):
            started, computed = time.monotonic(), self.computed
            try:
                is_well = status_of(self.ask(request("GET", "/health"), timeout=5)) == 200
            except OSError:
                is_well = False
            self.seen.failures += not is_well
            took = min(time.monotonic() - started, self.computed - computed)
            self.seen.health = max(self.seen.health, took)


GOOD = request("POST", "/v1/rewards", b'{"samples": [{"prompt": "", "completion": "good"}]}')
"""A request that is answered with 200."""


@contextmanager
def _descriptors(number: int | None) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (number or soft, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""


def _entries(path: str) -> list[Any]:
    try:
        return os.listdir(path)
    except OSError:
        return []
