"""The middleware around all endpoints: checks every request, and completes every answer."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeAlias

from fastapi import Response
from fastapi.exceptions import RequestValidationError
from starlette._utils import get_route_path
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.routing import Route

from rm_plugins.errors import DataError, PluginError
from rm_plugins.server.aside import Aside
from rm_plugins.server.bodies import (
    BYTES_OF_A_VALUE,
    LONG_BODY,
    Body,
    BodyChecker,
    BodyReader,
    Disconnected,
    check_headers,
    json_and_binary,
)
from rm_plugins.server.dialects.dialect import Cause, Dialect, Problem
from rm_plugins.server.metrics import Metrics
from rm_plugins.server.request_log import Fields, current_fields, log_request
from rm_plugins.server.security import ClientKeys, Visitors, client_of, is_from_here

logger = logging.getLogger(__name__)

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]

_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")
_CAUSES: Mapping[int, Cause] = {
    401: "unauthorized",
    403: "forbidden",
    404: "not-found",
    413: "too-large",
    415: "unsupported",
    429: "overload",
    503: "unavailable",
}
_FOR_BALANCERS = ("/health", "/ping", "/ready")
"""Paths for load balancers, which may call the server by any name or address; they reveal nothing about the reward."""
_OPERATOR_HEADER = "x-rm-plugins"
"""A custom header, which an HTML form cannot send, and a script of another site only with the server's permission."""
_OF_WHAT_WAS_SENT = (b"content-type", b"content-encoding", b"content-length", b"inference-header-content-length")
"""Headers that no longer apply once the JSON is extracted from the body."""
_BYTES_OF_AN_ELEMENT = 4
"""The smallest element of a binary tensor, in bytes: a token id, or the length of a text."""
_CLIENT_CLOSED = 499
"""The status in the log for a request whose client disconnected before the answer, as in nginx."""


@dataclass(frozen=True, slots=True)
class _Endpoint:
    dialect: Dialect
    needs_key: bool


class Endpoints:
    """Maps requests to dialects, and decides which requests need a key; those to unknown paths do.

    Args:
        routes: The routes of each dialect, in the order in which they are tried.
        open_routes: Routes that need no key.
        usual: The dialect of open and unknown routes.

    Raises:
        PluginError: Two dialects answer the same requests, or one has routes that are not HTTP.
    """

    def __init__(self, routes: Sequence[tuple[Dialect, Sequence[Any]]], open_routes: Sequence[Any], usual: Dialect) -> None:
        self._exact: dict[tuple[str, str], _Endpoint] = {}
        self._paths: dict[str, _Endpoint] = {}  # for other methods
        self._patterns: list[tuple[re.Pattern[str], _Endpoint]] = []
        self._elsewhere = _Endpoint(usual, needs_key=True)
        self._unknown = [(dialect.prefix, _Endpoint(dialect, needs_key=True)) for dialect, _ in routes if dialect.prefix]
        owners = {(route.path, method): "" for route in open_routes for method in route.methods}
        for dialect, own in routes:
            for route in own:
                if not isinstance(route, Route):  # keys and limits would not apply to a WebSocket
                    raise PluginError(f"The dialect {dialect.name!r} has {route!r}; only HTTP routes can be served.")
                for method in sorted(route.methods or ()):
                    owner = owners.setdefault((route.path, method), dialect.name)
                    if owner != dialect.name:
                        other = f"The dialect {owner!r}" if owner else "The server itself"
                        raise PluginError(
                            f"{other} and the dialect {dialect.name!r} both answer {method} {route.path}. Uninstall the plug-in of "
                            "one, or give its endpoint another path."
                        )
                # Monitoring has no key. The path of the route decides, not the path that a client sends.
                watched = "health" in route.path.split("/") and (route.methods or set()) <= {"GET", "HEAD"}
                self._add(route, _Endpoint(dialect, needs_key=not watched))
        for route in open_routes:
            self._add(route, _Endpoint(usual, needs_key=False))

    def _add(self, route: Route, endpoint: _Endpoint) -> None:
        if "{" in route.path:
            self._patterns.append((route.path_regex, endpoint))
            return
        for method in route.methods or ():
            self._exact.setdefault((route.path, method), endpoint)
        if endpoint.needs_key or route.path not in self._paths:
            self._paths[route.path] = endpoint

    def of(self, path: str, method: str) -> _Endpoint:
        """The endpoint of a request."""
        endpoint = self._exact.get((path, method)) or self._paths.get(path)
        if endpoint is not None:
            return endpoint
        known = (endpoint for pattern, endpoint in self._patterns if pattern.match(path))
        unknown = (endpoint for prefix, endpoint in self._unknown if path.startswith(prefix))
        return next(chain(known, unknown), self._elsewhere)


class Boundary:
    """ASGI middleware: request ids, keys, limits, disconnected clients, errors, and the line in the log."""

    def __init__(
        self,
        app: Any,
        *,
        endpoints: Endpoints,
        visitors: Visitors,
        keys: ClientKeys,
        bodies: BodyReader,
        checker: BodyChecker,
        metrics: Metrics,
    ) -> None:
        self._app = app
        self._visitors = visitors
        self._checker = checker
        self._aside = Aside()
        self._endpoints = endpoints
        self._keys = keys
        self._bodies = bodies
        self._metrics = metrics

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve a request; it is answered and logged even if the application fails."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "").encode("latin-1")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex.encode()
        endpoint = self._endpoints.of(get_route_path(scope), scope["method"])
        fields: Fields = {"request_id": request_id.decode(), "dialect": endpoint.dialect.name}
        current_fields.set(fields)
        answer = _Answer(send, request_id)
        state = scope.setdefault("state", {})
        state["request_id"] = fields["request_id"]
        state["dialect"] = endpoint.dialect
        try:
            key = self._keys.matching(headers.get("authorization", "").encode("latin-1")) if self._keys else None
            fields["client"] = state["client"] = client_of(scope, key)
            state["may_operate"] = key is not None or (
                not self._keys and _OPERATOR_HEADER in headers and is_from_here((scope.get("client") or ("",))[0])
            )
            if scope["path"] not in _FOR_BALANCERS:
                answer.reader = self._visitors.check(headers, (scope.get("server") or ("",))[0] or "")
            if answer.reader and scope["method"] == "OPTIONS":
                await _preflight(scope, answer)
                return
            if self._keys and key is None and endpoint.needs_key:
                raise Problem(
                    "unauthorized",
                    "this server requires a key: send the header Authorization: Bearer KEY",
                    headers={"WWW-Authenticate": "Bearer"},
                )
            if endpoint.needs_key and scope["method"] in ("POST", "PUT", "PATCH"):  # no open endpoint takes a body
                length = headers.get("content-length", "")
                async with self._bodies.read(receive, fields["client"], int(length) if length.isdecimal() else 0) as body:
                    await self._check(body, endpoint.dialect, headers, scope)
                    await self._watched(scope, body.content, receive, answer)
            else:
                await self._app(scope, receive, answer.send)
        except Disconnected:
            answer.status = answer.status or _CLIENT_CLOSED
        except Exception as error:
            fields["cause"] = await answer.fail(error, scope, endpoint.dialect)
        seconds = time.perf_counter() - started
        cause = str(fields.get("cause", ""))
        self._metrics.answered(endpoint.dialect.name, answer.status, cause, seconds)
        fields |= {
            "method": scope["method"],
            "path": scope["path"][:200],
            "status": answer.status,
            "ms": round(1e3 * seconds, 1),
        }
        log_request(fields)

    async def _check(self, body: Body, dialect: Dialect, headers: Headers, scope: Message) -> None:
        """Check a body; compression and binary data that the dialect accepts are removed first, so that the application reads JSON."""
        binary = memoryview(b"")
        if body.content:
            coding = check_headers(headers, takes_binary=dialect.takes_binary)
            if coding:
                await self._bodies.unpack(body, coding)
            if dialect.takes_binary:
                body.content, binary = json_and_binary(body.content, headers)
                scope["headers"] = [(name, value) for name, value in scope["headers"] if name not in _OF_WHAT_WAS_SENT]
                scope["headers"].append((b"content-type", b"application/json"))
            values = await self._checker.check(body.content, apart=dialect.samples_field)
            values += len(binary) // _BYTES_OF_AN_ELEMENT
            self._bodies.hold(body, values * BYTES_OF_A_VALUE)
        scope["state"]["binary"] = binary

    async def _watched(self, scope: Message, body: bytes, receive: Receive, answer: _Answer) -> None:
        """Run the app with a body that was already read, and cancel it when the client disconnects."""
        gone = asyncio.ensure_future(receive())
        unread = True

        async def replay() -> Message:
            nonlocal unread
            if unread:
                unread = False
                return {"type": "http.request", "body": body, "more_body": False}
            return await asyncio.shield(gone)

        is_long = len(body) + len(scope["state"]["binary"]) >= LONG_BODY
        running = asyncio.ensure_future(
            self._aside.run(self._app, scope, replay, answer.send) if is_long else self._app(scope, replay, answer.send)
        )
        try:
            await asyncio.wait({gone, running}, return_when=asyncio.FIRST_COMPLETED)
            if not running.done() and not answer.is_complete:
                running.cancel()
                await asyncio.wait({running})
                if running.cancelled():
                    raise Disconnected
            await running
        finally:
            for task in (gone, running):
                task.cancel()


class _Answer:
    """Sends an answer with the request's id, and keeps track of its progress."""

    def __init__(self, send: Send, request_id: bytes) -> None:
        self._send = send
        self._request_id = request_id
        self.reader = ""
        """The origin of another site whose page may read the answer; empty if there is none."""
        self.status = 0
        self.is_complete = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message.get("headers", ()), (b"x-request-id", self._request_id)]
            if self.reader:
                message["headers"] += [(b"access-control-allow-origin", self.reader.encode("latin-1")), (b"vary", b"Origin")]
        elif message["type"] == "http.response.body":
            self.is_complete = not message.get("more_body", False)
        await self._send(message)

    async def fail(self, error: Exception, scope: Message, dialect: Dialect) -> Cause:
        """Answer with an error, unless an answer was already started."""
        problem = problem_of(error, dialect)
        if not self.status:
            await answer_of(problem, dialect, self._request_id.decode())(scope, _nothing, self.send)
        return problem.cause


async def _preflight(scope: Message, answer: _Answer) -> None:
    """Answer the preflight request of a browser for a page of an allowed origin."""
    allowed = {
        "Access-Control-Allow-Methods": "GET, POST",
        "Access-Control-Allow-Headers": "Authorization, Content-Type, X-Request-ID",
        "Access-Control-Max-Age": "600",
    }
    await Response(status_code=204, headers=allowed)(scope, _nothing, answer.send)


async def _nothing() -> Message:
    return {"type": "http.disconnect"}


def problem_of(error: Exception, dialect: Dialect) -> Problem:
    """The problem that a client is told for an error; the details of internal errors are only logged."""
    match error:
        case Problem():
            return error
        case RequestValidationError():
            return Problem("invalid", dialect.complaint(error.errors(), error.body))
        case DataError():
            return Problem("invalid", str(error))
        case HTTPException(status_code=400):  # from FastAPI, for bytes that are not text and for deep nesting
            return Problem("invalid", "the body cannot be parsed as JSON")
        case HTTPException(status_code=status, detail=detail):
            return Problem(_CAUSES.get(status, "invalid"), str(detail), status=status, headers=error.headers or {})
    logger.error("A request failed", exc_info=error)
    return Problem("failed", f"the server failed ({type(error).__name__}); see its log for the reason")


def answer_of(problem: Problem, dialect: Dialect, request_id: str) -> Response:
    """The response for a problem, in a dialect's form."""
    # Escaped as ASCII, because a message may quote text that UTF-8 cannot encode.
    content = json.dumps(dialect.error_body(problem, request_id), allow_nan=False).encode()
    return Response(content, problem.status, dict(problem.headers), media_type="application/json")
