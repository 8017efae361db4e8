"""The files that ``evaluate`` and ``diff`` write."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from rm_plugins.cli.printed import echo
from rm_plugins.files import check_output, write_atomically
from rm_plugins.reports.charts import drawing


def check_outputs(json: Path | None, report: Path | None) -> None:
    """Refuse files that cannot be written, before anything is scored.

    Raises:
        OutputError: One of them cannot be written.
        MissingDependencyError: There is to be a page, and matplotlib is not installed.
    """
    for path in (json, report):
        if path is not None:
            check_output(path)
    if report is not None:
        with drawing():
            pass


def write_outputs(texts: Iterable[tuple[Path | None, Callable[[], str]]]) -> None:
    """Write each text that has a file, and say so."""
    for path, text in texts:
        if path is not None:
            echo(f"Wrote {write_atomically(path, text())}.", err=True)
