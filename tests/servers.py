"""Servers for tests: any ASGI app on a real socket, and a protocol spoken to an app without one."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import httpx2
import uvicorn

from rm_plugins.protocols import Answer, Item, Protocol, Request, Response, ServerFacts


@contextmanager
def serving(app: Any, *, port: int = 0, **settings: Any) -> Iterator[str]:
    """The URL of an app that a thread of this process serves, until the block ends."""
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", port))
        config = uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=2, **settings)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        while not server.started:
            if not thread.is_alive():
                raise RuntimeError("the server ended before it had started")
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(timeout=10)


def free_port() -> int:
    """A port that nobody listens at now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def workers_of(process: int) -> list[int]:
    """The processes that serve for a process of ``rm-plugins serve``, where there are several."""
    tasks = Path(f"/proc/{process}/task").glob("*/children")  # a child belongs to the thread that started it
    children = [child for task in tasks for child in task.read_text(encoding="utf-8").split()]
    return [int(child) for child in children if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text(encoding="utf-8")]


class ServerProcess:
    """A server in a process of its own, ready when the block begins and ended by SIGTERM at its end.

    Args:
        command: The command line.
        port: Where it listens; the same port serves again after a restart.
        ready: A path that answers 200 as soon as it is ready.
        patience: Seconds that this may take.
        environment: Its environment variables, in place of those of this process.
    """

    def __init__(
        self,
        command: Sequence[str],
        port: int,
        *,
        ready: str = "/ready",
        patience: float = 300,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = ""
        self.command = [*command]
        self._ready, self._patience, self._environment = ready, patience, environment

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start it and wait until it is ready to score."""
        self.process = subprocess.Popen(
            self.command,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # its own processes are ended with it
        )
        self._reading = threading.Thread(target=self._read, args=[self.process], daemon=True)
        self._reading.start()
        patience = time.monotonic() + self._patience
        while not self._is_ready():
            if self.process.poll() is not None or time.monotonic() > patience:
                self.stop(signal.SIGKILL)
                raise RuntimeError(f"{' '.join(self.command)} did not become ready:\n{self.log}")
            time.sleep(0.05)

    def stop(self, sign: signal.Signals = signal.SIGTERM, timeout: float = 120) -> int:
        """Send the signal and wait for the end; returns the exit status."""
        self.process.send_signal(sign)
        try:
            return self.process.wait(timeout)
        finally:
            with suppress(ProcessLookupError):  # what it left behind would hold its output open
                os.killpg(self.process.pid, signal.SIGKILL)
            self._reading.join()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                self.log += line

    def _is_ready(self) -> bool:
        try:
            return httpx2.get(f"{self.url}{self._ready}", timeout=1, trust_env=False).status_code == 200
        except httpx2.TransportError:
            return False


class RewardServer(ServerProcess):
    """``rm-plugins serve`` in a process of its own.

    Args:
        spec: What is served.
        port: Where; the same port serves again after a restart.
        options: Further arguments of the command.
        environment: Further environment variables.
    """

    def __init__(self, spec: str | Path, *options: str, port: int = 0, **environment: str) -> None:
        port = port or free_port()
        command = [sys.executable, "-m", "rm_plugins", "serve", str(spec), "--port", str(port), *options]
        super().__init__(command, port, environment={**os.environ, "OMP_NUM_THREADS": "1", **environment})


class Conversation:
    """A protocol spoken to an app, one request after another, without retries or checks of its own.

    Args:
        protocol: How it is spoken.
        app: The server.
    """

    def __init__(self, protocol: Protocol, app: Any) -> None:
        self.protocol = protocol
        self.app = app
        self.requests: list[Request] = []

    async def ask(self, request: Request) -> Response:
        """Send one request and read its answer."""
        self.requests.append(request)
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(self.app), base_url="http://localhost") as client:
            body = {} if request.body is None else {"json": request.body}
            found = await client.request(request.method, request.path, headers=dict(request.headers), **body)
        return Response(found.status_code, found.content, {name.lower(): value for name, value in found.headers.items()})

    def detected(self) -> str | None:
        """What the protocol says that the server is."""
        return asyncio.run(self.protocol.detect(self.ask))

    def prepared(self) -> ServerFacts:
        """What the protocol finds out before the first request."""
        return asyncio.run(self.protocol.prepare(self.ask))

    def response(self, items: Sequence[Item], server: ServerFacts | None = None) -> Response:
        """What the server answers to a request for the items."""
        facts = server or self.prepared()
        return asyncio.run(self.ask(facts.protocol.request(items, facts, "request-1")))

    def answer(self, items: Sequence[Item], server: ServerFacts | None = None) -> Answer:
        """What the protocol makes of the server's answer for the items."""
        facts = server or self.prepared()
        return facts.protocol.answer(self.response(items, facts), items, facts, "request-1")
