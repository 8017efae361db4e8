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
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import wait
from types import FrameType
from typing import Any, Literal

import uvicorn
from prometheus_client.multiprocess import mark_process_dead

from rm_plugins.errors import RmPluginsError
from rm_plugins.server.agreement import Agreement, AnotherReward
from rm_plugins.server.app import create_app
from rm_plugins.server.connections import Connections
from rm_plugins.server.dialects.dialect import Problem
from rm_plugins.server.replicas import AUTO, Place, State, Workers
from rm_plugins.server.request_log import configure_logging
from rm_plugins.server.reward_process import Hosting, end_all, pauses
from rm_plugins.server.reward_replicas import RewardReplicas, check_shared
from rm_plugins.server.served_reward import HostedReward
from rm_plugins.server.service import Service
from rm_plugins.server.settings import Settings
from rm_plugins.server.signals import held_back, receive

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
        devices: The devices on which the reward is loaded, once on each; ``auto`` leaves the choice to the reward.
    """

    spec: str
    settings: Settings
    url: str
    log_format: Literal["json", "text"] = "text"
    devices: tuple[str, ...] = (AUTO,)


@dataclass(frozen=True, slots=True)
class Worker:
    """What a server process knows of the others, where `supervise` has started several.

    Args:
        number: Its number, from 0.
        workers: The state of all of them.
        agreement: The reward that all of them serve.
        parent: The id of the process that has started them.
    """

    number: int
    workers: Workers
    agreement: Agreement
    parent: int

    def becomes(self, state: State) -> None:
        """Note the state of this process."""
        self.workers.becomes(self.number, state)

    def replaces_rewards(self, times: int) -> None:
        """Note how often the process of its reward was replaced since the previous note."""
        self.workers.replaces_rewards(self.number, times)

    def join(self, reward: HostedReward) -> None:
        """Agree to serve a reward.

        Raises:
            AnotherReward: The other processes serve another reward.
            UnsupportedError: The reward cannot be shared.
        """
        check_shared(reward.facts, len(self.workers()))
        self.agreement.join(reward.fingerprint)

    def starts(self) -> None:
        """Note that it is started."""
        self.workers.starts(self.number)

    @property
    def has_started(self) -> bool:
        """Whether it has come to serve."""
        return self.workers.has_started(self.number)


def serve(serving: Serving, listening: socket.socket, worker: Worker | None = None) -> bool:
    """Load the reward and serve it until a signal arrives.

    On ``SIGTERM`` or ``SIGINT``, accepted requests are finished first. A second signal, or one that arrives while the reward is being
    loaded, ends the server immediately. ``SIGHUP`` reloads the reward.

    Args:
        serving: The configuration.
        listening: A bound socket.
        worker: This process, where it is one of several.

    Returns:
        Whether all accepted requests were answered.

    Raises:
        RmPluginsError: The reward cannot be loaded.
    """
    early_reloads: list[int] = []
    signal.signal(signal.SIGHUP, lambda number, frame: early_reloads.append(number))
    signal.signal(signal.SIGTERM, _end_while_loading)
    # A terminal sends SIGINT to all processes, and the parent of several forwards it.
    signal.signal(signal.SIGINT, _end_while_loading if worker is None else signal.SIG_IGN)
    receive()
    settings = serving.settings
    reward = _loaded(serving, worker)
    reload_all = None if worker is None else lambda: os.kill(worker.parent, signal.SIGHUP)
    app = create_app(reward, settings, reload_all=reload_all, replicas=None if worker is None else worker.workers)
    if worker is not None:
        app.state.service.joins = worker.join
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
    server = _Server(config, app.state.service, serving.url, early_reloads, worker)
    try:
        server.run(sockets=[listening])
    finally:
        end_all()
    return server.finished


def _end_while_loading(number: int, frame: FrameType | None) -> None:
    """End this process and the one that loads the reward.

    A container's first process, unlike others, ignores a signal for which it has no handler.
    """
    end_all()
    os._exit(128 + number)


def _loaded(serving: Serving, worker: Worker | None) -> HostedReward:
    """The reward, which the other workers serve as well."""
    settings = serving.settings
    hosting = Hosting(settings.threads, settings.max_score_seconds, settings.max_load_seconds, serving.log_format)
    reward: HostedReward | None = None
    try:
        reward = RewardReplicas(serving.spec, hosting, Place.on(serving.devices))
        if worker is not None:
            worker.join(reward)
        return reward
    except RmPluginsError as error:
        if reward is not None:
            reward.close()  # otherwise its processes are replaced when they are ended
        end_all()  # including processes that are still loading
        if not isinstance(error, AnotherReward):
            raise
        logger.error("%s", error)
        raise SystemExit(_IS_ANOTHER) from None


class _Server(uvicorn.Server):
    """After the first signal, refuses new requests and answers the accepted ones before it stops.

    Where it is one of several, it also stops when their parent ends. `early_reloads` has the reload signals that arrived while the reward
    was being loaded.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        service: Service,
        url: str,
        early_reloads: list[int],
        worker: Worker | None,
    ) -> None:
        super().__init__(config)
        self.finished = True
        self._service = service
        self._url = url
        self._early_reloads = early_reloads
        self._worker = worker
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_stopping = False
        self._restarts = 0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        self._loop = asyncio.get_running_loop()
        self._loop.add_signal_handler(signal.SIGHUP, self._begin, self._reload)
        if self._worker is not None:
            self._worker.becomes("serving")
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
        if self._worker is not None and sig == signal.SIGINT:
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
        if self._worker is not None:
            if os.getppid() != self._worker.parent and not self._is_stopping:
                logger.error("The parent process has ended; stopping")
                self.handle_exit(signal.SIGTERM, None)
            self._worker.becomes("serving" if self._service.reward.is_alive else "restarting")
            restarts = sum(replica.restarts for replica in self._service.reward.replicas)
            self._worker.replaces_rewards(restarts - self._restarts)
            self._restarts = restarts
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
    states, agreement = Workers(context, number), Agreement(context)
    workers = [
        _Supervised(context, (serving, listening), Worker(place, states, agreement, os.getpid())) for place in range(number)
    ]
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


class _Supervised:
    """One of the processes of the server, and its restarts."""

    def __init__(self, context: Any, arguments: tuple[Serving, socket.socket], worker: Worker) -> None:
        self.process: Any = None
        self._context = context
        self._arguments = arguments
        self._worker = worker
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
        return self._has_served or self._worker.has_started

    def start(self) -> None:
        process = self._context.Process(target=_work, args=(*self._arguments, self._worker))
        self._worker.starts()
        with held_back():
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
        if self._worker.has_started:
            self._has_served = True
            self._pauses = pauses()
            self._worker.becomes("starting")
        self._number, self.process = self.process.pid, None
        return code

    def start_later(self, code: int) -> None:
        """Replace a process that ended, after a pause that grows with each attempt that does not get to serve."""
        pause = next(self._pauses)
        self._starts_at = time.monotonic() + pause
        logger.error("The process %d ended with exit status %d; it is replaced in %g s", self._number, code, pause)


def _work(serving: Serving, listening: socket.socket, worker: Worker) -> None:
    configure_logging(serving.log_format)
    try:
        finished = serve(serving, listening, worker)
    except RmPluginsError as error:
        logger.error("%s", error)
        raise SystemExit(_COULD_NOT_START) from None
    end(finished)


def end(finished: bool) -> None:
    """End this process; if a reward still hangs in a thread, without waiting for it."""
    logging.shutdown()
    if not finished:
        os._exit(1)
