"""Runs a command in a process of its own, kills it at a random moment, and starts it again until it is done."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.kills.jobs import Job

_LONGEST_SECONDS = 300


@dataclass(slots=True)
class Outcome:
    """What came of the kills of one command.

    Args:
        name: The command.
        kills: How often it was killed.
        runs: How often it was brought to its end after kills.
        starts: How often it was started.
        wrong: What was different, half there or left over, or failed, in words.
        seconds: How long it all took.
    """

    name: str
    kills: int = 0
    runs: int = 0
    starts: int = 0
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0


def killed(job: Job, count: int, chance: random.Random) -> Outcome:
    """Kill a job at least `count` times, and compare what it wrote each time that it ended with what it writes undisturbed."""
    outcome = Outcome(job.name)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=f"kills-{job.name}-") as scratch:
        undisturbed = _folder(job, Path(scratch) / "undisturbed")
        started = time.monotonic()
        code, said, _ = _run(job, undisturbed)
        longest = time.monotonic() - started
        assert code == 0, f"{job.name} fails undisturbed:\n{said}"
        expected, names = job.result(undisturbed), _names(undisturbed)
        while outcome.kills < count:
            folder = _folder(job, Path(scratch) / f"run-{outcome.runs}")
            longest = _finish(job, folder, longest, chance, outcome)
            if job.result(folder) != expected:
                outcome.wrong.append(f"after {outcome.kills} kills the result differs")
            if left := _names(folder) - names:
                outcome.wrong.append(f"after {outcome.kills} kills there is left over: {', '.join(sorted(left))}")
            outcome.runs += 1
            shutil.rmtree(folder)
    outcome.seconds = time.monotonic() - begun
    return outcome


def _finish(job: Job, folder: Path, longest: float, chance: random.Random, outcome: Outcome) -> float:
    """Start a job until it is done, and kill it on the way; returns the least that it was seen to take undisturbed."""
    before = outcome.kills
    while True:
        outcome.starts += 1
        started = time.monotonic()
        code, said, was_killed = _run(job, folder, chance.uniform(0, longest), chance)
        if was_killed:
            outcome.kills += 1
            try:
                job.check(folder)
            except (AssertionError, OSError, ValueError) as error:
                outcome.wrong.append(f"after kill {outcome.kills}: {error!r}")
        if code == -signal.SIGKILL or "Run the same command again to resume" in said:
            continue
        # Killed after its last step and before its end, it finds its own output.
        if code and "exists already" not in said:
            outcome.wrong.append(f"after {outcome.kills} kills it fails: {said[-2000:]}")
        return min(longest, time.monotonic() - started) if outcome.kills == before else longest


def _folder(job: Job, folder: Path) -> Path:
    folder.mkdir()
    job.prepare(folder)
    return folder


def _names(folder: Path) -> set[str]:
    """All files in a folder, but for those of checkpoints, whose number says nothing, and of Python itself."""
    paths = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    return {str(path) for path in paths if not any(part.startswith(("checkpoint-", "__pycache__")) for part in path.parts)}


def _run(job: Job, folder: Path, kill_after: float | None = None, chance: random.Random | None = None) -> tuple[int, str, bool]:
    """The exit status of the command, what it said, and whether it or a process of it was killed, after so many seconds."""
    with tempfile.TemporaryFile() as said:
        child = in_a_process(lambda: _command(job.arguments(folder), folder), said.fileno())
        deadline = time.monotonic() + (_LONGEST_SECONDS if kill_after is None else kill_after)
        was_killed = False
        while (ended := os.waitpid(child, os.WNOHANG))[0] == 0:
            if time.monotonic() >= deadline:
                # Where a process of the command is killed, the command itself finds out and ends, or does its work again.
                victims = [child, *(_workers(child) if job.kills_workers and kill_after is not None else ())]
                with suppress(ProcessLookupError):
                    os.kill(chance.choice(victims) if chance else child, signal.SIGKILL)
                    was_killed = True
                deadline = time.monotonic() + _LONGEST_SECONDS
            time.sleep(0.001)
        said.seek(0)
        return os.waitstatus_to_exitcode(ended[1]), said.read().decode(errors="replace"), was_killed


def _workers(process: int) -> list[int]:
    """The processes that a process has started."""
    started: list[int] = []
    for thread in Path(f"/proc/{process}/task").glob("*/children"):
        with suppress(OSError):  # it has ended
            started += map(int, thread.read_text().split())
    return started


def in_a_process(work: Callable[[], None], output: int) -> int:
    """Do something in a copy of this process, which has imported everything already; returns the copy's id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.dup2(output, 1)
        os.dup2(output, 2)
        work()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _command(arguments: Sequence[str], folder: Path) -> None:
    from rm_plugins.cli import main

    os.chdir(folder)
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    sys.path.insert(0, str(folder))
    main(list(arguments), prog_name="rm-plugins")
