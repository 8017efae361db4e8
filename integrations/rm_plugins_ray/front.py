"""The HTTP side of a served reward on Ray: reads a request, sends it to a replica, and to another one if that replica dies."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from rm_plugins_ray.http_messages import HttpAnswer, HttpRequest
from rm_plugins_ray.prompt_of_request import prompt_of_request

logger = logging.getLogger(__name__)

_TRIES = 4
"""How many replicas may die with a request before the request is given up, as it may be the cause."""
_SMALL_BYTES = 100_000
"""Larger bodies are parsed in a thread, so that other requests do not wait."""


class Front:
    """An ASGI application that forwards each request to a replica as a whole, so that one reward makes the whole answer.

    Args:
        handle: The Serve handle of the replicas.
        max_body_bytes: The most bytes of a body. More are not read; the replica then refuses the request in the client's dialect.
        affinity_characters: How many characters of a joined text stand for its prompt.
    """

    def __init__(self, handle: Any, *, max_body_bytes: int, affinity_characters: int) -> None:
        self._handle = handle
        self._max_body_bytes = max_body_bytes
        self._affinity_characters = affinity_characters

    async def __call__(
        self,
        scope: Mapping[str, Any],
        receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
        send: Callable[[MutableMapping[str, Any]], Awaitable[None]],
    ) -> None:
        """Answer one request; see the ASGI specification for the arguments."""
        if scope["type"] == "lifespan":
            for phase in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{phase}.complete"})
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close"})
            return
        body = await self._body(receive)
        if body is None:
            return
        if len(body) <= _SMALL_BYTES:
            prompt = prompt_of_request(body, self._affinity_characters)
        else:
            prompt = await asyncio.to_thread(prompt_of_request, body, self._affinity_characters)
        answer = await self._answer(prompt, HttpRequest.of(scope, body))
        # Serve adds the id itself.
        headers = [(name, value) for name, value in answer.headers if name != b"x-request-id"]
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": answer.body})

    async def _body(self, receive: Callable[[], Awaitable[MutableMapping[str, Any]]]) -> bytes | None:
        """The body, or slightly more than the limit of it; None if the client has disconnected."""
        parts: list[bytes] = []
        size = 0
        while size <= self._max_body_bytes:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if not message.get("more_body"):
                break
        return b"".join(parts)

    async def _answer(self, prompt: str, request: HttpRequest) -> HttpAnswer:
        from ray.exceptions import RayError, RayTaskError
        from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

        for attempt in range(1, _TRIES + 1):
            try:
                answer: HttpAnswer = await self._handle.answer.remote(prompt, request)
                return answer
            except RayTaskError:
                logger.exception("A replica failed to answer a request")
                return _problem(500, "the replica failed to answer; see its log for the reason")
            except (BackPressureError, DeploymentUnavailableError) as error:
                return _problem(503, f"the application does not accept the request now: {error}", retry_after=1)
            except RayError as error:  # the replica, its node or its network is gone: scoring again changes nothing
                logger.warning("A replica was lost with a request, try %d of %d: %s", attempt, _TRIES, type(error).__name__)
        return _problem(503, f"{_TRIES} replicas in a row were lost while they answered this request", retry_after=5)


def _problem(status: int, message: str, *, retry_after: int | None = None) -> HttpAnswer:
    headers = [(b"content-type", b"application/json")]
    if retry_after is not None:
        headers.append((b"retry-after", b"%d" % retry_after))
    return HttpAnswer(status, headers, json.dumps({"error": {"message": message, "code": status}}).encode())
