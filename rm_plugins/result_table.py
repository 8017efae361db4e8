"""Results that show themselves as a table: in a notebook, in a terminal, and as a data frame of pandas."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from rm_plugins.errors import MissingDependencyError
from rm_plugins.html_table import html_table
from rm_plugins.printable import printable

if TYPE_CHECKING:
    import pandas

_MOST_ROWS = 100


@dataclass(frozen=True, slots=True)
class ResultTable:
    """The table of a result, as it is shown.

    Args:
        caption: What the result is.
        header: The names of the columns.
        rows: The cells.
        notes: Sentences below the table.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()


class ShownAsTable(ABC):
    """A result that has a table; it takes the place of a dataclass's own ``repr``."""

    __slots__ = ()

    @abstractmethod
    def _table(self) -> ResultTable:
        """The table for readers."""

    @abstractmethod
    def _columns(self) -> Mapping[str, Sequence[object]]:
        """The columns of the data frame, all equally long."""

    def to_pandas(self) -> pandas.DataFrame:
        """The numbers as a data frame, NaN where there is none.

        Raises:
            MissingDependencyError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            name = type(self).__name__
            raise MissingDependencyError(f"{name}.to_pandas needs the package pandas: pip install pandas.") from error
        return pandas.DataFrame(self._columns())

    def _repr_html_(self) -> str:
        table = self._table()
        notes = "".join(f"<p>{escape(printable(note))}</p>" for note in table.notes)
        return html_table(table.header, table.rows, table.caption, limit=_MOST_ROWS) + notes

    def __repr__(self) -> str:
        table = self._table()
        shown = [table.header, *table.rows[:_MOST_ROWS]]
        cells = [[" ".join(printable(cell).split()) for cell in row] for row in shown]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
        if len(table.rows) > _MOST_ROWS:
            lines.append(f"… {len(table.rows) - _MOST_ROWS:,} more rows")
        return "\n".join([printable(table.caption), *lines, *map(printable, table.notes)])
