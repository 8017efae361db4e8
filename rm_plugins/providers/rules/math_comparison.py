"""Compares mathematical answers with the package math-verify, in a process of its own, which ends if it takes too long.

``9^{9^{9^9}}`` takes for ever to compare with anything. The time limits of math-verify itself are alarms: only a main thread can
set them, and they disturb those that somebody else has set.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import cache, lru_cache
from typing import Any

from rm_plugins.errors import ScoringError

__all__ = ["MathComparison", "answer_requests"]

_SECONDS_TO_START = 120.0

_ANSWER_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_TAG = re.compile(r"</?[A-Za-z]\w*>")
_BETWEEN_BOXES = re.compile(r"\}\s*\$?\s*(?:,?\s*(?:and|or)|[,;])?\s*\$?\s*")
_MARKED = re.compile(r"\$|\\\(|\\\[|\\boxed")
_BARE = re.compile(
    r"(?:\\text\w*\s*\{[^{}]*\}|\\[A-Za-z]+|\\[^A-Za-z\n]|(?<![A-Za-z])[A-Za-z]{1,2}(?![A-Za-z])|[^A-Za-z\\:\n])++"
)
"""Mathematics and nothing else: no word, and no colon, which a word in front would have."""


class MathComparison:
    """Says whether an answer is mathematically the gold answer. It may be called in any thread.

    Args:
        seconds: How long one comparison may take.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._lock = threading.Lock()
        self._child: subprocess.Popen[str] | None = None
        self._owner = 0
        self._end: Callable[[], Any] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.seconds,)

    def __call__(self, gold: str, answer: str) -> bool | None:
        """Whether they are equal; None where there is nothing mathematical in `gold`.

        Raises:
            TimeoutError: It took too long.
            ChildProcessError: The process ended otherwise.
            ScoringError: It could not be started.
        """
        with self._lock:
            try:
                return self._verdict(gold, answer)
            except BaseException:  # the verdict of a comparison that was interrupted would be taken for the next one's
                self.close()
                raise

    def close(self) -> None:
        """End the process; the next comparison starts another."""
        if self._end is not None:
            self._end()
        self._child = self._end = None

    def _verdict(self, gold: str, answer: str) -> bool | None:
        child = self._running()
        started = time.monotonic()
        with suppress(BrokenPipeError):
            print(json.dumps([gold, answer]), file=child.stdin, flush=True)
        if line := _line(child):
            verdict: bool | None = json.loads(line)
            return verdict
        lasted = time.monotonic() - started
        code = child.wait()
        if lasted >= self.seconds:
            raise TimeoutError(f"comparing took more than {self.seconds:g} seconds")
        raise ChildProcessError(f"the process that compares ended with {code} while comparing")

    def _running(self) -> subprocess.Popen[str]:
        if self._child is None or self._owner != os.getpid():  # what a fork inherits is its parent's
            command = f"from {__name__} import answer_requests; answer_requests({self.seconds!r})"
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-c", command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
                encoding="utf-8",
            )
            self._owner = os.getpid()
            self._end = weakref.finalize(self, _ended, self._child, self._owner)
            if not _line(self._child):
                code = self._child.wait()
                raise ScoringError(
                    f"The process in which math-verify compares ended with {code} at its start. Its own output above says why."
                )
        return self._child


def _line(child: subprocess.Popen[str]) -> str:
    """What the process says next; nothing if it has ended."""
    assert child.stdout is not None
    return child.stdout.readline()


def _ended(child: subprocess.Popen[str], owner: int) -> None:
    if os.getpid() == owner:
        child.kill()
        with suppress(BrokenPipeError), child:  # waits, and closes its pipes, a request that nobody read with them
            pass


def answer_requests(seconds: float) -> None:
    """What the process does: a verdict, as a line of JSON, for each request on standard input.

    Args:
        seconds: How long one may take, or else the process ends.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Control-C is the parent's to handle
    logging.disable()
    verdicts = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints is no verdict
    with open(os.devnull, "w", encoding="utf-8") as nowhere:

        def limited(limit: float) -> None:
            # Of what can end a process, this alone needs neither the interpreter's attention nor POSIX.
            faulthandler.dump_traceback_later(limit, exit=True, file=nowhere)

        limited(_SECONDS_TO_START)
        _comparison("1", "1")
        faulthandler.cancel_dump_traceback_later()
        print("ready", file=verdicts, flush=True)
        for line in sys.stdin:
            limited(seconds)
            verdict = _comparison(*json.loads(line))
            faulthandler.cancel_dump_traceback_later()
            print(json.dumps(verdict), file=verdicts, flush=True)


def _comparison(gold: str, answer: str) -> bool | None:
    from math_verify import verify  # type: ignore[import-untyped]

    expected = _parsed(gold)
    return bool(verify(expected, _parsed(answer), timeout_seconds=None)) if expected else None


@lru_cache(maxsize=256)  # the completions of a prompt share their gold answer
def _parsed(text: str) -> list[Any]:
    from math_verify import parse

    answers: list[Any] = parse(_presented(text), _extraction(), parsing_timeout=None)
    return answers


@cache
def _extraction() -> tuple[Any, ...]:
    from math_verify import ExprExtractionConfig, LatexExtractionConfig

    return LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()


def _presented(text: str) -> str:
    """A text in which math-verify finds the answer that a person would.

    It finds the last box, else what follows the word "answer", else the last formula or number. Of bare mathematics it would take
    a number out of the middle, such as 2 out of ``2\\sqrt{3}``, and after ``####`` it may prefer an earlier "answer".
    """
    text = (_ANSWER_TAG.findall(text) or [text])[-1]
    text = _TAG.sub(" ", text).strip()  # a number that adjoins a tag would not be found
    if "\\boxed" in text:
        return _last_boxes(text)
    last_line = text.rpartition("\n")[2]
    if "####" in last_line:  # how a solution in GSM8K ends
        text = last_line.rpartition("####")[2]
    if not _MARKED.search(text):
        text = text.replace("`", " ").strip("*_ ")  # Markdown's marks
    return f"${text}$" if not _MARKED.search(text) and _BARE.fullmatch(text) else text


def _last_boxes(text: str) -> str:
    """The last box, with those that are listed right before it; math-verify takes all boxes of a line for one answer."""
    last = text.rfind("\\boxed")
    answer = text[last:]
    while (before := text.rfind("\\boxed", 0, last)) >= 0:
        end = text.rfind("}", before, last)
        if end < 0 or not _BETWEEN_BOXES.fullmatch(text, end, last):
            break
        answer, last = f"{text[before : end + 1]}, {answer}", before
    return answer
