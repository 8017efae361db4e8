"""Runs programs in forks of a process that has imported the libraries: they start in a moment instead of seconds."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from accelerate.commands import launch

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.warm_imports"])
_LONGEST_SECONDS = 3_000


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


def run_warm(*arguments: str | Path, cwd: Path | None = None, status: int = 0, **environment: str) -> str:
    """Run a module or file of Python as a program; returns what it printed, and fails with it.

    Args:
        arguments: The module's name or the file's path, then its arguments.
        cwd: The folder to run in, by default this process's.
        status: The exit status that it should have; of one that is killed, minus the number of the signal.
        environment: Changes to the environment.
    """
    return _run_all(arguments, cwd, status, [environment])


def run_warm_group(processes: int, *arguments: str | Path, cwd: Path | None = None, **environment: str) -> str:
    """Run a program in several processes that torch takes for those of one ``torchrun --standalone``; returns what they printed.

    As with torchrun, the group meets at a store of the process that starts it, and none outlives one that fails.

    Args:
        processes: How many.
        arguments: See `run_warm`.
        cwd: Likewise.
        environment: Likewise.
    """
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # it is public, and not listed

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    shared = {
        **environment,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_RESTART_COUNT": "0",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        **dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(processes)),
    }
    ranks = [dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank)) for rank in range(processes)]
    return _run_all(arguments, cwd, 0, [{**shared, **rank} for rank in ranks])


def _run_all(arguments: Sequence[str | Path], cwd: Path | None, status: int, environments: Sequence[Mapping[str, str]]) -> str:
    words = [*map(str, arguments)]
    with tempfile.TemporaryDirectory() as folder:
        logs = [Path(folder) / str(number) for number in range(len(environments))]
        started = [
            start_warm(_run, words, log, cwd or Path.cwd(), {**os.environ, **environment})
            for log, environment in zip(logs, environments, strict=True)
        ]
        running, until = list(started), time.monotonic() + _LONGEST_SECONDS
        while running and time.monotonic() < until:
            wait([process.sentinel for process in running], until - time.monotonic())
            running = [process for process in running if process.exitcode is None]
            if any(process.exitcode for process in started):
                break
        for process in running:
            process.kill()
            process.join()
        printed = "".join(log.read_text(encoding="utf-8", errors="replace") for log in logs if log.exists())
    assert [process.exitcode for process in started] == [status] * len(started), f"{' '.join(words)}\n{printed}"
    return printed


def _run(words: list[str], log: Path, cwd: Path, environment: Mapping[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(file, stream)
    sys.argv = ["", *words[1:]]
    sys.path.insert(0, str(cwd))  # as `python -m` does
    launch.simple_launcher = _launch_here  # for one process, `accelerate launch` would start another Python
    code: object = 0
    try:
        if words[0].endswith(".py"):
            runpy.run_path(words[0], run_name="__main__")
        else:
            runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    for output in (sys.stdout, sys.stderr):
        output.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def _launch_here(arguments: Any) -> None:
    """What accelerate's own launcher of one process does, in this process."""
    script = arguments.training_script
    os.environ.update(launch.prepare_simple_launcher_cmd_env(arguments)[1])
    sys.argv = [script, *arguments.training_script_args]
    if arguments.module:
        runpy.run_module(script, run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = str(Path(script).parent)
        runpy.run_path(script, run_name="__main__")
