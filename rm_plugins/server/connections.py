"""Limits on connections: their number, and the size and duration of a request before its key is checked.

This bounds everything that uvicorn's protocol stores of a request before it calls the application.
"""

from __future__ import annotations

import resource
from asyncio import Protocol, TimerHandle, Transport
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from rm_plugins.server.settings import Settings

_MOST_HEADERS = 100
_MOST_URL_BYTES = 8 * 2**10
_MOST_PIPELINED = 8
_RESERVE = 32
"""Connections beyond the limits, which may only ask for the server's health."""
_RESERVE_SECONDS = 2.0
_OTHER_DESCRIPTORS = 96
"""File descriptors for the server's files, pipes and listening sockets."""
_OPEN_IN_RESERVE = (b"/health", b"/ready")


@dataclass(eq=False)
class Connections:
    """The connections of a server.

    Args:
        settings: The limits; the file descriptors of the process are a further limit.
    """

    settings: Settings
    _by_client: Counter[str] = field(default_factory=Counter)
    _taken: dict[_LimitedConnection, None] = field(default_factory=dict)
    _reserve: dict[_LimitedConnection, None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._most = max(1, min(self.settings.max_connections, descriptors - _OTHER_DESCRIPTORS - _RESERVE))

    @property
    def protocol(self) -> type[Protocol]:
        """The protocol class for uvicorn."""
        return cast("type[Protocol]", partial(_LimitedConnection, self))  # uvicorn only calls it

    def add(self, connection: _LimitedConnection) -> bool:
        """Count a connection; returns whether it may send any request, or only ask for the server's health.

        At a limit, the connection that has been idle for longest is closed to make room.
        """
        if self._by_client[connection.address] >= self.settings.max_client_connections:
            self._close_one(self._taken, connection.address)
        elif len(self._taken) >= self._most:
            self._close_one(self._taken)
        has_room = len(self._taken) < self._most and self._by_client[connection.address] < self.settings.max_client_connections
        if not has_room and len(self._reserve) >= _RESERVE:
            self._close_one(self._reserve)
        (self._taken if has_room else self._reserve)[connection] = None
        self._by_client[connection.address] += has_room
        return has_room

    def discard(self, connection: _LimitedConnection) -> None:
        """Stop counting a connection."""
        self._reserve.pop(connection, None)
        if connection in self._taken:
            del self._taken[connection]
            self._by_client[connection.address] -= 1
            if not self._by_client[connection.address]:
                del self._by_client[connection.address]

    def used(self, connection: _LimitedConnection) -> None:
        """Record activity of a connection."""
        for connections in (self._taken, self._reserve):
            if connection in connections:
                connections[connection] = connections.pop(connection)

    def _close_one(self, connections: dict[_LimitedConnection, None], address: str | None = None) -> None:
        fitting = (one for one in connections if one.is_idle and address in (None, one.address))
        oldest = next(fitting, None)
        if oldest is not None:
            self.discard(oldest)
            oldest.abort()


class _LimitedConnection(HttpToolsProtocol):
    """A uvicorn connection that is refused or closed if the client sends too much or takes too long."""

    def __init__(self, connections: Connections, **settings: Any) -> None:
        super().__init__(**settings)
        self.address = ""
        self._connections = connections
        self._limits = connections.settings
        self._may_do_everything = True
        self._is_refused = False
        self._has_begun = False
        self._frame_bytes = self._header_bytes = self._body_bytes = 0  # of the current request
        self._all_body_bytes = 0
        self._timer: TimerHandle | None = None
        self._writing: TimerHandle | None = None

    @property
    def is_idle(self) -> bool:
        """Whether no request of this connection is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def abort(self) -> None:
        """Close the connection immediately."""
        self.transport.abort()

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.address = self.client[0] if self.client else ""
        self._may_do_everything = self._connections.add(self)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)
        self._stop_timer()
        if self._writing is not None:
            self._writing.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            return
        if self._timer is None and self.is_idle:  # any bytes between two requests belong to the next one
            self._expect_head()
        before = self._all_body_bytes
        super().data_received(data)
        self._frame_bytes += len(data) - (self._all_body_bytes - before)
        # Incomplete headers, trailers and chunk sizes: bytes outside the body are limited to the size of a head plus that of the body.
        if not self._is_refused and self._frame_bytes > self._limits.max_head_bytes + self._body_bytes:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._writing = self.loop.call_later(self._limits.body_seconds, self.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._writing is not None:
            self._writing.cancel()

    def on_message_begin(self) -> None:
        if self._is_refused:
            return
        self._frame_bytes = self._header_bytes = self._body_bytes = 0
        self._expect_head()
        self._has_begun = True
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        if self._is_refused:
            return
        super().on_url(url)
        if len(self.url) > _MOST_URL_BYTES:
            self._refuse(HTTPStatus.REQUEST_URI_TOO_LONG)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._is_refused:
            return
        self._header_bytes += len(name) + len(value)
        if len(self.headers) >= _MOST_HEADERS or self._header_bytes > self._limits.max_head_bytes:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
            return
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._is_refused:
            return
        self._has_begun = False
        self._connections.used(self)
        self._stop_timer()
        if not self._may_do_everything and self.url.partition(b"?")[0] not in _OPEN_IN_RESERVE:
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE)
        elif len(self.pipeline) >= _MOST_PIPELINED:
            self._refuse(HTTPStatus.TOO_MANY_REQUESTS)
        else:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if not self._is_refused:
            self._body_bytes += len(body)
            self._all_body_bytes += len(body)
            super().on_body(body)

    def on_message_complete(self) -> None:
        if not self._is_refused:
            super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._connections.used(self)
        if not self._may_do_everything:
            self.transport.close()

    def _expect_head(self) -> None:
        self._stop_timer()
        seconds = self._limits.head_seconds if self._may_do_everything else _RESERVE_SECONDS
        self._timer = self.loop.call_later(seconds, self._refuse, HTTPStatus.REQUEST_TIMEOUT)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refuse(self, status: HTTPStatus) -> None:
        """Answer a request without reading it further, and close the connection.

        If an earlier request of this connection is still being answered, close it without an answer, so that answers are not mixed.
        """
        self._is_refused = True
        self._unset_keepalive_if_required()
        self._stop_timer()
        if status == HTTPStatus.REQUEST_TIMEOUT and not self._has_begun:
            self.transport.close()  # no request was started
        elif self.is_idle and not self.pipeline:
            retry = "Retry-After: 1\r\n" if status in (HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS) else ""
            text = status.phrase
            content = f"Content-Type: text/plain\r\nContent-Length: {len(text)}\r\nConnection: close\r\n\r\n{text}"
            self.transport.write(f"HTTP/1.1 {status.value} {text}\r\n{retry}{content}".encode())
            self.transport.close()
        else:
            self.abort()
