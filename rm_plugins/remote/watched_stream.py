"""A connection's bytes: none before they are asked for, none behind the answer but its repetition, and no more than there should be.

By HTTP/1.1 nothing but its place tells whose answer an answer is. So a connection carries one request, and is then closed. By HTTP/2
each answer has the number of its request, and a connection carries many.
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
"""Bytes of an answer until its body begins, interim answers (1xx) among them; the headers alone may have 100 KiB."""

LISTENED = 0.001
"""Seconds for which a new connection must be silent before a request is sent."""

LINGERED = 0.1
"""Seconds that a server has for closing a connection, which it is asked to do after its answer."""


class WrongBytes(httpcore2.RemoteProtocolError):
    """Bytes that no answer to the request can be told from, or too many."""


class WatchedBackend(httpcore2.AnyIOBackend):
    """Makes connections that are watched."""

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
    """A connection by HTTP/1.1, watched; one by HTTP/2 goes through as it is.

    What was read since the last write is taken for the answer to that.

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
        """Let so many bytes come behind the head."""
        self._most = 2 * most + MOST_HEAD  # with what chunks and headers take

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Bytes, none at the end.

        Raises:
            WrongBytes: There are more than are allowed.
        """
        data = await self._stream.read(max_bytes, timeout)
        if not self._multiplexed:
            self._received += data
            if len(self._received) > self._most:
                raise WrongBytes(f"it is longer than the {self._most:,} bytes that are read at most")
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send.

        Raises:
            WrongBytes: Something came before anything was sent.
        """
        if not self._multiplexed:
            if self._is_new:
                await self._listen()
            self._received.clear()
        await self._stream.write(buffer, timeout)

    async def check_end(self, method: str, *, closes: bool) -> None:
        """See that nothing comes behind an answer that was read to its end.

        Args:
            method: Of the request.
            closes: Whether the server was asked to close the connection, or says that it does. That is waited for, but not long.

        Raises:
            WrongBytes: There is more than the answer and repetitions of it, so which of it is the answer cannot be told.
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
            raise WrongBytes("more came than one answer")

    async def aclose(self) -> None:
        """Close it."""
        await self._stream.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.AsyncNetworkStream:
        """The same connection, encrypted."""
        return WatchedStream(await self._stream.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        """As the connection itself says; but one that has answered by HTTP/1.1 is used up, as one is that is readable while idle."""
        if info == "is_readable" and not self._multiplexed and self._received:
            return True
        return self._stream.get_extra_info(info)

    async def _listen(self) -> None:
        self._is_new = False
        with suppress(httpcore2.ReadTimeout):
            if await self._stream.read(1, LISTENED):
                raise WrongBytes("something came before a request was sent")


def _end_of_answer(received: bytes, method: str) -> int:
    """How many of the bytes are the first answer."""
    parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=len(received) + 1)
    parser.send(h11.Request(method=method, target="/", headers=[("Host", "server")]))
    parser.send(h11.EndOfMessage())
    parser.receive_data(received)
    while (event := parser.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
        if isinstance(event, h11.EndOfMessage):
            return len(received) - len(parser.trailing_data[0])
    return len(received)  # it ends with the connection
