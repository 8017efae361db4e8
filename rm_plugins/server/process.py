"""The processes of a server: how they begin, load again, and end without losing what they accepted."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import wait
from types import FrameType
from typing import Any, Literal

import uvicorn
from prometheus_client.multiprocess import mark_process_dead

from rm_plugins.errors import ModelError, RmPluginsError
from rm_plugins.server.agreement import Agreement
from rm_plugins.server.app import create_app
from rm_plugins.server.dialects.dialect import Problem
from rm_plugins.server.request_log import configure_logging
from rm_plugins.server.served_reward import ServedReward
from rm_plugins.server.service import Service
from rm_plugins.server.settings import Settings

logger = logging.getLogger(__name__)

_KEEP_ALIVE_SECONDS = 75
"""Longer than clients keep a connection that nobody uses: they should close it, not meet a closed one."""

_LAST_ANSWERS_SECONDS = 10
_RESTART_SECONDS = 1.0
_COULD_NOT_START = 3
_IS_ANOTHER = 4


@dataclass(frozen=True, slots=True)
class Serving:
    """What a process serves: the reward of a spec, with a `url` that is shown to people, and how lines are logged."""

    spec: str
    settings: Settings
    url: str
    log_format: Literal["json", "text"] = "text"


def serve(serving: Serving, listening: socket.socket, *, supervised: bool = False, agreement: Agreement | None = None) -> bool:
    """Load the reward and serve it until a signal comes.

    ``SIGTERM`` and ``SIGINT`` have everything that was accepted finished first, a second one does not. ``SIGHUP`` loads the reward
    again.

    Args:
        serving: What is served.
        listening: A bound socket.
        supervised: Whether `supervise` started this process.
        agreement: What other processes serve.

    Returns:
        Whether everything that was accepted was answered.

    Raises:
        RmPluginsError: The reward cannot be loaded.
    """
    asked_meanwhile: list[int] = []
    signal.signal(signal.SIGHUP, lambda number, frame: asked_meanwhile.append(number))
    parent = os.getppid()
    reward = ServedReward.load(serving.spec)
    reload_all = (lambda: os.kill(parent, signal.SIGHUP)) if supervised else None
    app = create_app(reward, serving.settings, reload_all=reload_all)
    if agreement is not None:
        _join(agreement, reward.fingerprint)
        app.state.service.joins = agreement.join
    config = uvicorn.Config(
        app,
        log_config=None,
        log_level="warning",
        access_log=False,
        lifespan="on",
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=_LAST_ANSWERS_SECONDS,
    )
    server = _Server(config, app.state.service, serving.url, parent if supervised else None, asked_meanwhile)
    server.run(sockets=[listening])
    return server.finished


def _join(agreement: Agreement, fingerprint: str) -> None:
    try:
        agreement.join(fingerprint)
    except ModelError as error:
        logger.error("%s", error)
        raise SystemExit(_IS_ANOTHER) from None


class _Server(uvicorn.Server):
    """Goes on serving after the first signal until what was accepted is answered; new requests are refused meanwhile.

    It ends when the process `parent` does; `asked_meanwhile` has the signals to load again that came while it loaded.
    """

    def __init__(
        self, config: uvicorn.Config, service: Service, url: str, parent: int | None, asked_meanwhile: list[int]
    ) -> None:
        super().__init__(config)
        self.finished = True
        self._service = service
        self._url = url
        self._parent = parent
        self._asked_meanwhile = asked_meanwhile
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_stopping = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        self._loop = asyncio.get_running_loop()
        self._loop.add_signal_handler(signal.SIGHUP, self._begin, self._reload)
        if self._asked_meanwhile:
            self._begin(self._reload)
        logger.info(
            "Serving %s (fingerprint %s) at %s, with a page to try it at %s/",
            self._service.name,
            self._service.fingerprint[:12],
            self._url,
            self._url,
        )

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._parent is not None and sig == signal.SIGINT:
            return  # a terminal sends it to all processes, and the parent passes it on
        if self._is_stopping or self._loop is None:
            self.should_exit = self.force_exit = True
            return
        self._is_stopping = True
        self._loop.call_soon_threadsafe(self._begin, self._stop)

    async def on_tick(self, counter: int) -> bool:
        if self._parent is not None and os.getppid() != self._parent and not self._is_stopping:
            logger.error("The parent process is gone")
            self.handle_exit(signal.SIGTERM, None)
        return await super().on_tick(counter)

    def _begin(self, work: Callable[[], Any]) -> None:
        task = asyncio.ensure_future(work())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _stop(self) -> None:
        logger.info("Stopping: finishing what was accepted")
        self.finished = await self._service.stop()
        self.should_exit = True

    async def _reload(self) -> None:
        try:
            await self._service.reload_here()
        except Problem as problem:
            logger.error("%s", problem)


def supervise(number: int, serving: Serving, listening: socket.socket) -> bool:
    """Serve with a number of processes, which share a bound socket and all signals; one that dies is replaced.

    Returns:
        Whether all of them started, and ended with everything answered.
    """
    context = multiprocessing.get_context("spawn")  # what torch has started does not survive a fork
    agreement = Agreement(context)
    processes: list[Any] = []
    is_stopping = False

    def send(signal_number: int) -> None:
        for process in processes:
            if process.is_alive():
                os.kill(process.pid, signal_number)

    def stop() -> None:
        nonlocal is_stopping
        is_stopping = True
        send(signal.SIGTERM)

    def load_again() -> None:
        agreement.renew()
        send(signal.SIGHUP)

    def start() -> None:
        if not is_stopping:
            process = context.Process(target=_work, args=(serving, listening, agreement))
            process.start()
            processes.append(process)
            if is_stopping:  # the signal came before it was on the list
                send(signal.SIGTERM)

    for stopping_signal in (signal.SIGTERM, signal.SIGINT):
        signal.signal(stopping_signal, lambda number, frame: stop())
    signal.signal(signal.SIGHUP, lambda number, frame: load_again())
    for _ in range(number):
        start()
    succeeded = True
    while processes:
        wait([process.sentinel for process in processes])
        for process in [process for process in processes if process.exitcode is not None]:
            processes.remove(process)
            mark_process_dead(process.pid)  # type: ignore[no-untyped-call]  # what it last said of the present
            if is_stopping or process.exitcode == _COULD_NOT_START:
                succeeded = succeeded and process.exitcode == 0
                if not is_stopping:
                    stop()
            else:
                logger.error("The process %d ended with %d; another one takes its place", process.pid, process.exitcode)
                time.sleep(_RESTART_SECONDS)
                start()
    return succeeded


def _work(serving: Serving, listening: socket.socket, agreement: Agreement) -> None:
    configure_logging(serving.log_format)
    try:
        finished = serve(serving, listening, supervised=True, agreement=agreement)
    except RmPluginsError as error:
        logger.error("%s", error)
        raise SystemExit(_COULD_NOT_START) from None
    end(finished)


def end(finished: bool) -> None:
    """End this process; where a reward still hangs in a thread, without waiting for it."""
    logging.shutdown()
    if not finished:
        os._exit(1)
