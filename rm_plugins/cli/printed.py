"""Everything that a command prints goes through here: names, texts and answers come from outside, and a terminal obeys what they hold."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import click
import rich.console
from rich.segment import Segment

from rm_plugins.printable import printable


def echo(text: str = "", *, err: bool = False, nl: bool = True) -> None:
    """Print a line, as `click.echo` does.

    Args:
        text: The line.
        err: Whether it goes to standard error.
        nl: Whether the line ends.
    """
    click.echo(printable(text), err=err, nl=nl)


class Console(rich.console.Console):
    """A console of rich that obeys its own styles only, and no command in a text."""

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
