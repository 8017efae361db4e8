"""Reads a request's body under a limit, and refuses JSON with values that are neither text nor numbers."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from email.message import Message
from typing import Any, NoReturn

from starlette.datastructures import Headers

from rm_plugins.files import in_utf8
from rm_plugins.server.dialects.dialect import Problem

_AT_ONCE = 16
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_NOT_FINITE = (b"NaN", b"Infinity")


class Disconnected(Exception):
    """The client went away before it had sent all of its request."""


class BodyReader:
    """Reads bodies.

    Args:
        limit: Most bytes of one; all that are held at the same time may be sixteen times as long.
        seconds: The most time for one to come.
    """

    def __init__(self, limit: int, seconds: float = 60.0) -> None:
        self.limit = limit
        self.seconds = seconds
        self.held = 0
        """Bytes of the bodies of all requests that have not been answered."""

    @asynccontextmanager
    async def read(self, receive: Callable[[], Awaitable[MutableMapping[str, Any]]]) -> AsyncIterator[bytes]:
        """The body of a request, which counts as held until the block ends.

        Raises:
            Problem: It is too long, or too much is held already.
            Disconnected: It never came to its end.
        """
        chunks: list[bytes] = []
        size = 0
        try:
            is_whole = False
            ends = time.monotonic() + self.seconds
            while not is_whole:
                try:
                    message = await asyncio.wait_for(receive(), ends - time.monotonic())
                except TimeoutError:
                    raise Problem("invalid", f"the body did not come within {self.seconds:g} s", status=408) from None
                if message["type"] == "http.disconnect":
                    raise Disconnected
                chunk = message.get("body", b"")
                size += len(chunk)
                self.held += len(chunk)
                if size > self.limit:
                    raise Problem("too-large", f"the body is longer than {self.limit:,} bytes; send fewer samples at a time")
                if self.held > _AT_ONCE * self.limit:
                    raise Problem("overload", "too many long requests came at once", headers={"Retry-After": "1"})
                chunks.append(chunk)
                is_whole = not message.get("more_body", False)
            yield b"".join(chunks)
        finally:
            self.held -= size


def check_headers(headers: Headers, advice: str = "") -> None:
    """Refuse a body that its headers do not call JSON, or call compressed.

    Raises:
        Problem: It has another type or none, or a coding; `advice` ends the message.
    """
    given, sent = headers.get("content-type"), Message()
    sent["Content-Type"] = given or ""
    if not re.fullmatch(r"application/(.+\+)?json", sent.get_content_type()):
        wrong = f"is sent as {given!r:.80}" if given else "has no Content-Type"
        needed = f"the body {wrong}; it is read as JSON and needs Content-Type: application/json"
        raise Problem("unsupported", f"{needed}; {advice}" if advice else needed, headers={"Accept": "application/json"})
    codings = ", ".join(headers.getlist("content-encoding"))
    if {coding.strip().lower() for coding in codings.split(",")} - {"", "identity"}:
        raise Problem(
            "unsupported",
            f"the body is compressed (Content-Encoding: {codings:.80}); send it as it is",
            headers={"Accept-Encoding": "identity"},
        )


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
