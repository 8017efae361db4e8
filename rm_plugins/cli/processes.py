"""``--processes``, and what commands that score do under a launcher."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from rm_plugins.cli.printed import is_verbose, printable_messages
from rm_plugins.cli.silence import silenced_libraries

if TYPE_CHECKING:
    from rm_plugins.jobs.crew import Crew


def shared_by_processes(command: Callable[..., None]) -> Callable[..., None]:
    """Add ``--processes`` to a command, which gets the processes as ``crew``; None where it scores by itself.

    Under a launcher, process 0 runs the command, and the other processes score for it.
    """

    @click.option(
        "--processes",
        metavar="N|all",
        callback=_number,
        help="Score in N processes, each with a device of its own; all is one per accelerator.",
    )
    @wraps(command)
    def shared(*arguments: Any, processes: int | str | None, **options: Any) -> None:
        from rm_plugins.jobs.launched import Launch

        launch = Launch.of_environment()
        if launch is not None and processes is not None:
            raise click.UsageError(
                f"A launcher has started {launch.processes} processes already. Leave out --processes, or the launcher."
            )
        if launch is not None and launch.rank:
            launch.assist()
            return
        if launch is not None:
            with launch.crew(_prepare()) as crew:
                command(*arguments, crew=crew, **options)
            return
        with _own_crew(processes) as crew:
            command(*arguments, crew=crew, **options)

    return shared


@contextmanager
def _own_crew(processes: int | str | None) -> Iterator[Crew | None]:
    if processes is None or processes == 1:
        yield None
        return
    from rm_plugins.devices import accelerators
    from rm_plugins.jobs.crew import Crew, own_processes

    number = len(accelerators()) if processes == "all" else int(processes)
    if not number:
        raise click.UsageError("--processes all starts one per accelerator, and torch sees none. Give a number, such as 2.")
    with Crew(own_processes(number, _prepare())) as crew:
        yield crew


def _prepare() -> Callable[[], AbstractContextManager[Any]]:
    """What sets up another process like this one."""
    return printable_messages if is_verbose(click.get_current_context()) else prepared_quietly


@contextmanager
def prepared_quietly() -> Iterator[None]:
    """Within it, a process prints what the program would print without ``-v``."""
    with printable_messages(), silenced_libraries():
        yield


def _number(_: click.Context, __: click.Parameter, text: str | None) -> int | str | None:
    if text is None or text == "all":
        return text
    if not text.isdecimal() or not int(text):
        raise click.BadParameter(f"{text!r} is neither a number of processes nor `all`.")
    return int(text)
