"""A proxy that breaks HTTP itself, whatever protocol is spoken over it."""

from __future__ import annotations

import asyncio

from tests.fault_proxy import FaultProxy

HARMLESS_HTTP = ("in-pieces", "chunked", "no-length", "interim", "repeated", "repeated-late")
"""What must not keep a request from its score: forms that an answer may have, and repetitions of it behind it."""

BROKEN_HTTP = (
    "anothers-before",
    "anothers-before-late",
    "anothers-behind",
    "anothers-unasked",
    "anothers-in-place",
    "anothers-after-error",
    "swapped",
    "interim-without-end",
    "headers-without-end",
    "length-too-short",
    "length-too-long",
    "lengths-differ",
    "chunked-and-length",
    "chunk-too-long",
    "no-length-cut",
    "no-http",
    "body-without-end",
)


class BrokenHTTP(FaultProxy):
    """Does one thing wrong to scoring requests.

    Args:
        port: Of the scorer on this machine.
        fault: What: one of `HARMLESS_HTTP` and `BROKEN_HTTP`.
        share: How many of the requests it happens to.
        seed: Of which these are.
    """

    def __init__(self, port: int, fault: str, *, share: float = 1.0, seed: int = 0) -> None:
        super().__init__(port, share=share, seed=seed)
        self.fault = fault
        self._previous = b""  # the answer to the last scoring request, of any connection
        self._swap: tuple[bytes, asyncio.Future[bytes]] | None = None

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.fault == "anothers-unasked" and self._previous and self._random.random() < self.share:
            self.happened[self.fault] += 1
            writer.write(self._previous)
        await super()._accept(reader, writer)

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next((int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0)
        status, body = await self._forwarded(head + await reader.readexactly(length))
        answer = _answer(status, body)
        stays = b"connection: close" not in head.lower()
        if not head.startswith(b"POST"):
            writer.write(answer)
            return stays
        previous, self._previous = self._previous or answer, answer
        self.happened["requests"] += 1
        if self.fault == "anothers-unasked" or self._random.random() >= self.share:
            writer.write(answer)
            return stays
        self.happened[self.fault] += 1
        return await self._break(writer, status, body, previous)

    async def _break(self, writer: asyncio.StreamWriter, status: bytes, body: bytes, previous: bytes) -> bool:
        """Write the answer in the wrong way; whether the connection stays."""
        answer = _answer(status, body)
        first = b"HTTP/1.1 " + status + b"\r\ncontent-type: application/json\r\n"
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in (body[:9], body[9:])) + b"0\r\n\r\n"
        match self.fault:
            case "repeated":
                writer.write(answer + answer)
            case "repeated-late":
                writer.write(answer)
                await _later(writer, answer)
            case "in-pieces":
                for start in range(0, len(answer), 50):
                    await _later(writer, answer[start : start + 50], 0.001)
            case "chunked":
                writer.write(first + b"transfer-encoding: chunked\r\n\r\n" + chunks)
            case "no-length":
                writer.write(first + b"\r\n" + body)
                return False
            case "interim":
                writer.write(b"HTTP/1.1 100 Continue\r\n\r\n" * 20 + b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n" + answer)
            case "anothers-before":
                writer.write(previous + answer)
            case "anothers-before-late":
                writer.write(previous.replace(b"\r\n", b"\r\nconnection: close\r\n", 1))
                await _later(writer, answer)
                return False
            case "anothers-behind":
                writer.write(answer + previous)
            case "anothers-in-place":
                writer.write(previous)
            case "anothers-after-error":
                writer.write(b"HTTP/1.1 503 Busy\r\ncontent-length: 4\r\n\r\nbusy" + previous)
            case "swapped":
                return await self._swapped(writer, answer)
            case "interim-without-end":
                while True:
                    await _later(writer, b"HTTP/1.1 100 Continue\r\n\r\n" * 500, 0)
            case "headers-without-end":
                writer.write(first)
                while True:
                    await _later(writer, b"x-more: " + b"a" * 1000 + b"\r\n", 0)
            case "length-too-short":
                writer.write(first + b"content-length: %d\r\n\r\n" % (len(body) // 2) + body)
            case "length-too-long":
                writer.write(first + b"content-length: %d\r\n\r\n" % (len(body) + 9) + body)
                return False
            case "lengths-differ":
                writer.write(first + b"content-length: %d\r\ncontent-length: 3\r\n\r\n" % len(body) + body)
            case "chunked-and-length":
                writer.write(first + b"content-length: 20\r\ntransfer-encoding: chunked\r\n\r\n" + chunks)
            case "chunk-too-long":
                writer.write(first + b"transfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body) + 40, body))
                return False
            case "no-length-cut":
                writer.write(first + b"\r\n" + body[: len(body) // 2])
                return False
            case "no-http":
                writer.write(b"\x16\x03\x01 what is this?\r\n\r\n" + body)
            case "body-without-end":
                writer.write(first + b"transfer-encoding: chunked\r\n\r\n")
                while True:
                    await _later(writer, b"fa00\r\n" + b" " * 64000 + b"\r\n", 0)
            case unknown:
                raise ValueError(unknown)
        await writer.drain()
        return True

    async def _swapped(self, writer: asyncio.StreamWriter, answer: bytes) -> bool:
        """Two answers that are there at the same time go to each other's connection."""
        if self._swap is None:
            self._swap = ours, theirs = answer, asyncio.get_running_loop().create_future()
            await asyncio.wait([theirs], timeout=0.05)
            self._swap = None if self._swap == (ours, theirs) else self._swap
            writer.write(theirs.result() if theirs.done() else answer)
        else:
            (other, theirs), self._swap = self._swap, None
            theirs.set_result(answer)
            writer.write(other)
        return True


def _answer(status: bytes, body: bytes) -> bytes:
    return b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (status, len(body), body)


async def _later(writer: asyncio.StreamWriter, data: bytes, seconds: float = 0.02) -> None:
    await writer.drain()
    await asyncio.sleep(seconds)
    writer.write(data)
