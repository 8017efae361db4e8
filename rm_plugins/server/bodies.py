"""Reads a request's body under a limit, also of what it unpacks to, and refuses JSON with values that are neither text nor numbers."""

from __future__ import annotations

import asyncio
import json
import re
import time
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from email.message import Message
from typing import Any, NoReturn

import numpy as np
from starlette.datastructures import Headers

from rm_plugins.files import in_utf8
from rm_plugins.protocols.binary_tensors import JSON_LENGTH, split
from rm_plugins.server.dialects.dialect import Problem

LONG_BODY = 2**15
"""From so many bytes on, a body is looked at outside of the event loop."""
BYTES_OF_A_VALUE = 16
"""How much memory a value takes beside its text, about."""
_CONTAINER = 8
"""How many values a list or an object counts as, by the memory that it takes."""
_MOST_LEVELS = 64
_CHUNK = 2**18
_SECONDS_BETWEEN_BYTES = 15.0
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_NOT_FINITE = (b"NaN", b"Infinity")
_WINDOWS = {"gzip": 31, "deflate": 15}
"""What zlib calls the codings of bodies that may be compressed; HTTP's deflate has zlib's header."""


class Disconnected(Exception):
    """The client went away before it had sent all of its request."""


@dataclass(eq=False, slots=True)
class Body:
    """The body of a request.

    Args:
        client: Whose it is.
        content: Its bytes.
        held: How much memory is counted for it.
    """

    client: str
    content: bytes = b""
    held: int = 0


class BodyReader:
    """Reads bodies, and keeps count of the memory that is taken by those of all requests that are not answered.

    One client may take half of what there is, so that others find room. What is short is let in always: connections are counted, too.

    Args:
        limit: Most bytes of one.
        most_held: Most bytes of all, as they are kept: four for each where a character is not ASCII.
        seconds: The most time for one to come.
    """

    def __init__(self, limit: int, most_held: int, seconds: float) -> None:
        self.limit = limit
        self.most_held = most_held
        self.seconds = seconds
        self.held = 0
        self._by_client: Counter[str] = Counter()

    @asynccontextmanager
    async def read(
        self, receive: Callable[[], Awaitable[MutableMapping[str, Any]]], client: str = "", announced: int = 0
    ) -> AsyncIterator[Body]:
        """The body of a request, which counts as held until the block ends.

        Args:
            receive: Where it comes from.
            client: Whose it is.
            announced: How long it is said to be; 0 where nothing is said.

        Raises:
            Problem: It is too long or comes too slowly, or too much is held already.
            Disconnected: It never came to its end.
        """
        body = Body(client)
        try:
            self._check_room(body, announced)
            body.content = b"".join([chunk async for chunk in self._chunks(body, receive, announced)])
            yield body
        finally:
            self.held -= body.held
            self._by_client[client] -= body.held
            if not self._by_client[client]:
                del self._by_client[client]

    async def unpack(self, body: Body, coding: str) -> None:
        """Undo a body's compression, piece by piece and outside of the event loop; what comes out counts as held as it comes.

        Args:
            body: The body, whose content becomes what was compressed.
            coding: ``gzip`` or ``deflate``.

        Raises:
            Problem: What comes out is too long, or the body is damaged, is cut off, or goes on behind its end.
        """
        unpacker, packed, pieces = zlib.decompressobj(_WINDOWS[coding]), body.content, []
        try:
            while not unpacker.eof:
                piece = await asyncio.to_thread(unpacker.decompress, packed, _CHUNK)
                packed = unpacker.unconsumed_tail
                if not (piece or packed or unpacker.eof):
                    raise Problem("invalid", f"the body is cut off before the end of its {coding}", status=400)
                pieces.append(piece)
                if sum(map(len, pieces)) > self.limit:
                    raise Problem(
                        "too-large", f"the body is longer than {self.limit:,} bytes once it is unpacked; send fewer samples"
                    )
                self.hold(body, len(piece) if piece.isascii() else 4 * len(piece))
        except zlib.error as error:
            raise Problem("invalid", f"the body is no {coding}: {error}", status=400) from None
        if unpacker.unused_data:
            raise Problem(
                "invalid", f"the body has {len(unpacker.unused_data)} bytes behind the end of its {coding}", status=400
            )
        body.content = b"".join(pieces)

    def hold(self, body: Body, more: int) -> None:
        """Count further memory for a body.

        Raises:
            Problem: Too much is held already.
        """
        self._check_room(body, more)
        body.held += more
        self.held += more
        self._by_client[body.client] += more

    async def _chunks(
        self, body: Body, receive: Callable[[], Awaitable[MutableMapping[str, Any]]], announced: int
    ) -> AsyncIterator[bytes]:
        size, is_whole, ends = 0, False, time.monotonic() + self.seconds
        while not is_whole:
            if max(size, announced) > self.limit:
                raise Problem("too-large", f"the body is longer than {self.limit:,} bytes; send fewer samples at a time")
            left = ends - time.monotonic()
            try:
                message = await asyncio.wait_for(receive(), min(left, _SECONDS_BETWEEN_BYTES))
            except TimeoutError:
                slow = f"within {self.seconds:g} s" if left < _SECONDS_BETWEEN_BYTES else "without pauses"
                raise Problem("invalid", f"the body did not come {slow}", status=408) from None
            if message["type"] == "http.disconnect":
                raise Disconnected
            chunk: bytes = message.get("body", b"")
            size += len(chunk)
            if size <= self.limit:
                self.hold(body, len(chunk) if chunk.isascii() else 4 * len(chunk))
                yield chunk
            is_whole = size <= self.limit and not message.get("more_body", False)

    def _check_room(self, body: Body, more: int) -> None:
        if body.held + more <= LONG_BODY:
            return
        of_client = self._by_client[body.client]
        for held, most in ((self.held, self.most_held), (of_client, self.most_held // 2)):
            if held > body.held and held + more > most:  # one alone is let in
                raise Problem(
                    "overload", "too many long requests came at once; retry later", status=503, headers={"Retry-After": "1"}
                )


class BodyChecker:
    """Checks what a body holds before it is read as JSON, outside of the event loop and one body after the other.

    Args:
        max_values: Most values of one; a list or an object counts as eight.
    """

    def __init__(self, max_values: int) -> None:
        self.max_values = max_values
        self._thread: ThreadPoolExecutor | None = None

    async def check(self, body: bytes, *, apart: str = "") -> int:
        """Refuse a body that would take too much memory or time to read, and one with values that are neither text nor numbers.

        Args:
            body: The body.
            apart: A field whose texts are looked at by others.

        Returns:
            How many values it has, or may have.

        Raises:
            Problem: What is wrong with it, and where.
        """
        if len(body) < LONG_BODY:
            return self._checked(body, apart)
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="rm-plugins-bodies")
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._checked, body, apart)

    def _checked(self, body: bytes, apart: str) -> int:
        values, levels = extent_of(body, self.max_values)
        if values > self.max_values:
            raise Problem(
                "too-large",
                f"the body has more than {self.max_values:,} values, of which a list or an object counts as {_CONTAINER}; send fewer "
                "samples at a time",
            )
        if levels > _MOST_LEVELS:
            raise Problem("invalid", f"the body is nested more than {_MOST_LEVELS} levels deep")
        check_json(body, apart=apart)
        return values


def extent_of(body: bytes, most: int) -> tuple[int, int]:
    """How many values JSON may have, and how many levels, without making any of them; a list or an object counts as eight.

    Only marks outside of texts are looked at, so that this bounds what any reader makes of a body before it is done or finds it wrong. It
    ends at `most` values.

    >>> extent_of(b'[{"a": [1, 2]}]', 100)
    (27, 3)
    """
    containers, others = body.count(b"[") + body.count(b"{"), body.count(b",") + body.count(b":")
    if containers < _MOST_LEVELS and _CONTAINER * containers + others < most:  # whatever of it is in texts
        return _CONTAINER * containers + others + 1, containers
    marks = np.frombuffer(body.replace(rb"\\", b"").replace(rb"\"", b""), np.uint8)  # no quote is escaped any more
    values, level, levels, quotes = 1, 0, 0, 0
    for start in range(0, len(marks), _CHUNK):
        chunk = marks[start : start + _CHUNK]
        inside = np.cumsum(chunk == ord('"'), dtype=np.uint8) + np.uint8(quotes)  # how many quotes there were, modulo 256
        quotes = int(inside[-1])
        chunk = chunk[(inside & 1) == 0]
        opened = (chunk == ord("[")) | (chunk == ord("{"))
        steps = opened.astype(np.int8) - ((chunk == ord("]")) | (chunk == ord("}")))
        depths = np.cumsum(steps, dtype=np.int32) + level
        if len(depths):
            level, levels = int(depths[-1]), max(levels, int(depths.max()))
        values += _CONTAINER * int(opened.sum()) + int(((chunk == ord(",")) | (chunk == ord(":"))).sum())
        if values > most:
            break
    return values, levels


def check_headers(headers: Headers, *, takes_binary: bool = False) -> str:
    """Refuse a body that its headers do not call JSON, or call compressed.

    A page of another site can have a browser send a body without a type, and ask nobody first. So none is taken from a browser, whose
    requests have an ``Origin`` or say from which site they come.

    Args:
        headers: Of the request.
        takes_binary: Whether the body may also have no type, have bytes behind its JSON, and be compressed; see `Dialect.takes_binary`.

    Returns:
        How it is compressed: ``gzip``, ``deflate``, or empty where it is not.

    Raises:
        Problem: It has another type or none, or another coding.
    """
    given, sent = headers.get("content-type"), Message()
    sent["Content-Type"] = given or ""
    is_binary = not (given or _is_from_browser(headers)) or sent.get_content_type() == "application/octet-stream"
    if not (takes_binary and is_binary) and not re.fullmatch(r"application/(.+\+)?json", sent.get_content_type()):
        wrong = f"is sent as {given!r:.80}" if given else "has no Content-Type"
        raise Problem(
            "unsupported",
            f"the body {wrong}; it is read as JSON and needs Content-Type: application/json",
            headers={"Accept": "application/json"},
        )
    codings = ", ".join(headers.getlist("content-encoding"))
    coding = ", ".join({coding.strip().lower() for coding in codings.split(",")} - {"", "identity"})
    if coding and not (takes_binary and coding in _WINDOWS and "," not in codings):
        raise Problem(
            "unsupported",
            f"the body is compressed (Content-Encoding: {codings:.80}); send it as it is",
            headers={"Accept-Encoding": ", ".join(_WINDOWS) if takes_binary else "identity"},
        )
    return coding


def json_and_binary(body: bytes, headers: Headers) -> tuple[bytes, memoryview]:
    """The JSON of a body that may have bytes behind it, and those bytes.

    Raises:
        Problem: The header that says how long the JSON is does not fit the body.
    """
    try:
        return split(body, headers.get(JSON_LENGTH))
    except ValueError as error:
        raise Problem("invalid", str(error), status=400) from error


def _is_from_browser(headers: Headers) -> bool:
    return any(name in headers for name in ("origin", "sec-fetch-site", "sec-fetch-mode"))


def check_json(body: bytes, *, apart: str = "") -> None:
    """Refuse what Python's JSON reader takes and JSON does not know, other encodings than UTF-8 too, or no tokenizer can read.

    Only bodies that may hold such are parsed here. What is not valid JSON at all is left to those who expect some.

    Args:
        body: The body.
        apart: A field whose texts are looked at by others.

    Raises:
        Problem: A number is not finite, or half of a surrogate pair stands alone; the message says where.
    """
    try:
        body.decode()
    except UnicodeDecodeError as error:
        raise Problem("invalid", f"the body is no UTF-8: {error.reason} at byte {error.start}") from None
    if b"\0" in body:  # Python's reader takes it for UTF-16 or UTF-32, whose marks are others
        raise Problem("invalid", f"the body is no JSON in UTF-8: there is a zero at byte {body.index(0)}")
    if not _SURROGATE.search(body) and not any(mark in body for mark in _NOT_FINITE):
        return
    try:
        value = json.loads(body, parse_constant=_refuse_constant)
        if apart and isinstance(value, dict):
            value.pop(apart, None)
        if (place := _half_in(value)) is not None:
            raise Problem("invalid", f"{place}: half of a surrogate pair, which is no character")
    except (ValueError, RecursionError):
        return


def _half_in(value: Any, place: str = "body") -> str | None:
    """Where in a JSON value half of a surrogate pair is; None where there is none."""
    if isinstance(value, str):
        return place if value != in_utf8(value) else None
    if isinstance(value, list):
        parts = [(f"{place}[{row}]", item) for row, item in enumerate(value)]
    elif isinstance(value, dict):
        if any(key != in_utf8(key) for key in value):
            return place
        parts = [(f"{place}.{key}", item) for key, item in value.items()]
    else:
        return None
    return next((inner for name, item in parts if (inner := _half_in(item, name)) is not None), None)


def _refuse_constant(constant: str) -> NoReturn:
    raise Problem("invalid", f"{constant} is no number in JSON; use null where there is none")
