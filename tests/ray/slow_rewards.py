"""Rewards for workers of a cluster, which import them from here."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import rm_plugins as rm
from rm_plugins.errors import ScoringError


def vowels(samples: Sequence[rm.Sample]) -> list[float]:
    """The number of vowels in the completion; a completion with `bad` in it fails."""
    if bad := [place for place, sample in enumerate(samples) if "bad" in sample.completion_text]:
        raise ScoringError("it is bad", rows=bad)
    return [float(sum(sample.completion_text.count(vowel) for vowel in "aeiou")) for sample in samples]


def slow_vowels(samples: Sequence[rm.Sample]) -> list[float]:
    """The same, 20 ms a sample, after writing the number of this process into the folder that the samples name."""
    for sample in samples:
        (Path(str(sample.columns["pids"])) / str(os.getpid())).touch()
        time.sleep(0.02)
    return [float(sum(sample.completion_text.count(vowel) for vowel in "aeiou")) for sample in samples]


def kill(pid: int) -> None:
    """Kill a process, if it still runs."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
