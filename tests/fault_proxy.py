"""A small scorer that speaks rm-plugins' own protocol, and a proxy in front of it that does everything wrong that a network can."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import Any, Self, TypeAlias

Reply: TypeAlias = tuple[int, Mapping[str, str], bytes]
Headers: TypeAlias = Mapping[str, str]


def reward_of(text: str) -> float:
    """What the scorer gives a text: a number that no other text has, by any likelihood."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:10], 16) / 2**20 - 2**19


def json_reply(status: int, body: Any, headers: Headers | None = None) -> Reply:
    return status, {"content-type": "application/json", **(headers or {})}, json.dumps(body).encode()


class Scorer:
    """An ASGI app.

    Args:
        fingerprint: What it says that its model is.
        max_items: Most samples of a request.
        reward: The score of a prompt and completion; None abstains, an error is what it says of the sample.
    """

    def __init__(
        self,
        *,
        fingerprint: str = "model-1",
        max_items: int = 256,
        reward: Callable[[str], float | Exception | None] = reward_of,
    ) -> None:
        self.fingerprint = fingerprint
        self.max_items = max_items
        self.reward = reward
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[Headers] = []
        self.questions = 0
        self.hung_up = 0
        self.before: Callable[[dict[str, Any]], Awaitable[Reply | None]] | None = None
        """Told of each scoring request; may answer it."""

    @property
    def texts(self) -> list[str]:
        """All texts that it was asked for, in the order of their arrival."""
        return [sample["prompt"] + sample["completion"] for body in self.bodies for sample in body["samples"]]

    async def __call__(self, scope: dict[str, Any], receive: Callable[[], Awaitable[Any]], send: Any) -> None:
        body = b""
        while (message := await receive()).get("more_body") or message.get("body"):
            body += message["body"]
            if not message.get("more_body"):
                break
        self.headers.append({name.decode(): value.decode() for name, value in scope["headers"]})
        if scope["path"] == "/v1/info":
            self.questions += 1
            status, headers, content = json_reply(200, self._info())
        else:
            told = asyncio.ensure_future(self._answer(json.loads(body)))
            gone = asyncio.ensure_future(receive())
            await asyncio.wait({told, gone}, return_when=asyncio.FIRST_COMPLETED)
            gone.cancel()
            if not told.done():
                self.hung_up += 1
                told.cancel()
                return
            status, headers, content = told.result()
        pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
        length = (b"content-length", str(len(content)).encode())
        await send({"type": "http.response.start", "status": status, "headers": [*pairs, length]})
        await send({"type": "http.response.body", "body": content})

    def _info(self) -> dict[str, Any]:
        return {
            "protocol": "rm-plugins/1",
            "server": "a test",
            "model": "sha256",
            "fingerprint": self.fingerprint,
            "max_items": self.max_items,
            "rendered": True,
        }

    async def _answer(self, body: dict[str, Any]) -> Reply:
        self.bodies.append(body)
        reply = await self.before(body) if self.before is not None else None
        return json_reply(200, self.scored(body)) if reply is None else reply

    def scored(self, body: dict[str, Any]) -> dict[str, Any]:
        """A good answer to a scoring request."""
        rewards: list[dict[str, Any]] = []
        for index, sample in enumerate(body["samples"]):
            found = self.reward(sample["prompt"] + sample["completion"])
            failed = {"error": str(found)} if isinstance(found, Exception) else {}
            rewards.append({"index": index, "reward": None if failed else found, **failed})
        return {"id": body["id"], "fingerprint": self.fingerprint, "rewards": rewards}


TCP_FAULTS = ("dropped", "reset", "reset-halfway", "truncated", "half-open", "late")
STATUS_FAULTS = ("429", "500", "503")
ANSWER_FAULTS = (
    "nan",
    "no-number",
    "one-less",
    "one-twice",
    "wrong-index",
    "no-json",
    "anothers",
)
HARMLESS = ("delayed", "reordered", "sent-twice")


class FaultProxy:
    """A proxy over real sockets; a context manager, in a thread of its own.

    Args:
        port: Of the scorer on this machine.
        share: How many of the requests something happens to, from 0 to 1.
        seed: Of what happens.
        late: Seconds that a late answer takes, longer than the client waits.
    """

    def __init__(self, port: int, *, share: float = 0.3, seed: int = 0, late: float = 1.0) -> None:
        self.port = port
        self.share = share
        self.late = late
        self.happened: Counter[str] = Counter()
        self.url = ""
        self._random = random.Random(seed)
        self._upcoming: dict[bool, list[str]] = {True: [], False: []}
        self._another: bytes | None = None
        self._held: set[asyncio.Task[Any]] = set()
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._started.wait(10)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(10)

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        self._stopping = asyncio.Event()
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._started.set()
        await self._stopping.wait()
        server.close()
        for task in self._held:
            task.cancel()
        await asyncio.gather(*self._held, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._held.add(task)
        try:
            while await self._exchange(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client has hung up, or the proxy ends
        finally:
            self._held.discard(task)
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request and its answer; whether there may be another one on this connection."""
        head = await reader.readuntil(b"\r\n\r\n")
        length = next((int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0)
        request = head + await reader.readexactly(length)
        scores = head.startswith(b"POST")
        fault = self._fault(scores)
        self.happened["requests"] += scores
        self.happened[fault] += 1
        match fault:
            case "dropped":
                return False
            case "reset":
                return _reset(writer)
            case "half-open":
                await asyncio.sleep(3600)
            case "delayed":
                await asyncio.sleep(self._random.uniform(0.01, 0.1))
            case "late":
                await asyncio.sleep(self.late)
            case "429":
                return await _send(writer, b"429 Too Many Requests\r\nretry-after-ms: 20", b'{"error": {"message": "busy"}}')
            case "500" | "503":
                return await _send(writer, fault.encode() + b" Failed", b'{"error": {"message": "out of memory"}}')
            case "sent-twice":
                await self._forwarded(request)
        status, body = await self._forwarded(request)
        if scores and status == b"200 OK":
            body = self._spoilt(fault, body)
        if fault in ("reset-halfway", "truncated"):
            await _send(writer, status, body, only=len(body) // 2)
            return _reset(writer) if fault == "reset-halfway" else False
        return await _send(writer, status, body)

    def _fault(self, scores: bool) -> str:
        if self._random.random() >= self.share:
            return "nothing"
        upcoming = self._upcoming[scores]
        if not upcoming:  # every kind once, then all again
            upcoming.extend(TCP_FAULTS + STATUS_FAULTS + (ANSWER_FAULTS + HARMLESS if scores else ()))
            self._random.shuffle(upcoming)
        return upcoming.pop()

    async def _forwarded(self, request: bytes) -> tuple[bytes, bytes]:
        """Status and body of the scorer's answer."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(request.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        finally:
            writer.close()
        return head.partition(b"\r\n")[0].partition(b" ")[2], body

    def _spoilt(self, fault: str, body: bytes) -> bytes:
        """The body of a good answer with something wrong in it."""
        another, self._another = self._another, body
        answer = json.loads(body)
        rewards: list[dict[str, Any]] = answer["rewards"]
        one = self._random.randrange(len(rewards))
        match fault:
            case "nan":
                rewards[one]["reward"] = float("nan")
            case "no-number":
                rewards[one]["reward"] = "0.0"
            case "one-less":
                del rewards[one]
            case "one-twice":
                rewards.append(rewards[one])
            case "wrong-index":
                rewards[one]["index"] += 1
            case "reordered":
                self._random.shuffle(rewards)
            case "no-json":
                return b"<html>Bad gateway</html>"
            case "anothers":
                return another or b""
            case _:
                return body
        return json.dumps(answer).encode()


async def _send(writer: asyncio.StreamWriter, status: bytes, body: bytes, only: int | None = None) -> bool:
    writer.write(b"HTTP/1.1 " + status + b"\r\ncontent-length: " + str(len(body)).encode() + b"\r\n\r\n" + body[:only])
    await writer.drain()
    return True


def _reset(writer: asyncio.StreamWriter) -> bool:
    """Have the connection end with a RST, as that of a killed process does."""
    found: socket.socket = writer.get_extra_info("socket")
    found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
    return False
