"""The command group: the built-in commands and those of plug-ins."""

from __future__ import annotations

import errno
import sys
import traceback
from importlib import import_module
from io import TextIOWrapper
from typing import Any

import click

from rm_plugins import __version__
from rm_plugins.cli.command import ADVICE, INTERRUPTED, verbosity_options
from rm_plugins.cli.printed import echo, is_verbose, printable_messages, until_verbose
from rm_plugins.cli.silence import silenced_libraries
from rm_plugins.errors import DuplicateNameError, RmPluginsError, nearest_name

_BUILT_IN = (
    "calibrate",
    "data",
    "diff",
    "evaluate",
    "judge-data",
    "list",
    "merge",
    "rank",
    "report",
    "score",
    "serve",
    "show",
    "verify",
)


class _Program(click.Group):
    """Loads a command's module when the command is used, so that ``--help`` stays quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*_BUILT_IN, *_plugin_commands()})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in _BUILT_IN:
            command: click.Command = import_module(f"rm_plugins.cli.{cmd_name.replace('-', '_')}").command
            return command
        commands = _plugin_commands()
        if cmd_name in commands or cmd_name.startswith("-"):
            return commands.get(cmd_name)
        from rm_plugins.registry import default_registry

        if default_registry().broken:
            raise click.UsageError(f"No such command {cmd_name!r}. {default_registry().suspects()}")
        nearest = nearest_name(cmd_name, self.list_commands(ctx))
        hint = f"Did you mean {nearest!r}?" if nearest else "`rm-plugins --help` lists the commands."
        raise click.UsageError(f"No such command {cmd_name!r}. {hint}", ctx)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            raise _as_proposed(error) from None

    def invoke(self, ctx: click.Context) -> Any:
        if isinstance(sys.stdout, TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # what a terminal or JSON has no character for is escaped
        with printable_messages(), until_verbose(ctx, silenced_libraries()):
            try:
                return super().invoke(ctx)
            except KeyboardInterrupt:
                echo(f"\nInterrupted. {ctx.meta.get(ADVICE, '')}".rstrip(), err=True)
                ctx.exit(INTERRUPTED)
            except click.NoSuchOption as error:
                raise _as_proposed(error) from None
            except (click.ClickException, click.exceptions.Exit, click.Abort):
                raise
            except RmPluginsError as error:
                raise _told(ctx, str(error)) from error
            except OSError as error:
                if error.errno == errno.EPIPE:  # of `| head`: click ends without a word
                    raise
                raise _told(ctx, f"The system refuses what {ctx.invoked_subcommand} needs: {error}") from error
            except MemoryError as error:
                raise _told(ctx, "There is not enough memory. Try a smaller --batch-size, or a smaller model.") from error
            except Exception as error:
                if any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__):  # torch's, without importing it
                    raise _told(ctx, f"The device has too little memory. {error}") from error
                if isinstance(error, (RuntimeError, ValueError)) and any(sign in str(error) for sign in _OF_PATHS):
                    raise _told(ctx, f"The system refuses a path that {ctx.invoked_subcommand} was given: {error}.") from error
                raise _told(ctx, f"{_UNEXPECTED} {type(error).__name__}: {error}{_where(error)}{_advice(ctx)}") from error


_OF_PATHS = ("embedded null", "has an empty name", "Symlink loop")
"""What Python says, not as an `OSError`, of paths that no system has."""

_UNEXPECTED = "Unexpected error, probably a fault in rm-plugins or in a plug-in:"


def _told(ctx: click.Context, message: str) -> click.ClickException:
    """The error to end with, after its traceback where the user asked for it; to be called while it is handled."""
    if is_verbose(ctx):
        echo(traceback.format_exc().rstrip(), err=True)
    return click.ClickException(message)


def _where(error: Exception) -> str:
    """The file and line where an error was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    return f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""


def _advice(ctx: click.Context) -> str:
    return "" if is_verbose(ctx) else "\nRun the same command with -v for the traceback."


def _as_proposed(error: click.NoSuchOption) -> click.NoSuchOption:
    """The error with the option that was probably meant, if any."""
    nearest = nearest_name(error.option_name, error.possibilities or ())
    vars(error).update(possibilities=[nearest] if nearest else None)
    return error


def _plugin_commands() -> dict[str, click.Command]:
    from rm_plugins.registry import default_registry

    commands = default_registry().commands()
    for name in commands.keys() & set(_BUILT_IN):
        raise DuplicateNameError(
            f"The plug-in {commands[name].plugin!r} adds the command {name!r}, which is built in. Uninstall it."
        )
    return {name: plugin.command for name, plugin in commands.items()}


@click.group(cls=_Program, context_settings={"help_option_names": ["-h", "--help"]})
@verbosity_options
@click.version_option(__version__, package_name="rm-plugins")
def main() -> None:
    """Define a reward once and use it in every TRL trainer, on a server and in evaluations, with the same scores everywhere.

    A SPEC is a model folder, a hub id, a URL, module:function, a .yaml file, or a name in rm_plugins.yaml.
    """
