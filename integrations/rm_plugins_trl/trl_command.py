"""Commands that take options as TRL's scripts do, with a YAML configuration and several processes. Importing it imports no trl."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from rm_plugins.cli.command import INTERRUPTED, Command
from rm_plugins.cli.printed import echo
from rm_plugins.cli.silence import silenced_libraries
from rm_plugins.errors import RmPluginsError
from rm_plugins_trl.reward_training.checkpoints import last_checkpoint

if TYPE_CHECKING:
    from rm_plugins_trl.launching import Launch

_OF_CLICK = ("-h", "--help", "--help-all", "-q", "--quiet", "-v", "--verbose")


class TrainOption(NamedTuple):
    """An option as ``--help`` shows it; `default` is empty where there is none, or where the help says it."""

    flag: str
    metavar: str
    help: str
    default: str = ""


EVALUATION_AND_CHECKPOINTS = (
    TrainOption("--eval_strategy", "no|steps|epoch", "When to evaluate during training.", "no"),
    TrainOption("--logging_steps", "N", "Steps between two lines of the table.", "10"),
    TrainOption("--save_steps", "N", "Steps between two checkpoints.", "500"),
    TrainOption("--resume_from_checkpoint", "true", "Resume from the last checkpoint of --output_dir."),
    TrainOption("--report_to", "TRACKER", "Such as wandb or tensorboard.", "none"),
)
"""Those of every training."""

LAUNCHER = "Several processes"
OF_LAUNCHER = (
    TrainOption("--accelerate", "ddp|fsdp2|zero2|zero3", "How several devices share the training."),
    TrainOption("--num_processes", "N", "One for each device; as in `accelerate launch`."),
    TrainOption("--accelerate_config", "NAME|FILE", "A configuration of TRL's or your own."),
)
"""Those that start several processes; `accelerate launch` has more."""


@dataclass(frozen=True)
class TrlProgram:
    """A training whose options are the fields of dataclasses, as in TRL's scripts.

    Args:
        name: The command's name.
        module: The module that a launcher starts on each process; it calls `run_as_one_of_several`.
        groups: The common options, by heading.
        configurations: Imports and returns the dataclasses.
        train: The training, given the arguments and an instance of each dataclass.
        set_defaults: Changes the parser's defaults, given the arguments, before they are parsed.
        advice: What to do instead of giving an option that there is not; empty if unknown.
        launcher: The options that start several processes.
        check_launch: Refuses what the launcher is asked for if the training does not support it.
        plan: Prints what the training would need, given the arguments, what the launcher is asked for
            and the dataclasses, and returns whether it did.
    """

    name: str
    module: str
    groups: Mapping[str, Sequence[TrainOption]]
    configurations: Callable[[], tuple[type[Any], ...]]
    train: Callable[..., None]
    set_defaults: Callable[[Any, Sequence[str]], None] = lambda parser, arguments: None
    advice: Callable[[str], str] = lambda option: ""
    launcher: Sequence[TrainOption] = OF_LAUNCHER
    check_launch: Callable[[Launch], None] = lambda asked: None
    plan: Callable[..., bool] | None = None

    def run(self, arguments: Sequence[str], *, launched: bool = False) -> None:
        """Parse the arguments and train, under ``accelerate launch`` if they ask for it.

        Args:
            arguments: The arguments.
            launched: Whether a launcher has started this process. It took its settings from the configuration file, too.

        Raises:
            UsageError: An option is unknown, or a value cannot be read.
        """
        _check_config(arguments)
        _check_paths(self.name, arguments)
        parser = self.parser()
        self.set_defaults(parser, arguments)
        try:
            *parsed, from_config, from_line = parser.parse_args_and_config(
                list(arguments), return_remaining_strings=True, separate_remaining_strings=True
            )
        except RmPluginsError:
            raise
        except (ValueError, TypeError, ImportError) as error:  # of the dataclasses, about values that do not fit together
            raise click.UsageError(str(error)) from error
        from rm_plugins_trl.accelerate_checks import check_environment
        from rm_plugins_trl.launching import NOTHING_ASKED, asked_of, launch

        args = next(one for one in parsed if hasattr(one, "use_cpu"))
        launcher = [*from_config, *from_line]
        asked = asked_of(self.name, launcher, options=self.options, advice=self.advice) if launcher else NOTHING_ASKED
        if self.plan is not None and self.plan(arguments, asked, *parsed):
            return
        if launched and from_line:
            raise click.UsageError(
                f"{from_line[0]} is for a launcher, and this process was started by one. Give it to that one."
            )
        if launched or not launcher:
            check_environment(args)
            self.train(arguments, *parsed)
        else:
            self.check_launch(asked)
            launch(self.module, asked, _without(list(arguments), from_line), args)

    def run_as_one_of_several(self) -> None:
        """What each process of a launcher does: a failure is a message and an exit code, and the launcher ends the others."""
        with silenced_libraries():
            try:
                self.run(sys.argv[1:], launched=True)
            except KeyboardInterrupt:
                sys.exit(INTERRUPTED)
            except (RmPluginsError, click.ClickException, OSError) as error:
                echo(f"Error: {error}", err=True)
                sys.exit(1)

    def parser(self) -> Any:
        """TRL's parser of the dataclasses."""
        from trl import TrlParser

        parser = TrlParser(self.configurations(), prog=f"rm-plugins {self.name}")
        parser.error = partial(_refuse, self.name)
        return parser

    def options(self) -> list[str]:
        """Every option, as it is written on the command line."""
        return [option for action in self.parser()._actions for option in action.option_strings]

    def own_options(self) -> set[str]:
        """The names of the options that are declared here and not in TRL or transformers."""
        return {
            name
            for configuration in self.configurations()
            for one in configuration.__mro__
            if one.__module__.startswith("rm_plugins_trl")
            for name in vars(one).get("__annotations__", ())
        }


class TrlCommand(Command):
    """Takes options as TRL writes them, and shows the common ones in its help.

    Args:
        arguments: As of `Command`.
        program: What it runs.
        settings: As of `Command`.
    """

    def __init__(self, *arguments: Any, program: TrlProgram, **settings: Any) -> None:
        help_all = click.Option(
            ["--help-all"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=partial(_show_all_options, program),
            help="Show all options and exit.",
        )
        super().__init__(
            *arguments, **{**settings, "params": [*(settings.get("params") or ()), help_all], "resuming": how_to_resume}
        )
        self.program = program

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Hand over all options except those that every command has."""
        ours = [argument for argument in args if argument in _OF_CLICK]
        return super().parse_args(ctx, [*ours, "--", *(argument for argument in args if argument not in _OF_CLICK)])

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options that each call has."""
        formatter.write_usage(ctx.command_path, "--model_name_or_path MODEL --dataset_name DATA [OPTIONS]")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the common options below their headings."""
        for title, options in {**self.program.groups, LAUNCHER: self.program.launcher}.items():
            with formatter.section(title):
                formatter.write_dl(
                    [
                        (
                            f"{option.flag} {option.metavar}".strip(),
                            f"{option.help}{f' [{option.default}]' * bool(option.default)}",
                        )
                        for option in options
                    ],
                    col_max=34,
                )
        formatter.write_paragraph()
        formatter.write_text(
            "-q prints results, warnings and errors only, and -v also prints tracebacks. --help-all shows all options, ours before TRL's."
        )


def value_of(name: str, arguments: Sequence[str]) -> str | None:
    """The value of an option on the command line; None if it is not there.

    >>> value_of("preset", ["--seed", "1", "--preset=chat"])
    'chat'
    """
    given = _values(arguments).get(name)
    return given or None


def _values(arguments: Sequence[str]) -> dict[str, str]:
    """The options and their values, as far as can be told without the parser."""
    options: dict[str, str] = {}
    for argument, following in pairwise([*arguments, ""]):
        if argument.startswith("--"):
            name, equals, value = argument[2:].partition("=")
            options[name.replace("-", "_")] = value if equals else following
    return options


def _show_all_options(program: TrlProgram, ctx: click.Context, _: click.Parameter, is_given: bool) -> None:
    if not is_given or ctx.resilient_parsing:
        return
    ours = program.own_options()
    actions = [action for action in program.parser()._actions if action.option_strings and action.dest != "help"]
    formatter = ctx.make_formatter()
    for title, is_ours in (("Options of rm-plugins", True), ("Options of TRL and transformers", False)):
        with formatter.section(title):
            formatter.write_dl([_described(action) for action in actions if (action.dest in ours) == is_ours], col_max=34)
        if title == "Options of rm-plugins":
            with formatter.section(LAUNCHER):
                formatter.write_dl(
                    [(f"{option.flag} {option.metavar}", option.help) for option in program.launcher], col_max=34
                )
    formatter.write_paragraph()
    formatter.write_text("`accelerate launch --help` shows the other options that start several processes.")
    echo(formatter.getvalue().strip())
    ctx.exit()


def _described(action: Any) -> tuple[str, str]:
    """An option of argparse, and its help with its default."""
    text = " ".join((action.help or "").replace("%%", "%").split()).replace("(default: %(default)s)", "").strip()
    default = "" if action.default in (None, "", "==SUPPRESS==") else f" [{action.default}]"
    values = "|".join(map(str, action.choices)) if action.choices and len(action.choices) < 6 else ""
    return f"{action.option_strings[0]} {values}".strip(), f"{text}{default}"


def how_to_resume(parameters: Mapping[str, Any]) -> str:
    """What to do after Ctrl-C, given the command's parameters."""
    arguments = list(parameters.get("arguments", ()))
    folder = next((value for name, value in pairwise(arguments) if name == "--output_dir"), None)
    again = "run the same command again with --resume_from_checkpoint true"
    if folder is None:
        return f"If checkpoints were saved in the output folder, {again}."
    last = last_checkpoint(Path(folder))
    if last is None:
        return (
            f"There is no complete checkpoint in {folder} yet, so the training starts again from the beginning. --save_steps N saves more "
            "often."
        )
    return f"The last complete checkpoint is {last.path}: {again}."


def _check_config(arguments: Sequence[str]) -> None:
    """Refuse a configuration file that is not there, or not a YAML mapping.

    Raises:
        SpecError: It cannot be read.
        UsageError: ``--config`` has no value.
    """
    if "--config" not in arguments:
        return
    place = list(arguments).index("--config") + 1
    if place == len(arguments):
        raise click.UsageError("--config needs a file: --config FILE.yaml.")
    from rm_plugins.written_settings import read_settings

    read_settings(Path(arguments[place]))


def _check_paths(command: str, arguments: Sequence[str]) -> None:
    """Refuse a used output folder, or a data file that is not there, before the imports that the parser needs, which take seconds.

    The settings of a configuration file are checked after them.

    Raises:
        OutputError: The folder holds an earlier training, and no option asks to resume or overwrite it.
        DataError: A data file is not there.
    """
    from rm_plugins.data.row_files import check_source
    from rm_plugins_trl.reward_training.started_folder import check_folder

    options = _values(arguments)
    if "plan" in options:
        return  # nothing is written or read
    # Only the start of a name is compared, because argparse takes shortened names.
    is_settled = any(name.startswith(("config", "overwrite", "resume")) for name in options)
    if options.get("output_dir") and not is_settled:
        unset = {"overwrite_output_dir": False, "resume_from_checkpoint": None}
        check_folder(SimpleNamespace(output_dir=options["output_dir"], **unset), arguments, command=command)
    for name in ("dataset_name", "eval_dataset_name"):
        if options.get(name):
            check_source(options[name])


def _refuse(command: str, message: str) -> None:
    """The error of the parser, without the usage of all options, which is hundreds of lines."""
    told = re.sub(r"^argument (--\w+)[^:]*: ", r"\1: ", message)
    raise click.UsageError(f"{told}. `rm-plugins {command} --help-all` describes the options.")


def _without(arguments: list[str], taken: list[str]) -> list[str]:
    """The arguments without those that the launcher takes, which are an ordered part of them."""
    kept = []
    for argument in arguments:
        if taken and argument == taken[0]:
            taken = taken[1:]
        else:
            kept.append(argument)
    return kept
