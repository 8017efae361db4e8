"""Watches the bytes of a connection: none before a request, none after the answer except repetitions of it, and not too many.

In HTTP/1.1, only its position tells to which request an answer belongs. Therefore a connection carries one request and is then closed. In
HTTP/2, each answer has the number of its request, and a connection carries many.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import h11
import httpcore2

from rm_plugins.remote.hosts import is_loopback

MOST_HEAD = 256 * 1024
"""The most bytes of an answer before its body, including interim answers (1xx); the headers alone may have 100 KiB."""

LISTENED = 0.001
"""Seconds for which a new connection must be silent before a request is sent."""

LINGERED = 0.1
"""Seconds to wait for the server to close the connection after its answer."""


class WrongBytes(httpcore2.RemoteProtocolError):
    """Bytes from which the answer to the request cannot be identified, or too many bytes."""


class WatchedBackend(httpcore2.AnyIOBackend):
    """Makes watched connections."""

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Connect."""
        if is_loopback(host):
            host = host.rstrip(".")  # not every resolver knows ``localhost.``
        return WatchedStream(await super().connect_tcp(host, port, timeout, local_address, socket_options))


class WatchedStream(httpcore2.AsyncNetworkStream):
    """A watched HTTP/1.1 connection; HTTP/2 connections are passed through.

    Bytes that were read since the last write count as the answer to it.

    Args:
        stream: The connection itself.
    """

    def __init__(self, stream: httpcore2.AsyncNetworkStream) -> None:
        self._stream = stream
        encrypted = stream.get_extra_info("ssl_object")
        self._multiplexed = encrypted is not None and encrypted.selected_alpn_protocol() == "h2"
        self._is_new = True
        self._received = bytearray()
        self._most = MOST_HEAD

    def allow(self, most: int) -> None:
        """Set the most bytes after the head."""
        self._most = 2 * most + MOST_HEAD  # leaves room for chunk headers

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Read bytes; empty at the end of the stream.

        Raises:
            WrongBytes: There are more bytes than allowed.
        """
        data = await self._stream.read(max_bytes, timeout)
        if not self._multiplexed:
            self._received += data
            if len(self._received) > self._most:
                raise WrongBytes(f"it is longer than the limit of {self._most:,} bytes")
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send bytes.

        Raises:
            WrongBytes: The server sent something before the request.
        """
        if not self._multiplexed:
            if self._is_new:
                await self._listen()
            self._received.clear()
        await self._stream.write(buffer, timeout)

    async def check_end(self, method: str, *, closes: bool) -> None:
        """Check that nothing follows an answer that was read completely.

        Args:
            method: The method of the request.
            closes: Whether the server was asked to close the connection or announced it; this is awaited for `LINGERED` seconds.

        Raises:
            WrongBytes: There is more than the answer and repetitions of it, so the answer cannot be identified.
        """
        if self._multiplexed:
            return
        end = _end_of_answer(bytes(self._received), method)
        with suppress(httpcore2.ReadTimeout, httpcore2.ReadError):
            while (closes or len(self._received) > end) and len(self._received) < 2 * end:
                if not await self.read(64 * 1024, LINGERED):
                    break
        answer, more = self._received[:end], self._received[end:]
        if more and (len(more) < end or more != (answer * (len(more) // end + 1))[: len(more)]):
            raise WrongBytes("the server sent more than one answer")

    async def aclose(self) -> None:
        """Close the connection."""
        await self._stream.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.AsyncNetworkStream:
        """The same connection, encrypted."""
        return WatchedStream(await self._stream.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        """The connection's own information; but after an HTTP/1.1 answer it reports ``is_readable``, so that it is not reused."""
        if info == "is_readable" and not self._multiplexed and self._received:
            return True
        return self._stream.get_extra_info(info)

    async def _listen(self) -> None:
        self._is_new = False
        with suppress(httpcore2.ReadTimeout):
            if await self._stream.read(1, LISTENED):
                raise WrongBytes("the server sent something before the request")


def _end_of_answer(received: bytes, method: str) -> int:
    """The length of the first answer, in bytes."""
    parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=len(received) + 1)
    parser.send(h11.Request(method=method, target="/", headers=[("Host", "server")]))
    parser.send(h11.EndOfMessage())
    parser.receive_data(received)
    while (event := parser.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
        if isinstance(event, h11.EndOfMessage):
            return len(received) - len(parser.trailing_data[0])
    return len(received)  # the answer ends with the connection
