"""Starts a training on several processes. Importing it imports neither torch nor trl."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import click
import yaml

from rm_plugins.errors import SpecError, nearest_name
from rm_plugins_trl.accelerate_checks import check_devices, check_settings, device_count
from rm_plugins_trl.accelerate_settings import FOLDER, AccelerateSettings, config_in, merged, named_config, taken

OURS = ("--accelerate", "--accelerate_config")
"""The launcher's options that accelerate does not know: a configuration of ours, and TRL's name for a file."""


class Launch(NamedTuple):
    """What the launcher's arguments ask for.

    Args:
        settings: The same, as they can be asked about.
        arguments: Those of accelerate's launcher; a configuration file is not among them.
        config: What its configuration file holds; None if accelerate chooses one.
    """

    settings: AccelerateSettings
    arguments: list[str]
    config: dict[str, Any] | None


NOTHING_ASKED = Launch(AccelerateSettings({}, {}), [], None)
"""Without any argument of the launcher, the training runs in this process."""


def launch(module: str, asked: Launch, own: Sequence[str], args: Any) -> None:
    """Start a command's module on several processes, as ``accelerate launch`` does.

    Args:
        module: The module to start.
        asked: What the launcher is asked for.
        own: The arguments of the module.
        args: The training's arguments.

    Raises:
        SpecError: The settings contradict each other, or the machine has too few devices.
        ClickException: A process failed.
    """
    check_settings(asked.settings, args)
    check_devices(asked.settings, args)
    on_cpu = asked.settings.on_cpu or args.use_cpu
    processes = asked.settings.processes
    if on_cpu and (processes or 1) > 1 and "mpirun_hostfile" not in asked.settings.line:
        # Without MPI, accelerate's launcher starts one process on a CPU however many it is asked for.
        from torch.distributed.run import main

        os.environ["ACCELERATE_USE_CPU"] = "true"
        with _failures_of_processes():
            main(["--standalone", "--nproc_per_node", str(processes), "--module", module, *own])
        return
    from accelerate.commands.launch import launch_command

    arguments = asked.arguments
    if processes is None and asked.config is not None:
        arguments = [*arguments, "--num_processes", str(1 if on_cpu else max(device_count(), 1))]
    with TemporaryDirectory() as folder, _failures_of_processes():
        if asked.config is not None:
            file = Path(folder, "accelerate.yaml")
            file.write_text(yaml.safe_dump(asked.config), encoding="utf-8")
            arguments = ["--config_file", str(file), *arguments]
        launch_command(_parsed([*arguments, "--module", module, *own]))


def asked_of(
    command: str, launcher: Sequence[str], *, options: Callable[[], Sequence[str]], advice: Callable[[str], str]
) -> Launch:
    """What the launcher's arguments ask for.

    Args:
        command: The command's name.
        launcher: The arguments that the command does not know.
        options: Gives the command's options, which a misspelt one is compared with.
        advice: What to do instead of giving an option that there is not; empty if unknown.

    Raises:
        UsageError: The launcher does not know an argument either.
        SpecError: A configuration cannot be read, or contradicts the one that is named.
    """
    from accelerate.commands.launch import launch_command_parser

    known = [*(option for action in launch_command_parser()._actions for option in action.option_strings), *OURS]
    for argument in launcher:
        option = argument.partition("=")[0]
        if option.startswith("--") and option not in known:
            raise click.UsageError(_no_option(command, option, known, options, advice))
        if not option.startswith("-") and argument == launcher[0]:
            raise click.UsageError(f"{argument!r} is not an option. `rm-plugins {command} --help` shows the options.")
    name, arguments = taken(launcher, "--accelerate")
    trls, arguments = taken(arguments, "--accelerate_config")
    file, arguments = taken(arguments, "--config_file")
    if trls is not None and file is not None:
        raise click.UsageError("--accelerate_config and --config_file both name a configuration. Leave out one of them.")
    if trls is not None:
        file = _file_of(trls)
    parsed = _parsed([*arguments, "--module", "none"])
    line = {said: getattr(parsed, said) for said in getattr(parsed, "nondefault", ()) if said not in ("module", "config_file")}
    if file is None and name is None:
        # accelerate then reads what `accelerate config` has written, if anything.
        from accelerate.commands.config import default_config_file

        written = config_in(Path(default_config_file)) if Path(default_config_file).is_file() and not parsed.cpu else {}
        return Launch(AccelerateSettings(line, written, str(default_config_file)), arguments, None)
    shown = file or str(FOLDER / f"{name}.yaml")
    config = config_in(Path(shown)) if file else {}
    if name is not None:
        config = merged(name, config, shown) if file else named_config(name)
    return Launch(AccelerateSettings(line, config, shown if file else f"--accelerate {name}"), arguments, config)


def _file_of(name: str) -> str:
    """The file that ``--accelerate_config`` names.

    Raises:
        UsageError: It is neither a file nor a name of TRL's.
    """
    from rm_plugins_trl.trl_internals import resolve_accelerate_config_argument

    try:
        return str(resolve_accelerate_config_argument(["--accelerate_config", name])[1])
    except ValueError as error:
        raise click.UsageError(
            f"--accelerate_config: {name!r} is neither a file nor a name of TRL's configurations. --accelerate takes ours."
        ) from error


def _parsed(arguments: Sequence[str]) -> Namespace:
    from accelerate.commands.launch import launch_command_parser

    return launch_command_parser().parse_args([*arguments])  # type: ignore[no-any-return]  # accelerate is untyped here


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
    except ValueError as error:  # of the launcher, about its arguments and its file
        raise SpecError(f"accelerate's launcher refuses its settings: {error}") from error
