"""Runs a computation that may never end on some texts in its own process, and ends the process when it takes too long.

On a crafted text, a pattern, a schema or a formula may take more time or memory than there is. Nothing in the same process can stop that,
not even another thread, because the interpreter is busy.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from types import TracebackType
from typing import Any, Self, TypeAlias

from rm_plugins.errors import ScoringError
from rm_plugins.one_thread import OneThread
from rm_plugins.per_process import PerProcess

_SECONDS_TO_START = 120.0
_MEMORY = 4 * 2**30
_MOST_AT_ONCE = 64
_MOST_CHARACTERS_AT_ONCE = 16_384  # no more than a pipe holds, so that the two processes never wait for each other

Answer: TypeAlias = Any
"""The result of the function for a request, or the `LimitExceededError` or `ChildProcessError` where there is none."""


class LimitExceededError(Exception):
    """A request exceeded its limit on time, memory or depth. The message names the limit, as the end of a sentence."""


class LimitedProcess:
    """Answers requests with a function that runs in another process, which ends when a request takes too long.

    The process starts with the first request, serves all requests, and is replaced after it ended. Any thread may send requests, and a
    fork gets its own process.

    Args:
        made_by: A factory, as ``module:function``, for the function that answers requests. It is called in the process.
        setting: The factory's argument; JSON.
        seconds: How long one request may take.
    """

    def __init__(self, made_by: str, setting: Any, seconds: float) -> None:
        self.made_by = made_by
        self.setting = setting
        self.seconds = seconds
        self._one_thread = OneThread()
        self._child = PerProcess[_Child]()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.made_by, self.setting, self.seconds)

    def __call__(self, requests: Sequence[Any]) -> list[Answer]:
        """The answer to each request; both are JSON.

        Raises:
            ScoringError: The process could not be started.
        """
        written = [json.dumps(request) for request in requests]
        answers: list[Answer] = []
        while len(answers) < len(written):
            with self._one_thread:
                try:
                    answers += self._answered(_beginning(written, len(answers)))
                except BaseException:  # else an unread answer would be taken as the next request's
                    self.close()
                    raise
        return answers

    def close(self) -> None:
        """End the process; the next request starts another."""
        child = self._child.take()
        if child is not None:
            child.end()

    def _answered(self, written: Sequence[str]) -> list[Answer]:
        """The answers to a few requests, up to the first one that ended the process."""
        child = self._running()
        answers: list[Answer] = []
        with _Watch(child, self.seconds) as watch:
            with suppress(BrokenPipeError):
                print(f"[{','.join(written)}]", file=child.stdin, flush=True)
            while len(answers) < len(written) and (line := _line(child)):
                watch.begin()
                answer, reason = json.loads(line)
                answers.append(answer if reason is None else LimitExceededError(reason))
        if len(answers) < len(written):
            code = child.wait()
            self.close()
            ended = f"the process that computes ended with {code}"
            answers.append(
                LimitExceededError(f"took more than {self.seconds:g} seconds") if watch.ended_it else ChildProcessError(ended)
            )
        return answers

    def _running(self) -> subprocess.Popen[str]:
        child = self._child.made(self._started)
        if not child.is_ready:
            arguments = (self.made_by, self.setting, self.seconds)
            command = f"from {__name__} import answer_requests; answer_requests(*{arguments!r})"
            with _Watch(child.process, _SECONDS_TO_START):
                with suppress(BrokenPipeError):
                    print(command, file=child.process.stdin, flush=True)
                child.is_ready = bool(_line(child.process))
        if not child.is_ready:
            code = child.process.wait()
            raise ScoringError(
                f"The process of {self.made_by} ended with {code} at its start. See its output above for the reason."
            )
        return child.process

    def _started(self) -> _Child:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", "import sys; exec(sys.stdin.readline())"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OPENBLAS_NUM_THREADS": "1"},
            encoding="utf-8",
        )
        return _Child(process, weakref.finalize(self, _ended, process, os.getpid()))


@dataclass(slots=True)
class _Child:
    """The process that answers.

    Args:
        process: It.
        end: Ends it; called also when the `LimitedProcess` is deleted and when this process ends.
        is_ready: Whether it takes requests.
    """

    process: subprocess.Popen[str]
    end: Callable[[], object]
    is_ready: bool = False


class _Watch:
    """Ends a process that does not answer in time. It waits in a thread, as reading has no time limit on every system."""

    def __init__(self, child: subprocess.Popen[str], seconds: float) -> None:
        self.ended_it = False
        self._child = child
        self._seconds = seconds
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._wait, daemon=True)

    def begin(self) -> None:
        """Restart the time limit for the next request."""
        self._deadline = time.monotonic() + self._seconds

    def _wait(self) -> None:
        while not self._is_over.wait(max(0.0, self._deadline - time.monotonic())):
            if time.monotonic() >= self._deadline:
                self.ended_it = True
                self._child.kill()
                return

    def __enter__(self) -> Self:
        self.begin()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._is_over.set()
        self._thread.join()


def _beginning(written: Sequence[str], start: int) -> Sequence[str]:
    """The next requests to send together: as many as fit into a pipe, or a single long one."""
    length, stop = len(written[start]), start + 1
    while stop < min(len(written), start + _MOST_AT_ONCE) and length + len(written[stop]) <= _MOST_CHARACTERS_AT_ONCE:
        length += len(written[stop])
        stop += 1
    return written[start:stop]


def _line(child: subprocess.Popen[str]) -> str:
    """The next line of the process's output; empty if it has ended."""
    assert child.stdout is not None
    return child.stdout.readline()


def _ended(child: subprocess.Popen[str], owner: int) -> None:
    if os.getpid() == owner:
        child.kill()
        with suppress(BrokenPipeError), child:  # waits, and closes its pipes with any unread request
            pass


# --- In the process -------------------------------------------------------------------------------------------------------


def answer_requests(made_by: str, setting: Any, seconds: float) -> None:
    """The main function of the process: reads lines with several requests, and writes a line with each answer, both as JSON.

    Args:
        made_by: As for `LimitedProcess`.
        setting: As for `LimitedProcess`.
        seconds: As for `LimitedProcess`.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    logging.disable()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # so that what a library prints is not read as an answer
    module, _, name = made_by.partition(":")
    answer = getattr(import_module(module), name)(setting)
    _limit_memory()
    print("ready", file=answers, flush=True)
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        for line in sys.stdin:
            requests = json.loads(line)
            # Usually the parent ends this process in time; this is for the case that the parent has died.
            faulthandler.dump_traceback_later(len(requests) * seconds + 10, exit=True, file=nowhere)
            for request in requests:
                print(json.dumps(_answer(answer, request)), file=answers, flush=True)
            faulthandler.cancel_dump_traceback_later()


def _answer(answer: Callable[[Any], Any], request: Any) -> tuple[Any, str | None]:
    """The answer, or the limit that was exceeded."""
    try:
        return answer(request), None
    except MemoryError:
        return None, f"took more than {_MEMORY / 2**30:g} GiB of memory"
    except RecursionError:
        return None, "is nested too deep"


def _limit_memory() -> None:
    """Limit the memory of this process, on systems that can, to more than any request should need."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        with open("/proc/self/statm", encoding="ascii") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + _MEMORY, resource.RLIM_INFINITY))
