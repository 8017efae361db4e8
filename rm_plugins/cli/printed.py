"""Everything that a command prints goes through here.

Names, texts and answers come from outside and may contain control characters, which a terminal would obey; they are escaped. Data goes
to standard output, everything else to standard error.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import click
import rich.console
from rich.segment import Segment

from rm_plugins.printable import printable

_QUIET, _VERBOSE, _SILENCED = "rm_plugins.quiet", "rm_plugins.verbose", "rm_plugins.silenced"
_OUR_LOGGERS = ("rm_plugins", "rm_plugins_trl")

_UNLIMITED = 100_000
"""The width of a table that is not on a terminal, in characters."""

STANDARD_OUTPUT = "-"
"""The name of standard output as an output file."""


def echo(text: str = "", *, err: bool = False, nl: bool = True) -> None:
    """Print a line, as `click.echo` does.

    Args:
        text: The line.
        err: Whether it goes to standard error.
        nl: Whether the line ends.
    """
    click.echo(printable(text), err=err, nl=nl)


def say(text: str) -> None:
    """Print a line on standard error, unless the user asked for quiet: progress, and what was written where."""
    if not is_quiet():
        echo(text, err=True)


def write_data(file: Path) -> None:
    """Copy a file to standard output, byte for byte unless that is a terminal."""
    if sys.stdout.isatty():
        with file.open(encoding="utf-8") as lines:
            for line in lines:
                echo(line, nl=False)
        return
    sys.stdout.flush()
    with file.open("rb") as content:
        shutil.copyfileobj(content, sys.stdout.buffer)
    sys.stdout.buffer.flush()


# --- Quiet and verbose ----------------------------------------------------------------------------------------------------


def set_quiet(ctx: click.Context) -> None:
    """Print results, warnings and errors only."""
    ctx.meta[_QUIET] = True


def set_verbose(ctx: click.Context) -> None:
    """Print tracebacks, our own log from the level INFO on, and what other libraries print."""
    if ctx.meta.setdefault(_VERBOSE, False):
        return
    ctx.meta[_VERBOSE] = True
    if _SILENCED in ctx.meta:
        ctx.meta[_SILENCED].close()
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    for name in _OUR_LOGGERS:
        logger = logging.getLogger(name)
        before = logger.level, logger.propagate
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
        ctx.find_root().call_on_close(partial(_restore, logger, handler, *before))


def _restore(logger: logging.Logger, handler: logging.Handler, level: int, propagates: bool) -> None:
    logger.removeHandler(handler)
    logger.setLevel(level)
    logger.propagate = propagates


def is_quiet() -> bool:
    """Whether the command was given ``-q``."""
    ctx = click.get_current_context(silent=True)
    return ctx is not None and bool(ctx.meta.get(_QUIET))


def is_verbose(ctx: click.Context) -> bool:
    """Whether the command was given ``-v``."""
    return bool(ctx.meta.get(_VERBOSE))


@contextmanager
def until_verbose(ctx: click.Context, silenced: ExitStack) -> Iterator[None]:
    """Keep what silences other libraries until the block ends or ``-v`` is met."""
    ctx.meta[_SILENCED] = silenced
    with silenced:
        if is_verbose(ctx):
            silenced.close()
        yield


# --- What is printable ----------------------------------------------------------------------------------------------------


class Console(rich.console.Console):
    """A console of rich that obeys its own styles only, and no command in a text.

    Where it writes to a file or a pipe, lines are as long as they need to be, unless ``COLUMNS`` says how long.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        if not self.is_terminal and "width" not in settings and "COLUMNS" not in os.environ:
            self.width = _UNLIMITED

    def render(
        self, renderable: rich.console.RenderableType, options: rich.console.ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Render what is printed, its texts made printable."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)


@contextmanager
def printable_messages() -> Iterator[None]:
    """Within it, log lines and the messages of errors that click shows are printable."""
    before = logging.getLogRecordFactory()

    def made(*args: Any, **kwargs: Any) -> logging.LogRecord:
        return _printable_record(before(*args, **kwargs))

    logging.setLogRecordFactory(made)
    try:
        yield
    except click.ClickException as error:
        vars(error).update(message=printable(error.message))
        raise
    finally:
        logging.setLogRecordFactory(before)


def _printable_record(record: logging.LogRecord) -> logging.LogRecord:
    try:
        message = record.getMessage()
    except Exception:  # which logging tells of when it writes the line
        return record
    if printable(message) != message:
        record.msg, record.args = printable(message), ()
    if record.exc_info and record.exc_info[0] is not None:
        record.exc_text = printable("".join(traceback.format_exception(*record.exc_info)).rstrip())
    return record
