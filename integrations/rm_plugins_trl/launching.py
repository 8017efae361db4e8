"""Starts a training on several processes. Importing it imports no trl."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import click

from rm_plugins.errors import nearest_name


def launch(
    command: str,
    module: str,
    launcher: Sequence[str],
    own: Sequence[str],
    *,
    options: Callable[[], Sequence[str]],
    advice: Callable[[str], str],
) -> None:
    """Start a command's module on several processes, as ``accelerate launch`` does.

    Args:
        command: The command's name.
        module: The module to start.
        launcher: The arguments that the command does not know.
        own: Those that it does.
        options: Gives the command's options, which a misspelt one is compared with.
        advice: What to do instead of giving an option that there is not; empty if unknown.

    Raises:
        UsageError: The launcher does not know an argument either.
        ClickException: A process failed.
    """
    from accelerate.commands.launch import launch_command, launch_command_parser

    from rm_plugins_trl.trl_internals import resolve_accelerate_config_argument

    known = [option for action in launch_command_parser()._actions for option in action.option_strings]
    for argument in launcher:
        name = argument.partition("=")[0]
        if name.startswith("--") and name not in (*known, "--accelerate_config"):
            raise click.UsageError(_no_option(command, name, known, options, advice))
        if not name.startswith("-") and argument == launcher[0]:
            raise click.UsageError(f"{argument!r} is not an option. `rm-plugins {command} --help` shows the options.")
    resolved = resolve_accelerate_config_argument(list(launcher))
    settings = launch_command_parser().parse_args([*resolved, "--module", module, *own])
    if settings.cpu and (settings.num_processes or 1) > 1 and settings.mpirun_hostfile is None:
        # Without MPI, accelerate's launcher starts one process on a CPU however many it is asked for.
        from torch.distributed.run import main

        os.environ["ACCELERATE_USE_CPU"] = "true"
        with _failures_of_processes():
            main(["--standalone", "--nproc_per_node", str(settings.num_processes), "--module", module, *own])
    else:
        with _failures_of_processes():
            launch_command(settings)


def _no_option(
    command: str, name: str, known: Sequence[str], options: Callable[[], Sequence[str]], advice: Callable[[str], str]
) -> str:
    if told := advice(name.removeprefix("--").replace("-", "_")):
        return f"{name} is not an option of `rm-plugins {command}`. {told}."
    nearest = nearest_name(name, [*options(), *known])
    listed = f"`rm-plugins {command} --help-all` lists ours, `accelerate launch --help` the others."
    return f"There is no option {name}. {f'Did you mean {nearest}?' if nearest else listed}"


@contextmanager
def _failures_of_processes() -> Iterator[None]:
    """Raise what launchers say of failed processes, which have printed their own errors, as one line."""
    from subprocess import CalledProcessError

    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        yield
    except SignalException as error:
        raise KeyboardInterrupt from error
    except (ChildFailedError, CalledProcessError) as error:
        raise click.ClickException("The training failed; the errors of its processes are above.") from error
