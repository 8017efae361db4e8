"""The processes of a server: starting, reloading, and stopping without losing accepted requests."""

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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from types import FrameType
from typing import Any, Literal

import uvicorn
from prometheus_client.multiprocess import mark_process_dead

from rm_plugins.devices import environment, environment_of
from rm_plugins.errors import ModelError, RmPluginsError
from rm_plugins.server.agreement import Agreement
from rm_plugins.server.app import create_app
from rm_plugins.server.connections import Connections
from rm_plugins.server.dialects.dialect import Problem
from rm_plugins.server.replicas import ALONE, AUTO, Replica, Replicas, State
from rm_plugins.server.request_log import configure_logging
from rm_plugins.server.reward_process import Hosting, RewardProcess, end_all, pauses
from rm_plugins.server.service import Service
from rm_plugins.server.settings import Settings

logger = logging.getLogger(__name__)

_KEEP_ALIVE_SECONDS = 75
"""Longer than clients keep an idle connection, so that the client closes it and never uses a closed one."""

_LAST_ANSWERS_SECONDS = 10
_END_SECONDS = 15.0
"""The time after the drain time within which a process must end."""
_COULD_NOT_START = 3
_IS_ANOTHER = 4
_TICK_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Serving:
    """The configuration of a server process.

    Args:
        spec: The spec of the reward.
        settings: The settings of the server.
        url: The URL for log messages.
        log_format: The format of log lines.
        devices: The device of each process; none where they were not chosen.
    """

    spec: str
    settings: Settings
    url: str
    log_format: Literal["json", "text"] = "text"
    devices: tuple[str, ...] = ()


def serve(
    serving: Serving,
    listening: socket.socket,
    *,
    supervised: bool = False,
    becomes: Callable[[State], None] = lambda state: None,
    replicas: Callable[[], Sequence[Replica]] = lambda: ALONE,
    agreement: Agreement | None = None,
) -> bool:
    """Load the reward and serve it until a signal arrives.

    On ``SIGTERM`` or ``SIGINT``, accepted requests are finished first; a second signal ends the server immediately. ``SIGHUP`` reloads the
    reward.

    Args:
        serving: The configuration.
        listening: A bound socket.
        supervised: Whether `supervise` started this process.
        becomes: Called with the state of this process when the server accepts requests, and later when it may have changed.
        replicas: Returns the state of all processes of the server.
        agreement: The agreement with other processes of the server.

    Returns:
        Whether all accepted requests were answered.

    Raises:
        RmPluginsError: The reward cannot be loaded.
    """
    early_reloads: list[int] = []
    signal.signal(signal.SIGHUP, lambda number, frame: early_reloads.append(number))
    parent = os.getppid()
    settings = serving.settings
    reward = RewardProcess(serving.spec, Hosting(settings.threads, settings.max_score_seconds, serving.log_format))
    reload_all = (lambda: os.kill(parent, signal.SIGHUP)) if supervised else None
    app = create_app(reward, settings, reload_all=reload_all, replicas=replicas)
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
    server = _Server(config, app.state.service, serving.url, parent if supervised else None, early_reloads, becomes)
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
    """After the first signal, refuses new requests and answers the accepted ones before it stops.

    It also stops when the process `parent` ends. `early_reloads` has the reload signals that arrived while the reward was being loaded.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        service: Service,
        url: str,
        parent: int | None,
        early_reloads: list[int],
        becomes: Callable[[State], None],
    ) -> None:
        super().__init__(config)
        self.finished = True
        self._service = service
        self._url = url
        self._parent = parent
        self._early_reloads = early_reloads
        self._becomes = becomes
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_stopping = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        self._loop = asyncio.get_running_loop()
        self._loop.add_signal_handler(signal.SIGHUP, self._begin, self._reload)
        self._becomes("serving")
        if self._early_reloads:
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
            return  # a terminal sends it to all processes, and the parent forwards it
        if self._is_stopping or self._loop is None:
            self.should_exit = self.force_exit = True
            return
        self._is_stopping = True
        # This C thread ends the process in time even if Python code hangs or holds the GIL.
        faulthandler.dump_traceback_later(self._service.settings.drain_seconds + _END_SECONDS, exit=True)
        self._loop.call_soon_threadsafe(self._begin, self._stop)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets=sockets)
        end_all()  # including a process that is still loading

    async def on_tick(self, counter: int) -> bool:
        if self._parent is not None and os.getppid() != self._parent and not self._is_stopping:
            logger.error("The parent process has ended; stopping")
            self.handle_exit(signal.SIGTERM, None)
        self._becomes("serving" if self._service.reward.is_alive else "restarting")
        return await super().on_tick(counter)

    def _begin(self, work: Callable[[], Any]) -> None:
        task = asyncio.ensure_future(work())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _stop(self) -> None:
        logger.info("Stopping: finishing accepted requests")
        self.finished = await self._service.stop()
        self.should_exit = True

    async def _reload(self) -> None:
        try:
            await self._service.reload_here()
        except Problem as problem:
            logger.error("%s", problem)


def supervise(number: int, serving: Serving, listening: socket.socket) -> bool:
    """Serve with several processes, which share a bound socket and all signals; a process that dies is replaced.

    If no process can be started, the server ends. If one cannot be replaced, the others continue, and starting it is retried.

    Returns:
        Whether all processes started, and answered all accepted requests before they ended.
    """
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    replicas = Replicas(context, number, serving.devices)
    agreement = Agreement(context)
    variables = [environment_of(device, number) for device in serving.devices] or [{}] * number
    workers = [_Worker(context, place, (serving, listening, agreement), replicas, variables[place]) for place in range(number)]
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
                    worker.send(signal.SIGTERM)  # the signal arrived before this worker was started
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
            elif code == _COULD_NOT_START and not any(one.has_served for one in workers):
                succeeded = False
                stop()
            else:
                worker.start_later(code)


class _Worker:
    """One of the processes of the server, and its restarts."""

    def __init__(
        self, context: Any, place: int, arguments: tuple[Any, ...], replicas: Replicas, variables: Mapping[str, str]
    ) -> None:
        self.process: Any = None
        self._context = context
        self._place = place
        self._arguments = arguments
        self._replicas = replicas
        self._variables = variables
        self._has_served = False
        self._pauses = pauses()
        self._starts_at = 0.0

    @property
    def is_due(self) -> bool:
        """Whether the process must be started now."""
        return self.process is None and time.monotonic() >= self._starts_at

    @property
    def has_served(self) -> bool:
        """Whether the process, or one that it replaced, has come to serve."""
        return self._has_served or self._replicas.has_started(self._place)

    def start(self) -> None:
        process = self._context.Process(target=_work, args=(self._place, *self._arguments, self._replicas))
        self._replicas.starts(self._place)
        with environment(self._variables):
            process.start()
        self.process = process

    def send(self, signal_number: int) -> None:
        if self.process is not None and self.process.is_alive():
            os.kill(self.process.pid, signal_number)

    def ended(self) -> int | None:
        """The exit status of the process if it has ended, returned once; else None."""
        if self.process is None or self.process.exitcode is None:
            return None
        code: int = self.process.exitcode
        mark_process_dead(self.process.pid)  # type: ignore[no-untyped-call]  # drop its gauges
        if self._replicas.has_started(self._place):
            self._has_served = True
            self._pauses = pauses()
            self._replicas.becomes(self._place, "starting")
        self._number, self.process = self.process.pid, None
        return code

    def start_later(self, code: int) -> None:
        """Replace a process that ended, after a pause that grows with each attempt that does not get to serve."""
        pause = next(self._pauses)
        self._starts_at = time.monotonic() + pause
        device = self._replicas.device(self._place)
        name = f"The process {self._number}" + ("" if device == AUTO else f" (replica {self._place} on {device})")
        logger.error("%s ended with exit status %d; it is replaced in %g s", name, code, pause)


def _work(place: int, serving: Serving, listening: socket.socket, agreement: Agreement, replicas: Replicas) -> None:
    configure_logging(serving.log_format)
    device = replicas.device(place)
    if device != AUTO:
        logger.info("Replica %d of %d loads the reward for %s", place, len(replicas()), device)
    try:
        finished = serve(
            serving,
            listening,
            supervised=True,
            becomes=lambda state: replicas.becomes(place, state),
            replicas=replicas,
            agreement=agreement,
        )
    except RmPluginsError as error:
        logger.error("%s", error)
        raise SystemExit(_COULD_NOT_START) from None
    end(finished)


def end(finished: bool) -> None:
    """End this process; if a reward still hangs in a thread, without waiting for it."""
    logging.shutdown()
    if not finished:
        os._exit(1)
