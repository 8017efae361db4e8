"""The files that ``evaluate`` and ``diff`` write."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from rm_plugins.cli.printed import say
from rm_plugins.files import check_output, write_atomically


def check_outputs(json: Path | None, report: Path | None) -> None:
    """Refuse files that cannot be written, before anything is scored.

    Raises:
        OutputError: One of them cannot be written.
        MissingDependencyError: A page is asked for, and matplotlib is not installed.
    """
    for path in (json, report):
        if path is not None:
            check_output(path)
    if report is not None:
        check_drawing()


def check_drawing() -> None:
    """Refuse a page with charts that cannot be drawn.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    from rm_plugins.reports.charts import drawing

    with drawing():
        pass


def write_outputs(texts: Iterable[tuple[Path | None, Callable[[], str]]]) -> None:
    """Write each text that has a file, and print the file's name."""
    for path, text in texts:
        if path is not None:
            say(f"Wrote {write_atomically(path, text())}.")
