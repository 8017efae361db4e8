"""Attempts that no process has lived to end are counted."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from rm_plugins.errors import OutputError, ProcessError
from rm_plugins_ray.attempts import MOST_ATTEMPTS, Attempts

_open: list[AbstractContextManager[None]] = []


def dies(attempts: Attempts, key: str, times: int) -> None:
    """What processes leave that die in attempts: these are never ended."""
    for _ in range(times):
        _open.append(attempts.attempt(key, "worked"))
        _open[-1].__enter__()


def test_work_that_ends_its_processes_is_given_up(tmp_path: Path) -> None:
    attempts = Attempts(tmp_path / "attempts")
    attempts.forget()
    dies(attempts, "1", MOST_ATTEMPTS)
    with pytest.raises(ProcessError, match="4 actors in a row have ended while they scored rows 1 to 8"):
        attempts.attempt("1", "scored rows 1 to 8").__enter__()
    dies(attempts, "11", 1)  # other work
    attempts.forget()
    dies(attempts, "1", 1)


def test_a_process_that_lives_begins_the_count_again(tmp_path: Path) -> None:
    attempts = Attempts(tmp_path / "attempts")
    attempts.forget()
    for _ in range(2):
        dies(attempts, "1", MOST_ATTEMPTS - 1)
        with pytest.raises(ValueError, match="an error is no death"), attempts.attempt("1", "worked"):
            raise ValueError("an error is no death")


def test_a_run_that_has_ended_is_told(tmp_path: Path) -> None:
    with pytest.raises(OutputError):
        Attempts(tmp_path / "removed").attempt("1", "worked").__enter__()
