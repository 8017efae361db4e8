"""The parts of all report pages: HTML in a single file."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files

from rm_plugins.files import in_utf8

_SHOWN = 1_500  # characters of a text
_PREVIEWED = 160  # characters of folded content
_CONTROLS = {code: 0x2400 + code for code in range(32) if code not in (9, 10)} | {0x7F: 0x2421}


def page(title: str, body: str, *styles: str) -> str:
    """A whole page.

    Args:
        title: As text.
        body: As HTML.
        styles: Names of further style sheets in this folder.
    """
    css = "".join(f"\n{files(__package__).joinpath(name).read_text(encoding='utf-8')}" for name in ("page.css", *styles))
    whole = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{text(title)}</title>
<style>{css}</style>
</head>
<body>
<h1>{text(title)}</h1>
{_told_apart(body)}
</body>
</html>
"""
    return in_utf8(whole)


def table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of texts under a heading; empty without rows."""
    if not rows:
        return ""
    shown = cells(title, list(map(text, heads)), [list(map(text, row)) for row in rows])
    return f"<h3>{text(title)}</h3>\n{shown}"


def cells(label: str, heads: Sequence[str], rows: Iterable[Sequence[str]], *, kind: str = "") -> str:
    """A table of HTML that scrolls in its own box, by keyboard too. The first cell of each row is what the row is about.

    Args:
        label: A description for screen readers, as text.
        heads: Of the columns.
        rows: Their cells.
        kind: A class of its own in the style.
    """
    head = "".join(f'<th scope="col">{cell}</th>' for cell in heads)
    body = "\n".join(
        f'<tr><th scope="row">{first}</th>{"".join(_cell(cell) for cell in others)}</tr>' for first, *others in rows
    )
    said = f'class="table {kind}"' if kind else 'class="table"'
    return (
        f'<div {said} role="region" aria-label="{text(label)}" tabindex="0"><table>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def unfolding(summary: str, content: str, *, kind: str = "", is_open: bool = False) -> str:
    """HTML that opens on a click, and is always open in print.

    Args:
        summary: What it is, as HTML.
        content: What is folded.
        kind: A class of its own in the style.
        is_open: Whether it is shown from the beginning.
    """
    said = (f' class="{kind}"' if kind else "") + (" open" if is_open else "")
    return f"<details{said}><summary>{summary}</summary>\n{content}\n</details>"


def preview(value: str) -> str:
    """The beginning of folded content, as HTML for its summary: one line, which disappears when it opens."""
    line = " ".join(value[: 4 * _PREVIEWED].split())
    if len(line) > _PREVIEWED:
        line = f"{line[:_PREVIEWED].rpartition(' ')[0] or line[:_PREVIEWED]}…"
    return f'<span class="preview" dir="auto">{text(line)}</span>' if line else ""


def text(value: str) -> str:
    """Any text as HTML, in an attribute too."""
    return escape(visible(value))


def visible(value: str) -> str:
    """A text with symbols in the place of control characters, which no browser shows."""
    return value.translate(_CONTROLS)


def shortened(value: str, most: int) -> str:
    """A text cut in the middle where it is longer than `most` characters.

    >>> shortened("alpacaeval-in-three-languages", 20)
    'alpacaeval…languages'
    """
    if len(value) <= most:
        return value
    kept = most - 1
    return f"{value[: kept - kept // 2]}…{value[len(value) - kept // 2 :]}"


def shown_text(value: str) -> str:
    """A sample's text as HTML, cut where it is long."""
    more = f" … ({len(value) - _SHOWN:,} characters more)" if len(value) > _SHOWN else ""
    return text(value[:_SHOWN] + more)


def _cell(shown: str) -> str:
    """A cell; one that begins with ``<td`` is whole already."""
    return shown if shown.startswith("<td") else f"<td>{shown}</td>"


def _told_apart(body: str) -> str:
    """The body with ids in its charts that are each chart's own: two charts have the same ids for their own shapes."""
    numbers = itertools.count()

    def renamed(chart: re.Match[str]) -> str:
        own = rf"\g<1>chart{next(numbers)}-"
        return re.sub(r"<[^>]+>", lambda tag: re.sub(r'(\sid="|href="#|url\(#)', own, tag[0]), chart[0])

    return re.sub(r"<svg\b.*?</svg>", renamed, body, flags=re.DOTALL)
