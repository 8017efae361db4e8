"""The files that ``evaluate`` and ``diff`` write."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click

from rm_plugins.errors import DataError
from rm_plugins.evaluation.results import Evaluation
from rm_plugins.files import write_atomically

__all__ = ["EvaluationOutputs"]


@dataclass(frozen=True, slots=True)
class EvaluationOutputs:
    """Where an evaluation goes; looked at before anything is scored.

    Args:
        json: The file for everything that was found; None for none.
        report: The file for a page; None for none.

    Raises:
        DataError: One of them is a folder.
        MissingDependencyError: There is to be a page, and matplotlib is not installed.
    """

    json: Path | None
    report: Path | None

    def __post_init__(self) -> None:
        for path in (self.json, self.report):
            if path is not None and path.is_dir():
                raise DataError(f"{path} is a folder; name the file to write, such as {path / 'evaluation'}.json.")
        if self.report is not None:
            from rm_plugins.reports.charts import drawing

            with drawing():
                pass

    def write(self, evaluation: Evaluation, page: Callable[[Evaluation], str]) -> None:
        """Write what is to be written, and say so.

        Args:
            evaluation: What was found.
            page: Makes the page of it.
        """
        if self.json is not None:
            _write(self.json, evaluation.to_json())
        if self.report is not None:
            _write(self.report, page(evaluation))


def _write(path: Path, text: str) -> None:
    click.echo(f"Wrote {write_atomically(path, text)}.", err=True)
