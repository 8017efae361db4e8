"""Starts a training on several processes. Importing it imports no trl."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from rm_plugins.errors import nearest_name

if TYPE_CHECKING:
    from rm_plugins_trl.trl_command import TrlProgram


def launch(program: TrlProgram, launcher: Sequence[str], own: Sequence[str]) -> None:
    """Start a program's module on several processes, as ``accelerate launch`` does.

    Args:
        program: The training.
        launcher: The arguments that the program does not know.
        own: Those that it does.

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
            raise click.UsageError(_no_option(program, name, known))
        if not name.startswith("-") and argument == launcher[0]:
            raise click.UsageError(f"{argument!r} is not an option. `rm-plugins {program.name} --help` shows the options.")
    resolved = resolve_accelerate_config_argument(list(launcher))
    options = launch_command_parser().parse_args([*resolved, "--module", program.module, *own])
    if options.cpu and (options.num_processes or 1) > 1 and options.mpirun_hostfile is None:
        # Without MPI, accelerate's launcher starts one process on a CPU however many it is asked for.
        from torch.distributed.run import main

        os.environ["ACCELERATE_USE_CPU"] = "true"
        with _failures_of_processes():
            main(["--standalone", "--nproc_per_node", str(options.num_processes), "--module", program.module, *own])
    else:
        with _failures_of_processes():
            launch_command(options)


def _no_option(program: TrlProgram, name: str, known: Sequence[str]) -> str:
    if advice := program.advice(name.removeprefix("--").replace("-", "_")):
        return f"{name} is not an option of `rm-plugins {program.name}`. {advice}."
    own_names = [option for action in program.parser()._actions for option in action.option_strings]
    nearest = nearest_name(name, [*own_names, *known])
    listed = f"`rm-plugins {program.name} --help-all` lists ours, `accelerate launch --help` the others."
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
