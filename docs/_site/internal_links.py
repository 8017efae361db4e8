"""Checks that every link inside a built site leads to a file and to an anchor in it: ``python internal_links.py FOLDER``."""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """The links and anchors of a page of HTML."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors = {"", "top"}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what a tag links to, and how it can be linked to."""
        for name, value in attrs:
            if name in ("href", "src") and value is not None and tag != "use":
                self.links.append(value)
            elif name in ("id", "name") and value:
                self.anchors.add(value)


def broken_links(folder: Path) -> list[str]:
    """A line for each link of the site in a folder that leads nowhere; links to other hosts are left out."""
    pages = {path.resolve(): Page(path.read_text(encoding="utf-8")) for path in sorted(folder.rglob("*.html"))}
    broken = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if target.is_dir():
                target /= "index.html"
            anchor = unquote(parts.fragment)
            if not target.exists():
                broken.append(f"{path.relative_to(folder.resolve())}: {link} leads to no file")
            elif target in pages and anchor not in pages[target].anchors:
                broken.append(f"{path.relative_to(folder.resolve())}: {link} leads to no anchor")
    return broken


if __name__ == "__main__":
    lines = broken_links(Path(sys.argv[1]))
    print("\n".join(lines) or "Every link inside the site leads somewhere.")
    sys.exit(bool(lines))
