"""The processes of a server: how they begin, load again, and end without losing what they accepted."""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import math
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
from rm_plugins.server.connections import Connections
from rm_plugins.server.dialects.dialect import Problem
from rm_plugins.server.request_log import configure_logging
from rm_plugins.server.reward_process import Hosting, RewardProcess, end_all, pauses
from rm_plugins.server.service import Service
from rm_plugins.server.settings import Settings

logger = logging.getLogger(__name__)

_KEEP_ALIVE_SECONDS = 75
"""Longer than clients keep a connection that nobody uses: they should close it, not meet a closed one."""

_LAST_ANSWERS_SECONDS = 10
_END_SECONDS = 15.0
"""After the time for what was accepted, a process ends at the latest."""
_COULD_NOT_START = 3
_IS_ANOTHER = 4
_TICK_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Serving:
    """What a process serves: the reward of a spec, with a `url` that is shown to people, and how lines are logged."""

    spec: str
    settings: Settings
    url: str
    log_format: Literal["json", "text"] = "text"


def serve(
    serving: Serving,
    listening: socket.socket,
    *,
    supervised: bool = False,
    started: Callable[[], None] = lambda: None,
    workers: Callable[[], tuple[int, int]] = lambda: (1, 1),
    agreement: Agreement | None = None,
) -> bool:
    """Load the reward and serve it until a signal comes.

    ``SIGTERM`` and ``SIGINT`` have everything that was accepted finished first, a second one does not. ``SIGHUP`` loads the reward
    again.

    Args:
        serving: What is served.
        listening: A bound socket.
        supervised: Whether `supervise` started this process.
        started: Called when requests are taken.
        workers: How many processes should serve, and how many do.
        workers: How many processes should serve, and how many do.
        agreement: What other processes serve.

    Returns:
        Whether everything that was accepted was answered.

    Raises:
        RmPluginsError: The reward cannot be loaded.
    """
    asked_meanwhile: list[int] = []
    signal.signal(signal.SIGHUP, lambda number, frame: asked_meanwhile.append(number))
    parent = os.getppid()
    settings = serving.settings
    reward = RewardProcess(serving.spec, Hosting(settings.threads, settings.max_score_seconds, serving.log_format))
    reload_all = (lambda: os.kill(parent, signal.SIGHUP)) if supervised else None
    app = create_app(reward, settings, reload_all=reload_all, workers=workers)
    if agreement is not None:
        try:
            _join(agreement, reward.fingerprint)
        except SystemExit:
            end_all()
            raise
        app.state.service.joins = agreement.join
    config = uvicorn.Config(
        app,
        http=Connections(settings).protocol,
        ws="none",
        log_config=None,
        log_level="warning",
        access_log=False,
        lifespan="on",
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=_LAST_ANSWERS_SECONDS,
    )
    server = _Server(config, app.state.service, serving.url, parent if supervised else None, asked_meanwhile, started)
    try:
        server.run(sockets=[listening])
    finally:
        end_all()
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
        self,
        config: uvicorn.Config,
        service: Service,
        url: str,
        parent: int | None,
        asked_meanwhile: list[int],
        started: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self.finished = True
        self._service = service
        self._url = url
        self._parent = parent
        self._asked_meanwhile = asked_meanwhile
        self._report_started = started
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_stopping = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        self._loop = asyncio.get_running_loop()
        self._loop.add_signal_handler(signal.SIGHUP, self._begin, self._reload)
        self._report_started()
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
        # Whatever hangs, and whoever holds Python's lock, this thread of C ends the process in time.
        faulthandler.dump_traceback_later(self._service.settings.drain_seconds + _END_SECONDS, exit=True)
        self._loop.call_soon_threadsafe(self._begin, self._stop)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets=sockets)
        end_all()  # one that is being loaded, too

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

    Where none of them can be started, all of it ends; where one cannot be replaced, the others go on, and it is tried again.

    Returns:
        Whether all of them started, and ended with everything answered.
    """
    context = multiprocessing.get_context("spawn")  # what torch has started does not survive a fork
    # Without a lock, which a process that is killed while it looks would hold for ever: a byte is written whole.
    serves: Any = context.Array("b", number, lock=False)
    agreement = Agreement(context)
    workers = [_Worker(context, place, (serving, listening, agreement, serves)) for place in range(number)]
    ends_at = math.inf

    def send(signal_number: int) -> None:
        for worker in workers:
            worker.send(signal_number)

    def stop() -> None:
        nonlocal ends_at
        ends_at = min(ends_at, time.monotonic() + serving.settings.drain_seconds + _END_SECONDS + 1)
        send(signal.SIGTERM)

    def load_again() -> None:
        agreement.renew()
        send(signal.SIGHUP)

    for stopping_signal in (signal.SIGTERM, signal.SIGINT):
        signal.signal(stopping_signal, lambda number, frame: stop())
    signal.signal(signal.SIGHUP, lambda number, frame: load_again())
    succeeded = True
    while True:
        for worker in workers:
            if ends_at == math.inf and worker.is_due:
                worker.start()
                if ends_at < math.inf:
                    worker.send(signal.SIGTERM)  # the signal came before it could be sent on
        running = [worker.process.sentinel for worker in workers if worker.process is not None]
        if not running and ends_at < math.inf:
            return succeeded
        wait(running, _TICK_SECONDS)
        if time.monotonic() > ends_at:
            send(signal.SIGKILL)
        for worker in workers:
            code = worker.ended()
            if code is None:
                continue
            if ends_at < math.inf:
                succeeded = succeeded and code == 0
            elif code == _COULD_NOT_START and not any(serves) and not any(one.has_served for one in workers):
                succeeded = False
                stop()
            else:
                worker.start_later(code)


class _Worker:
    """A place for a process of the server: what runs there, and when it is started again."""

    def __init__(self, context: Any, place: int, arguments: tuple[Any, ...]) -> None:
        self.process: Any = None
        self.has_served = False
        self._context = context
        self._place = place
        self._arguments = arguments
        self._serves = arguments[-1]
        self._pauses = pauses()
        self._starts_at = 0.0

    @property
    def is_due(self) -> bool:
        """Whether a process is to be started now."""
        return self.process is None and time.monotonic() >= self._starts_at

    def start(self) -> None:
        process = self._context.Process(target=_work, args=(self._place, *self._arguments))
        process.start()
        self.process = process

    def send(self, signal_number: int) -> None:
        if self.process is not None and self.process.is_alive():
            os.kill(self.process.pid, signal_number)

    def ended(self) -> int | None:
        """The exit status of its process, once, if it has ended."""
        if self.process is None or self.process.exitcode is None:
            return None
        code: int = self.process.exitcode
        mark_process_dead(self.process.pid)  # type: ignore[no-untyped-call]  # what it last said of the present
        if self._serves[self._place]:
            self.has_served = True
            self._pauses = pauses()
            self._serves[self._place] = 0
        self._number, self.process = self.process.pid, None
        return code

    def start_later(self, code: int) -> None:
        """Have another process take the place of one that ended, later after each that did not come to serve."""
        pause = next(self._pauses)
        self._starts_at = time.monotonic() + pause
        logger.error("The process %d ended with %d; another one takes its place in %g s", self._number, code, pause)


def _work(place: int, serving: Serving, listening: socket.socket, agreement: Agreement, serves: Any) -> None:
    configure_logging(serving.log_format)

    def started() -> None:
        serves[place] = 1

    try:
        finished = serve(
            serving,
            listening,
            supervised=True,
            started=started,
            workers=lambda: (len(serves), sum(serves)),
            agreement=agreement,
        )
    except RmPluginsError as error:
        logger.error("%s", error)
        raise SystemExit(_COULD_NOT_START) from None
    end(finished)


def end(finished: bool) -> None:
    """End this process; where a reward still hangs in a thread, without waiting for it."""
    logging.shutdown()
    if not finished:
        os._exit(1)
