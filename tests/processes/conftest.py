"""A folder with rewards that can be killed, rows, and the program in a process of its own."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.kills.killing import in_a_process

RULES = '''
import json
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path


def length(samples):
    """The completion's length; files ``kill-*.json`` name the process to kill."""
    for file in sorted(Path().glob("kill-*.json")):
        try:
            os.rename(file, f"met-{file.name}")  # one process takes it
        except FileNotFoundError:
            continue
        asked = json.loads(Path(f"met-{file.name}").read_text())
        is_own = asked["who"] == "worker" or multiprocessing.parent_process() is None
        who = os.getpid() if is_own else os.getppid()
        threading.Timer(asked["seconds"], os.kill, [who, signal.SIGKILL]).start()
        break
    time.sleep(0.01)
    return [float(len(sample.completion)) for sample in samples]


def deadly(samples):
    """Dies of one sample."""
    if any(sample.completion == "yes" * 5 for sample in samples):
        os.kill(os.getpid(), signal.SIGKILL)
    return length(samples)


def refuses(samples):
    """Fails on one sample."""
    if any(sample.completion == "yes" * 5 for sample in samples):
        raise ValueError("five is too many")
    return length(samples)
'''
SPECS = {
    "plain.yaml": "{provider: function, function: 'rules:length'}",
    "ranked.yaml": "{provider: function, function: 'rules:length', transform: rank-in-group}",
    "running.yaml": "{provider: function, function: 'rules:length', transform: {name: zscore, running: true, warmup: 3}}",
}
ROWS = [{"prompt": f"Q{number // 5}", "completion": "yes" * (number * 7 % 11 + 1), "n": number} for number in range(64)]
_LONGEST_SECONDS = 120


class Program:
    """Runs the program in processes that have imported it already."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.said = ""

    def start(self, *arguments: str, environment: Mapping[str, str] | None = None, said: str = "said") -> int:
        """Start it; returns the id of the process."""
        with open(self.folder / said, "wb") as file:
            return in_a_process(lambda: self._command(arguments, environment or {}), file.fileno())

    def end(self, child: int, said: str = "said") -> int:
        """Wait until it ends; returns its exit status."""
        until = time.monotonic() + _LONGEST_SECONDS
        while (ended := os.waitpid(child, os.WNOHANG))[0] == 0:
            if time.monotonic() > until:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                raise TimeoutError((self.folder / said).read_text())
            time.sleep(0.005)
        self.said = (self.folder / said).read_text()
        return os.waitstatus_to_exitcode(ended[1])

    def __call__(self, *arguments: str) -> int:
        """Run it; returns its exit status."""
        return self.end(self.start(*arguments))

    def kill(self, number: int, who: str, seconds: float = 0.0) -> None:
        """Have the reward kill ``worker`` or ``parent`` so many seconds after it is called."""
        (self.folder / f"kill-{number}.json").write_text(json.dumps({"who": who, "seconds": seconds}))

    def kills(self) -> int:
        """How many kills have begun since the last call."""
        met = list(self.folder.glob("met-*"))
        for file in met:
            file.unlink()
        return len(met)

    def _command(self, arguments: tuple[str, ...], environment: Mapping[str, str]) -> None:
        from rm_plugins.cli import main

        os.setpgid(0, 0)  # as a shell does for a command, so that Ctrl-C reaches all of its processes
        sys.stdout, sys.stderr = (os.fdopen(os.dup(number), "w") for number in (1, 2))  # not pytest's
        logging.getLogger().handlers.clear()
        os.chdir(self.folder)
        os.environ.update({"XDG_CACHE_HOME": str(self.folder / "cache"), "COLUMNS": "500", **environment})
        sys.path.insert(0, str(self.folder))
        main(list(arguments), prog_name="rm-plugins")


def running_in(folder: Path) -> list[int]:
    """The processes that work in a folder."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            try:
                if os.readlink(process / "cwd") == str(folder):
                    found.append(int(process.name))
            except OSError:
                continue
    return found


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    (tmp_path / "rules.py").write_text(RULES)
    for name, spec in SPECS.items():
        (tmp_path / name).write_text(spec)
    (tmp_path / "in.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
    import rm_plugins.cli.score
    import rm_plugins.jobs.scored_rows  # noqa: F401 - so that its processes need not

    yield Program(tmp_path)
    for process in running_in(tmp_path):
        os.kill(process, signal.SIGKILL)


@pytest.fixture
def eventually() -> Callable[[Callable[[], bool]], None]:
    """Waits until something is so."""

    def wait(is_so: Callable[[], bool]) -> None:
        until = time.monotonic() + _LONGEST_SECONDS
        while not is_so():
            assert time.monotonic() < until
            time.sleep(0.02)

    return wait
