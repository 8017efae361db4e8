"""The command group: the built-in commands and those of plug-ins."""

from __future__ import annotations

import errno
import sys
from importlib import import_module
from io import TextIOWrapper
from typing import Any

import click

from rm_plugins import __version__
from rm_plugins.cli.printed import printable_messages
from rm_plugins.errors import DuplicateNameError, RmPluginsError
from rm_plugins.registry import default_registry

_BUILT_IN = ("calibrate", "data", "diff", "evaluate", "list", "merge", "rank", "report", "score", "serve", "show", "verify")


class _Program(click.Group):
    """Loads a command's module when the command is used, so that ``--help`` stays quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*_BUILT_IN, *_plugin_commands()})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in _BUILT_IN:
            command: click.Command = import_module(f"rm_plugins.cli.{cmd_name}").command
            return command
        commands = _plugin_commands()
        if cmd_name not in commands and default_registry().broken:
            raise click.UsageError(f"No such command {cmd_name!r}. {default_registry().suspects()}")
        return commands.get(cmd_name)

    def invoke(self, ctx: click.Context) -> Any:
        if isinstance(sys.stdout, TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # what a terminal or JSON has no character for is escaped
        with printable_messages():
            try:
                return super().invoke(ctx)
            except RmPluginsError as error:
                raise click.ClickException(str(error)) from error
            except OSError as error:
                if error.errno == errno.EPIPE:  # of `| head`: click ends without a word
                    raise
                raise click.ClickException(f"The system refuses what {ctx.invoked_subcommand} needs: {error}") from error


def _plugin_commands() -> dict[str, click.Command]:
    commands = default_registry().commands()
    for name in commands.keys() & set(_BUILT_IN):
        raise DuplicateNameError(
            f"The plug-in {commands[name].plugin!r} adds the command {name!r}, which is built in. Uninstall it."
        )
    return {name: plugin.command for name, plugin in commands.items()}


@click.group(cls=_Program, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, package_name="rm-plugins")
def main() -> None:
    """One reward, the same number everywhere in RLHF with TRL.

    A SPEC is a model folder, a hub id, a URL, module:function, a .yaml file, or a name in rm_plugins.yaml.
    """
