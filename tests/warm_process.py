"""Runs programs in forks of a process that has imported the libraries: they start in a moment instead of seconds."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.warm_imports"])


def start_warm(run: Callable[..., None], *arguments: Any) -> Any:
    """Start a function of a module in a fork; returns the `multiprocessing.Process`."""
    process = _CONTEXT.Process(target=run, args=arguments)
    process.start()
    return process


def call_warm(function: Callable[..., None], *arguments: Any) -> None:
    """Call a function of a module in a fork, which ends without freeing anything; fails with its traceback.

    This is for what uses gloo: its threads may wait for the interpreter's lock while the process waits for them to free their tensors.
    """
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "raised"
        process = start_warm(_call, log, function, *arguments)
        process.join(600)
        process.kill()
        assert process.exitcode == 0, log.read_text(encoding="utf-8") if log.exists() else "it did not end"


def _call(log: Path, function: Callable[..., None], *arguments: Any) -> None:
    try:
        function(*arguments)
    except BaseException:
        log.write_text(traceback.format_exc(), encoding="utf-8")
        os._exit(1)
    os._exit(0)


def run_warm(*arguments: str | Path, cwd: Path | None = None, **environment: str) -> str:
    """Run a module of this environment as a program; returns what it printed, and fails with it.

    Args:
        arguments: The module's name, then its arguments.
        cwd: The folder to run in, by default this process's.
        environment: Changes to the environment.
    """
    words = [*map(str, arguments)]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "printed"
        process = start_warm(_run, words, log, cwd or Path.cwd(), {**os.environ, **environment})
        process.join(3_000)
        process.kill()
        printed = log.read_text(encoding="utf-8", errors="replace")
    assert process.exitcode == 0, f"{' '.join(words)}\n{printed}"
    return printed


def _run(words: list[str], log: Path, cwd: Path, environment: Mapping[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(file, stream)
    sys.argv = ["", *words[1:]]
    code: object = 0
    try:
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    for output in (sys.stdout, sys.stderr):
        output.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))
