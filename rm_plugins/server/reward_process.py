"""Runs a reward in its own process, so that the server stays responsive and can stop in time.

A reward that holds the GIL (a regular expression, a loop in C) stops every thread of its process. If a reward never returns, takes too much
memory or crashes, only its process ends, and is restarted.
"""

from __future__ import annotations

import faulthandler
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

from rm_plugins.devices import environment
from rm_plugins.errors import RmPluginsError, ScoringError, plain_error
from rm_plugins.samples import Sample
from rm_plugins.scores import Scores
from rm_plugins.server.dialects.dialect import Token
from rm_plugins.server.replicas import Place, Replica, State
from rm_plugins.server.request_log import configure_logging
from rm_plugins.server.served_reward import HostedReward, RewardFacts, RewardGone, RewardLate, ServedReward
from rm_plugins.server.signals import SIGNALS, held_back, receive

logger = logging.getLogger(__name__)

_BEATS_SECONDS = 2.0
_SECONDS_OF_GRACE = 30.0
"""The additional time after which a process that hangs ends itself, if the server could not end it."""
_LONGEST_PAUSE_SECONDS = 60.0
_CLOSING_SECONDS = 2.0
_TICK_SECONDS = 0.1
_STARTING = threading.Lock()
"""Held while a process is started with environment variables of its own, which this process has for that moment."""


@dataclass(frozen=True, slots=True)
class Hosting:
    """The settings of a reward's process.

    Args:
        threads: The batches scored concurrently, if the reward waits for I/O instead of computing.
        seconds: The time limit of a batch, in seconds.
        load_seconds: The time limit for loading the reward, in seconds.
        log_format: The format of log lines.
    """

    threads: int = 8
    seconds: float = 600.0
    load_seconds: float = 3_600.0
    log_format: Literal["json", "text"] = "text"


def pauses() -> Iterator[float]:
    """Seconds before each new attempt to start a process: 1, 2, 4 and so on, at most 60."""
    pause = 1.0
    while True:
        yield pause
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)


class RewardProcess(HostedReward):
    """A reward in another process, which is restarted if it ends.

    Args:
        source: The spec or path that the reward is loaded from.
        hosting: The settings of the process.
        place: Where it runs.
        closing: Ends the process once it is set, also while the reward is being loaded.

    Raises:
        RmPluginsError: The reward cannot be loaded.
    """

    def __init__(
        self,
        source: str | Path | Mapping[str, Any],
        hosting: Hosting,
        place: Place | None = None,
        closing: threading.Event | None = None,
    ) -> None:
        self._hosting = hosting
        self._place = place or Place()
        self._numbers = count()
        self._waiting: dict[int, Future[Any]] = {}
        self._late: set[int] = set()
        self._lock = threading.Lock()
        self._closing = closing or threading.Event()
        self._why = "the reward's process ended"
        self._source = source
        self._connection: Connection | None
        self._process, self._connection, facts = self._started()
        super().__init__(facts, source)
        threading.Thread(target=self._attend, name="rm-plugins-reward", daemon=True).start()

    @property
    def is_alive(self) -> bool:
        """Whether its process is running."""
        return self._connection is not None

    @property
    def replicas(self) -> tuple[Replica, ...]:
        """This process."""
        state: State = "serving" if self.is_alive else "restarting"
        return (Replica(self._place.number, self._place.device, state, self._place.restarts),)

    def again(self) -> RewardProcess:
        """Load the same source in another process."""
        return RewardProcess(self._source, self._hosting, self._place)

    def score(self, requests: Sequence[Sequence[Sample]], names: Sequence[str]) -> list[Scores]:
        """Score the samples of requests in the process."""
        scores: list[Scores] = self._ask("score", list(map(list, requests)), list(names))
        return scores

    def render(self, samples: Sequence[Sample]) -> list[list[dict[str, Any]]]:
        """Render samples in the process."""
        renderings: list[list[dict[str, Any]]] = self._ask("render", list(samples))
        return renderings

    def lengths(self, samples: Sequence[Sample]) -> list[int]:
        """Count the tokens of samples in the process."""
        lengths: list[int] = self._ask("lengths", list(samples))
        return lengths

    def tokenize(self, texts: Sequence[str], add_special_tokens: bool) -> list[list[Token]]:
        """Tokenize texts in the process."""
        tokens: list[list[Token]] = self._ask("tokenize", list(texts), add_special_tokens)
        return tokens

    def detokenize(self, rows: Sequence[Sequence[int]], skip_special_tokens: bool) -> list[str]:
        """Decode token ids in the process."""
        texts: list[str] = self._ask("detokenize", list(map(list, rows)), skip_special_tokens)
        return texts

    def close(self) -> None:
        """End the process."""
        self._closing.set()
        killing = threading.Timer(_CLOSING_SECONDS, lambda: self._process.kill())
        killing.daemon = True
        killing.start()
        with self._lock, suppress(OSError):
            if self._connection is not None:
                self._connection.send(None)
        self._process.join()
        killing.cancel()

    def _ask(self, name: str, *arguments: Any) -> Any:
        number, answer = next(self._numbers), Future[Any]()
        timer = threading.Timer(self._hosting.seconds, self._give_up, [number])
        timer.daemon = True
        try:
            with self._lock:
                if self._connection is None:
                    raise RewardGone(self._why)
                self._waiting[number] = answer
                timer.start()  # before sending, which waits as long as the process reads nothing
                with suppress(OSError):  # the process has ended, and `_lost` answers
                    self._connection.send((number, name, arguments))
            return answer.result()
        finally:
            timer.cancel()
            self._late.discard(number)

    def _give_up(self, number: int) -> None:
        """End the process, unless it has answered meanwhile; `_lost` then answers."""
        process = self._process
        if number in self._waiting:
            self._late.add(number)
            logger.error("%s; ending its process %s%s", self._why_late, process.pid, self._place)
            process.kill()

    @property
    def _why_late(self) -> str:
        return f"the reward did not answer within {self._hosting.seconds:g} s"

    def _started(self) -> tuple[Any, Connection, RewardFacts]:
        """A new process, the connection to it, and the facts about its reward.

        Raises:
            RmPluginsError: The reward cannot be loaded, or the process ended.
        """
        context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
        ours, theirs = context.Pipe()
        process = context.Process(target=_hold, args=(theirs, self._source, self._hosting))
        with _STARTING, environment(self._place.variables), held_back():
            process.start()
        theirs.close()
        try:
            received = _received(ours, process, self._may_load())
        except ScoringError as error:
            received = error
            process.kill()
        except (EOFError, OSError):
            process.join(_CLOSING_SECONDS)
            received = ScoringError(
                f"The process that loads the reward ended with exit status {process.exitcode}. See the server's log for the reason."
            )
        if isinstance(received, RewardFacts):
            return process, ours, received
        ours.close()
        process.join(_CLOSING_SECONDS)
        process.kill()
        raise received

    def _may_load(self) -> Callable[[], None]:
        """Raises once a process may no longer load the reward.

        Raises:
            ScoringError: Loading takes too long, or the reward was closed.
        """
        seconds = self._hosting.load_seconds
        ends = time.monotonic() + seconds

        def check() -> None:
            if self._closing.is_set():
                raise ScoringError("The reward was closed while it was being loaded.")
            if time.monotonic() > ends:
                raise ScoringError(
                    f"The reward was not loaded within {seconds:g} s, so loading it{self._place} was given up. Find out what it waits for, "
                    "such as a download or a device, or allow more time with --max-load-seconds."
                )

        return check

    def _attend(self) -> None:
        """Deliver the answers of the process, and restart it if it ends; runs in a thread."""
        while not self._closing.is_set():
            connection = self._connection
            assert connection is not None
            try:
                while True:
                    number, is_answer, result = _received(connection, self._process)
                    answer = self._waiting.pop(number, None)
                    if answer is not None:
                        answer.set_result(result) if is_answer else answer.set_exception(result)
            except (EOFError, OSError):
                self._lost(connection)
            if not self._closing.is_set():
                self._start_again()

    def _lost(self, connection: Connection) -> None:
        with self._lock:
            self._connection = None
            answers, self._waiting = self._waiting, {}
        connection.close()
        for number, answer in answers.items():
            answer.set_exception(RewardLate(self._why_late) if number in self._late else RewardGone(self._why))

    def _start_again(self) -> None:
        self._process.join(_CLOSING_SECONDS)
        pid, status = self._process.pid, self._process.exitcode
        logger.error("The reward's process %s%s ended with exit status %s; it is replaced", pid, self._place, status)
        self._why = "the reward's process ended"
        for pause in pauses():
            if self._closing.wait(pause):
                return
            try:
                process, connection, facts = self._started()
            except RmPluginsError as error:
                if not self._closing.is_set():
                    logger.error("The reward could not be loaded again; retrying: %s", error)
                continue
            with self._lock:
                is_usable = facts.fingerprint == self.facts.fingerprint and not self._closing.is_set()
                if is_usable:
                    self._process, self._connection = process, connection
            if is_usable:
                self._place.restarts += 1
                logger.warning("The reward has a new process, %s%s", process.pid, self._place)
                return
            connection.close()
            process.kill()
            if self._closing.is_set():
                return
            self._why = "the reward's process ended, and its files have changed since it was loaded"
            logger.error(
                "%s: reload the server to serve %s instead of %s", self._why, facts.fingerprint[:12], self.fingerprint[:12]
            )


def _received(connection: Connection, process: Any, check: Callable[[], None] = lambda: None) -> Any:
    """The next message of a process; `check` is called while it is awaited.

    Raises:
        EOFError: The process ended. Programs that the reward has forked may keep its end of the connection open, so that alone does not
            tell.
    """
    while not connection.poll(_TICK_SECONDS):
        if process.exitcode is not None and not connection.poll():
            raise EOFError
        check()
    return connection.recv()


def end_all() -> None:
    """End every reward process that this process has started."""
    for process in multiprocessing.active_children():
        process.kill()


def _hold(connection: Connection, source: str | Path | Mapping[str, Any], hosting: Hosting) -> None:
    """Load a reward, and answer the requests of the connection until it is closed."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # they are for the server, which ends this process itself
    receive()  # so that programs that the reward starts can be ended
    # If the server was killed, nothing else ends a process that never finishes loading.
    faulthandler.dump_traceback_later(hosting.load_seconds + _SECONDS_OF_GRACE, exit=True)
    configure_logging(hosting.log_format)
    try:
        reward = ServedReward.load(source)
    except RmPluginsError as error:
        connection.send(plain_error(error))
        return
    except Exception as error:
        logger.exception("The reward could not be loaded")
        connection.send(ScoringError(f"The reward could not be loaded: {type(error).__name__}: {error}"))
        return
    sending = threading.Lock()

    def answer(number: int, name: str, arguments: Any) -> None:
        try:
            result, is_answer = _done(reward, name, arguments), True
        except BaseException as error:
            if not isinstance(error, RmPluginsError):
                logger.exception("The reward failed")
            result, is_answer = plain_error(error), False
        with sending, suppress(OSError):
            connection.send((number, is_answer, result))

    threads = hosting.threads if reward.facts.is_concurrent else 1
    pool = ThreadPoolExecutor(threads, thread_name_prefix="rm-plugins-score")
    with suppress(EOFError, OSError):
        connection.send(reward.facts)
        while True:
            # If a thread holds the GIL, this timer is not renewed, so the process ends itself even if the server cannot end it.
            faulthandler.dump_traceback_later(hosting.seconds + _SECONDS_OF_GRACE, exit=True)
            if connection.poll(_BEATS_SECONDS):
                request = connection.recv()
                if request is None:
                    break
                pool.submit(answer, *request)
    closing = threading.Thread(target=reward.close, daemon=True)
    closing.start()
    closing.join(_CLOSING_SECONDS / 2)
    logging.shutdown()
    os._exit(0)  # a thread may never return


def _done(reward: ServedReward, name: str, arguments: Any) -> Any:
    if name == "score":
        return [_portable(scores) for scores in reward.score(*arguments)]
    return getattr(reward, name)(*arguments)


def _portable(scores: Scores) -> Scores:
    """Scores in a form that can be sent to another process: with columns instead of parts, and errors that can be pickled."""
    return Scores(
        scores.values,
        details=dict(scores.columns),
        tokens=scores.tokens,
        errors={row: plain_error(error) for row, error in scores.errors.items()},
    )
