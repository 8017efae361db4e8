"""A folder with rewards that can be killed, rows, and the program in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.warm_process import start_warm

RULES = '''
import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any


def length(samples):
    """The completion's length; files ``kill-*.json`` name the process to kill."""
    for file in sorted(Path().glob("kill-*.json")):
        try:
            os.rename(file, f"met-{file.name}")  # one process takes it
        except FileNotFoundError:
            continue
        asked = json.loads(Path(f"met-{file.name}").read_text())
        who = os.getpid() if asked["who"] == "worker" else int(os.environ["PROGRAM"])
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
        self._running: dict[int, Any] = {}

    def start(self, *arguments: str, environment: Mapping[str, str] | None = None, said: str = "said") -> int:
        """Start it; returns the id of the process."""
        process = start_warm(_run, self.folder, arguments, {**os.environ, **(environment or {})}, said)
        self._running[process.pid] = process
        return int(process.pid)

    def end(self, child: int, said: str = "said") -> int:
        """Wait until it ends; returns its exit status."""
        process = self._running.pop(child)
        process.join(_LONGEST_SECONDS)
        self.said = (self.folder / said).read_text()
        if process.exitcode is None:
            process.kill()
            raise TimeoutError(self.said)
        return int(process.exitcode)

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


def _run(folder: Path, arguments: tuple[str, ...], environment: Mapping[str, str], said: str) -> None:
    """Run the program in this process, which was forked for it."""
    os.setpgid(0, 0)  # as a shell does for a command, so that Ctrl-C reaches all of its processes
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which whoever runs the tests may ignore
    os.chdir(folder)
    file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(file, stream)
    os.environ.clear()
    os.environ.update({**environment, "XDG_CACHE_HOME": str(folder / "cache"), "COLUMNS": "500", "PROGRAM": str(os.getpid())})
    sys.path.insert(0, str(folder))
    from rm_plugins.cli import main

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
