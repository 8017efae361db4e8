"""What all pages of reports are made of: HTML that needs nothing beside it."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

__all__ = ["page", "shown_text", "table"]

_SHOWN = 1_500  # characters of a text
_CSS = """
:root { color-scheme: light dark; --line: #8884; --warn: #d97706; }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 74rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.25rem; border-top: 1px solid var(--line); padding-top: 1rem; margin-top: 2rem; }
h3 { font-size: 1rem; margin: 1.5rem 0 .5rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1rem; }
figure { margin: 0; min-width: 0; } figcaption { font-weight: 600; font-size: .95rem; } svg { width: 100%; height: auto; display: block; }
.warning { border-left: 4px solid var(--warn); padding: .25rem .75rem; margin: .75rem 0; overflow-wrap: anywhere; }
.table { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; }
th, td { padding: .25rem .75rem .25rem 0; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; }
th:first-child, td:first-child { text-align: left; overflow-wrap: anywhere; }
details { border: 1px solid var(--line); border-radius: .4rem; padding: .4rem .7rem; margin: .5rem 0; } summary { cursor: pointer; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font: .85rem/1.45 ui-monospace, monospace; margin: .5rem 0; }
.prompt { opacity: .7; }
"""


def page(title: str, body: str, *, css: str = "") -> str:
    """A whole page.

    Args:
        title: What it is about, as text.
        body: What it holds, as HTML.
        css: Style of its own, beside that of all pages.
    """
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{_CSS}{css}</style>
</head>
<body>
<h1>{escape(title)}</h1>
{body}
</body>
</html>
"""


def table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of texts under a heading; nothing where it has no row."""
    if not rows:
        return ""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in heads)
    body = "\n".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<h3>{escape(title)}</h3>\n<div class="table"><table>\n<tr>{head}</tr>\n{body}\n</table></div>'


def shown_text(text: str) -> str:
    """A sample's text as HTML, cut where it is long."""
    more = f" … ({len(text) - _SHOWN:,} characters more)" if len(text) > _SHOWN else ""
    return escape(text[:_SHOWN].encode("utf-8", "backslashreplace").decode() + more)
