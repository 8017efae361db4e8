"""A command of the program: its help fits a screen, ``-q`` and ``-v`` are understood everywhere, and Ctrl-C says how to resume."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import click

from rm_plugins.cli.printed import echo, set_quiet, set_verbose

INTERRUPTED = 130
"""The exit code after Ctrl-C, as shells have it: 128 plus the number of the signal."""

ADVICE = "rm_plugins.advice"
"""Where a context keeps what to do after the interruption of its command."""

_HELP_ALL = "rm_plugins.help_all"
_GENERAL = ("quiet", "verbose", "help", "help_all")

_Decorated = TypeVar("_Decorated", bound=Callable[..., Any])


def _on_quiet(ctx: click.Context, _: click.Parameter, is_given: bool) -> None:
    if is_given:
        set_quiet(ctx)


def _on_verbose(ctx: click.Context, _: click.Parameter, is_given: bool) -> None:
    if is_given:
        set_verbose(ctx)


def _on_help_all(ctx: click.Context, _: click.Parameter, is_given: bool) -> None:
    if is_given and not ctx.resilient_parsing:
        ctx.meta[_HELP_ALL] = True
        echo(ctx.get_help())
        ctx.exit()


def _verbosity_options() -> list[click.Option]:
    settings: dict[str, Any] = {"is_flag": True, "expose_value": False, "is_eager": True}
    return [
        click.Option(["-q", "--quiet"], callback=_on_quiet, help="Print results, warnings and errors only.", **settings),
        click.Option(
            ["-v", "--verbose"], callback=_on_verbose, help="Print tracebacks, and what libraries have to say.", **settings
        ),
    ]


def verbosity_options(command: _Decorated) -> _Decorated:
    """Add ``-q`` and ``-v`` to what becomes a group of commands."""
    for option in reversed(_verbosity_options()):
        vars(command).setdefault("__click_params__", []).append(option)
    return command


class Command(click.Command):
    """A command whose help fits a screen.

    Args:
        arguments: As of `click.Command`.
        groups: Headings of the help, each with the names of its parameters; the others come last, as ``Options``.
        advanced: The names of the parameters that only ``--help-all`` shows.
        resuming: What to do after Ctrl-C; given the parameters where it depends on them.
        settings: As of `click.Command`.
    """

    def __init__(
        self,
        *arguments: Any,
        groups: Mapping[str, Sequence[str]] | None = None,
        advanced: Sequence[str] = (),
        resuming: str | Callable[[Mapping[str, Any]], str] = "",
        **settings: Any,
    ) -> None:
        settings["params"] = [*(settings.get("params") or ()), *_verbosity_options()]
        if advanced:
            settings["params"].append(
                click.Option(
                    ["--help-all"],
                    is_flag=True,
                    expose_value=False,
                    is_eager=True,
                    callback=_on_help_all,
                    help="Show all options and exit.",
                )
            )
        super().__init__(*arguments, **settings)
        self._groups = groups or {}
        self._advanced = tuple(advanced)
        self._resuming = resuming

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; if Ctrl-C interrupts it, keep the advice for the caller, which prints it."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            ctx.meta[ADVICE] = self._resuming if isinstance(self._resuming, str) else self._resuming(ctx.params)
            raise

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options below their headings."""
        shows_all = ctx.meta.get(_HELP_ALL, False)
        options = [param for param in self.get_params(ctx) if isinstance(param, click.Option)]
        records = {
            str(option.name): record
            for option in options
            if (record := option.get_help_record(ctx)) is not None and (shows_all or option.name not in self._advanced)
        }
        general = [records.pop(name) for name in _GENERAL if name in records]
        for title, names in self._groups.items():
            if shown := [records.pop(name) for name in names if name in records]:
                with formatter.section(title):
                    formatter.write_dl(shown)
        with formatter.section("Options"):
            formatter.write_dl([*records.values(), *general])
        hidden = sum(option.name in self._advanced for option in options)
        if hidden and not shows_all:
            formatter.write_paragraph()
            formatter.write_text(f"{hidden} more options: {ctx.command_path} --help-all")
