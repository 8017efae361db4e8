"""The tables that results show of themselves in a notebook."""

from __future__ import annotations

import numpy as np

from rm_plugins.html_table import html_table

ATTACK = '<img src=x onerror="alert(1)">'


def test_no_text_of_a_table_is_read_as_html() -> None:
    shown = html_table([ATTACK], [[ATTACK]], caption=ATTACK)
    assert "<img" not in shown
    assert shown.count("&lt;img") == 3


def test_what_no_text_may_have_is_shown_as_an_escape() -> None:
    assert "<td>\\ud800 \\u202e</td>" in html_table(["name"], [["\ud800 \u202e"]])


def test_numbers_have_four_digits_and_missing_ones_are_said() -> None:
    shown = html_table(["a", "b", "c", "d"], [[np.float64(1 / 3), 12345, None, np.nan]])
    assert "<td>0.3333</td><td>12345</td><td></td><td>NaN</td>" in shown


def test_rows_beyond_the_limit_are_counted() -> None:
    rows = [[str(number)] for number in range(30)]
    assert "… 10 more rows" in html_table(["row"], rows)
    assert "more row" not in html_table(["row"], rows, limit=30)
    assert "… 970 more rows" in html_table(["row"], rows, limit=30, total=1000)
    assert "<td>29</td>" not in html_table(["row"], rows)


def test_a_long_cell_is_cut() -> None:
    assert f"<td>{'w' * 199}…</td>" in html_table(["text"], [["w" * 10_000]])
