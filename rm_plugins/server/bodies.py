"""Reads and decompresses request bodies within limits, and refuses JSON with invalid numbers or text."""

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
from functools import lru_cache
from typing import Any, NoReturn

import numpy as np
from starlette.datastructures import Headers

from rm_plugins.files import in_utf8
from rm_plugins.protocols.binary_tensors import JSON_LENGTH, split
from rm_plugins.server.dialects.dialect import Problem

LONG_BODY = 2**15
"""Bodies with at least this many bytes are checked outside the event loop."""
BYTES_OF_A_VALUE = 16
"""The approximate memory of a parsed value, in addition to its text."""
_CONTAINER = 8
"""The number of values that a list or an object counts as, by the memory that it takes."""
_MOST_LEVELS = 64
_CHUNK = 2**18
_SECONDS_BETWEEN_BYTES = 15.0
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_NOT_FINITE = (b"NaN", b"Infinity")
_WINDOWS = {"gzip": 31, "deflate": 15}
"""The window sizes with which zlib reads each supported content coding; HTTP's deflate has zlib's header."""


class Disconnected(Exception):
    """The client disconnected before it had sent its whole request."""


@dataclass(eq=False, slots=True)
class Body:
    """The body of a request.

    Args:
        client: The client that sent it.
        content: Its bytes.
        held: The memory that is counted for it, in bytes.
    """

    client: str
    content: bytes = b""
    held: int = 0


class BodyReader:
    """Reads bodies, and limits the memory of the bodies of all requests that are not answered yet.

    One client may use half of the memory, so that others find room. Short bodies are always accepted, because connections are limited too.

    Args:
        limit: The largest body, in bytes.
        most_held: The largest total of all bodies, in bytes of memory: non-ASCII text counts four bytes per byte.
        seconds: The longest time to receive a body.
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
        """Read the body of a request; its memory is counted until the block ends.

        Args:
            receive: Receives the messages of the request.
            client: The client that sends it.
            announced: The length in the headers; 0 if there is none.

        Raises:
            Problem: The body is too long or too slow, or all bodies together are too large.
            Disconnected: The client disconnected before the end of the body.
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
        """Decompress a body in place, piece by piece and outside the event loop; the decompressed pieces are counted as held memory.

        Args:
            body: The body.
            coding: ``gzip`` or ``deflate``.

        Raises:
            Problem: The decompressed body is too long, or the compressed one is damaged, incomplete, or followed by other bytes.
        """
        unpacker, packed, pieces = zlib.decompressobj(_WINDOWS[coding]), body.content, []
        try:
            while not unpacker.eof:
                piece = await asyncio.to_thread(unpacker.decompress, packed, _CHUNK)
                packed = unpacker.unconsumed_tail
                if not (piece or packed or unpacker.eof):
                    raise Problem("invalid", f"the body ends before the end of its {coding} data", status=400)
                pieces.append(piece)
                if sum(map(len, pieces)) > self.limit:
                    raise Problem(
                        "too-large", f"the decompressed body is longer than {self.limit:,} bytes; send fewer samples at a time"
                    )
                self.hold(body, len(piece) if piece.isascii() else 4 * len(piece))
        except zlib.error as error:
            raise Problem("invalid", f"the body is not valid {coding}: {error}", status=400) from None
        if unpacker.unused_data:
            raise Problem(
                "invalid", f"the body has {len(unpacker.unused_data)} bytes after the end of its {coding} data", status=400
            )
        body.content = b"".join(pieces)

    def hold(self, body: Body, more: int) -> None:
        """Count more memory for a body.

        Raises:
            Problem: The memory of all bodies would exceed the limit.
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
                slow = f"within {self.seconds:g} s" if left < _SECONDS_BETWEEN_BYTES else "without long pauses"
                raise Problem("invalid", f"the body did not arrive {slow}", status=408) from None
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
            if held > body.held and held + more > most:  # a single body is always accepted
                raise Problem(
                    "overload",
                    "too many long requests are being processed; retry later",
                    status=503,
                    headers={"Retry-After": "1"},
                )


class BodyChecker:
    """Checks a body before it is parsed as JSON: long bodies outside the event loop, one after the other.

    Args:
        max_values: The most values of a body; a list or an object counts as eight.
    """

    def __init__(self, max_values: int) -> None:
        self.max_values = max_values
        self._thread: ThreadPoolExecutor | None = None

    async def check(self, body: bytes, *, apart: str = "") -> int:
        """Refuse a body that would take too much memory or time to parse, or that has invalid numbers or text.

        Args:
            body: The body.
            apart: A field whose texts are checked elsewhere.

        Returns:
            An upper bound of the number of its values.

        Raises:
            Problem: The body is refused; the message says why and where.
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
                f"the body has more than {self.max_values:,} values (a list or an object counts as {_CONTAINER}); send fewer samples at "
                "a time",
            )
        if levels > _MOST_LEVELS:
            raise Problem("invalid", f"the body is nested more than {_MOST_LEVELS} levels deep")
        check_json(body, apart=apart)
        return values


def extent_of(body: bytes, most: int) -> tuple[int, int]:
    """Upper bounds of the values and of the nesting levels of JSON text, without parsing it; a list or an object counts as eight values.

    Counts punctuation outside strings, so that the bounds hold for any parser, also for invalid JSON. Stops counting at `most` values.

    >>> extent_of(b'[{"a": [1, 2]}]', 100)
    (27, 3)
    """
    containers, others = body.count(b"[") + body.count(b"{"), body.count(b",") + body.count(b":")
    if (
        containers < _MOST_LEVELS and _CONTAINER * containers + others < most
    ):  # within the limits even if none of it is in strings
        return _CONTAINER * containers + others + 1, containers
    marks = np.frombuffer(body.replace(rb"\\", b"").replace(rb"\"", b""), np.uint8)  # without escaped quotes
    values, level, levels, quotes = 1, 0, 0, 0
    for start in range(0, len(marks), _CHUNK):
        chunk = marks[start : start + _CHUNK]
        inside = np.cumsum(chunk == ord('"'), dtype=np.uint8) + np.uint8(quotes)  # the number of quotes so far, modulo 256
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
    """Refuse a body whose headers do not say that it is JSON, or say that it is compressed.

    A page of another site can make a browser send a body without a content type and without a preflight request. Therefore a missing type
    is not accepted from browsers, which are recognized by ``Origin`` or by the headers about the requesting site.

    Args:
        headers: The headers of the request.
        takes_binary: Whether the body may also have no type, have bytes after its JSON, and be compressed; see `Dialect.takes_binary`.

    Returns:
        The compression: ``gzip``, ``deflate``, or empty for none.

    Raises:
        Problem: The content type or the content coding is not accepted.
    """
    given = headers.get("content-type")
    sent = _media_type(given or "")
    is_binary = not (given or _is_from_browser(headers)) or sent == "application/octet-stream"
    if not (takes_binary and is_binary) and not re.fullmatch(r"application/(.+\+)?json", sent):
        wrong = f"has the Content-Type {given!r:.80}" if given else "has no Content-Type"
        raise Problem(
            "unsupported",
            f"the body {wrong}; send JSON with Content-Type: application/json",
            headers={"Accept": "application/json"},
        )
    codings = ", ".join(headers.getlist("content-encoding"))
    coding = ", ".join({coding.strip().lower() for coding in codings.split(",")} - {"", "identity"})
    if coding and not (takes_binary and coding in _WINDOWS and "," not in codings):
        raise Problem(
            "unsupported",
            f"the body is compressed (Content-Encoding: {codings:.80}); send it uncompressed",
            headers={"Accept-Encoding": ", ".join(_WINDOWS) if takes_binary else "identity"},
        )
    return coding


@lru_cache(64)
def _media_type(content_type: str) -> str:
    """The media type in a header, without parameters, in lower case."""
    message = Message()
    message["Content-Type"] = content_type
    return message.get_content_type()


def json_and_binary(body: bytes, headers: Headers) -> tuple[bytes, memoryview]:
    """Split a body into its JSON and the bytes after it.

    Raises:
        Problem: The header with the length of the JSON does not fit the body.
    """
    try:
        return split(body, headers.get(JSON_LENGTH))
    except ValueError as error:
        raise Problem("invalid", str(error), status=400) from error


def _is_from_browser(headers: Headers) -> bool:
    return any(name in headers for name in ("origin", "sec-fetch-site", "sec-fetch-mode"))


def check_json(body: bytes, *, apart: str = "") -> None:
    """Refuse what Python's JSON parser accepts but JSON or tokenizers do not: NaN, Infinity, lone surrogates, encodings other than UTF-8.

    Only bodies that may contain these are parsed here. Invalid JSON is left to the endpoint.

    Args:
        body: The body.
        apart: A field whose texts are checked elsewhere.

    Raises:
        Problem: The body contains one of these; the message says where.
    """
    try:
        body.decode()
    except UnicodeDecodeError as error:
        raise Problem("invalid", f"the body is not valid UTF-8: {error.reason} at byte {error.start}") from None
    if b"\0" in body:  # Python's parser would take it for UTF-16 or UTF-32
        raise Problem("invalid", f"the body is not JSON in UTF-8: there is a zero byte at {body.index(0)}")
    if not _SURROGATE.search(body) and not any(mark in body for mark in _NOT_FINITE):
        return
    try:
        value = json.loads(body, parse_constant=_refuse_constant)
        if apart and isinstance(value, dict):
            value.pop(apart, None)
        if (place := _lone_surrogate(value)) is not None:
            raise Problem("invalid", f"{place}: contains a lone surrogate, which is not a character")
    except (ValueError, RecursionError):
        return


def _lone_surrogate(value: Any, place: str = "body") -> str | None:
    """The place of a lone surrogate in a JSON value; None if there is none."""
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
    return next((inner for name, item in parts if (inner := _lone_surrogate(item, name)) is not None), None)


def _refuse_constant(constant: str) -> NoReturn:
    raise Problem("invalid", f"{constant} is not a JSON number; use null for a missing number")
