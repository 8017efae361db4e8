"""The tables with which results are shown in a notebook."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from rm_plugins.printable import printable

_LONGEST = 200  # characters of a cell


def html_table(
    header: Sequence[str], rows: Sequence[Sequence[object]], caption: str = "", limit: int = 20, total: int | None = None
) -> str:
    """An HTML table for ``_repr_html_``. Every text is escaped, and the notebook's own style applies.

    Args:
        header: The names of the columns.
        rows: The cells of each row. Floats are written with four significant digits, None as an empty cell, everything else by `str`.
        caption: What the table shows.
        limit: How many rows are shown. One more row has the number of those that are left out.
        total: The number of all rows, if `rows` are only the first of them.

    >>> html_table(["score"], [[0.123456]])
    '<table><thead><tr><th scope="col">score</th></tr></thead><tbody><tr><td>0.1235</td></tr></tbody></table>'
    """
    title = f"<caption>{_text(caption)}</caption>" if caption else ""
    head = "".join(f'<th scope="col">{_text(name)}</th>' for name in header)
    body = "".join(f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in row)}</tr>" for row in rows[:limit])
    hidden = (len(rows) if total is None else total) - limit
    if hidden > 0:
        body += f'<tr><td colspan="{len(header)}">… {hidden:,} more row{"s" if hidden > 1 else ""}</td></tr>'
    return f"<table>{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _text(cell: object) -> str:
    if cell is None:
        return ""
    if isinstance(cell, float):  # numpy's float64 too
        return "NaN" if math.isnan(cell) else f"{cell:.4g}"
    shown = printable(str(cell))
    return escape(shown if len(shown) <= _LONGEST else f"{shown[: _LONGEST - 1]}…")
