"""A replica of a served reward: the server's application, called with requests that another actor received."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from fastapi import FastAPI

from rm_plugins.errors import ProcessError
from rm_plugins.samples import Sample
from rm_plugins.scores import Scores
from rm_plugins.server.app import create_app
from rm_plugins.server.dialects.dialect import Problem
from rm_plugins.server.served_reward import ServedReward
from rm_plugins.server.service import Service
from rm_plugins.server.settings import Settings
from rm_plugins.spec import load
from rm_plugins_ray.agreement import agree
from rm_plugins_ray.http_messages import HttpAnswer, HttpRequest
from rm_plugins_ray.shipped_spec import ShippedSpec


class Replica:
    """Answers requests in all dialects of the server, and scores them in micro-batches.

    Args:
        spec: The reward's spec.
        settings: The settings of the server.

    Raises:
        ModelError: Local paths in the spec do not exist on this node.
        RmPluginsError: The reward cannot be loaded.
    """

    def __init__(self, spec: ShippedSpec, settings: Settings) -> None:
        spec.check_here()
        self._reward = _TimedReward(load(spec.spec), spec.spec)
        self._app: FastAPI = create_app(self._reward, settings, reload_all=_refuse_reload)
        self._most_seconds = settings.max_score_seconds

    @property
    def _service(self) -> Service:
        service: Service = self._app.state.service
        return service

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the reward."""
        return self._service.fingerprint

    async def answer(self, request: HttpRequest) -> HttpAnswer:
        """Answer a request, in the event loop that answers all requests of this replica."""
        messages: list[MutableMapping[str, Any]] = []
        unread: list[MutableMapping[str, Any]] = [{"type": "http.request", "body": request.body, "more_body": False}]

        async def receive() -> MutableMapping[str, Any]:
            if not unread:  # where a server would wait for the client to disconnect; the front then cancels this call
                await asyncio.Event().wait()
            return unread.pop()

        async def send(message: MutableMapping[str, Any]) -> None:
            messages.append(message)

        await self._app({**request.scope, "asgi": {"version": "3.0"}, "state": {}}, receive, send)
        (start, *others) = messages
        headers = [(bytes(name), bytes(value)) for name, value in start.get("headers", ())]
        return HttpAnswer(start["status"], headers, b"".join(part.get("body", b"") for part in others))

    async def check_health(self) -> None:
        """Check that no batch hangs, and that the other replicas serve the same reward.

        Raises:
            ProcessError: A batch has taken longer than the settings allow.
            ModelError: The other replicas serve another reward.
        """
        seconds = self._reward.longest_running
        if seconds > self._most_seconds:
            raise ProcessError(
                f"A batch has been scored for {seconds:.0f} s, longer than max_score_seconds ({self._most_seconds:g} s); the replica "
                "must be replaced."
            )
        with suppress(ProcessError):  # the actor that compares them is being started again
            await asyncio.to_thread(agree, self.fingerprint)


def _refuse_reload() -> None:
    raise Problem(
        "invalid",
        "a reload would reach only one of the replicas; deploy the application again, with `serve run` or `serve deploy`",
    )


class _TimedReward(ServedReward):
    """A reward that knows for how long it has been scoring."""

    def score(self, requests: Sequence[Sequence[Sample]], names: Sequence[str]) -> list[Scores]:
        with self._running():
            return super().score(requests, names)

    @property
    def longest_running(self) -> float:
        """The seconds since the start of the oldest batch that still runs; 0 if none runs."""
        starts = [*self.__dict__.get("_starts", {}).values()]
        return time.monotonic() - min(starts) if starts else 0.0

    @contextmanager
    def _running(self) -> Iterator[None]:
        starts: dict[int, float] = self.__dict__.setdefault("_starts", {})
        starts[threading.get_ident()] = time.monotonic()
        try:
            yield
        finally:
            del starts[threading.get_ident()]
