"""What makes the documentation's site: tables from the code, links that are checked, versions side by side."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import rm_plugins as rm
from rm_plugins.constructor_schema import schema_of

DOCS = Path(__file__).parents[1] / "docs"


def part(name: str) -> Any:
    """A module of ``docs/_site``, which is no package."""
    spec = importlib.util.spec_from_file_location(name, DOCS / "_site" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = ModuleType(name)
    spec.loader.exec_module(module)
    return module


from_code, internal_links, publish = part("from_code"), part("internal_links"), part("publish")
MARKS = [(path, mark) for path in sorted((DOCS / "reference").glob("*.md")) for mark in from_code.marks(path)]


@pytest.mark.parametrize(("page", "mark"), MARKS, ids=[mark[0][15:-4] for _, mark in MARKS])
def test_every_mark_becomes_a_table(page: Path, mark: re.Match[str]) -> None:
    if mark[1] in ("prometheus", "schema"):
        pytest.importorskip("fastapi", reason="the server's packages are not installed")
    text = from_code.WRITERS[mark[1]](*mark[2].split())
    rows = [line for line in text.splitlines() if line.startswith("|")]
    columns = {len(re.findall(r"(?<!\\)\|", row)) for row in rows}
    assert len(rows) > 2 and columns <= {3, 4, 5}


@pytest.mark.parametrize("kind", ["provider", "transform", "aggregate", "protocol"])
def test_every_key_of_a_spec_has_a_meaning(kind: str) -> None:
    text = from_code.components(kind)
    sections = dict(re.findall(r"^### `(.+?)`$(.*?)(?=^### |\Z)", text, re.MULTILINE | re.DOTALL))
    registered = rm.Registry().all(kind)
    assert set(sections) == set(registered)
    for name, section in sections.items():
        rows = dict(re.findall(r"^\| `(\w+)` \|.*\| (.*?) \|$", section, re.MULTILINE))
        assert set(rows) == set(schema_of(registered[name].cls)), name  # type: ignore[arg-type]  # a class is hashable
        assert all(rows.values()), f"{name} has a key without a meaning: {rows}"


def test_links_that_lead_nowhere_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text('<a href="b.html#there">x</a> <a href="https://example.com/x">x</a> <img src="b.html">')
    (tmp_path / "b.html").write_text('<p id="there"></p> <a href="#there">x</a>')
    assert internal_links.broken_links(tmp_path) == []
    (tmp_path / "c.html").write_text('<a href="b.html#elsewhere">x</a> <a href="gone.html">x</a>')
    assert internal_links.broken_links(tmp_path) == [
        "c.html: b.html#elsewhere leads to no anchor",
        "c.html: gone.html leads to no file",
    ]


def test_versions_lie_side_by_side_and_the_newest_release_is_shown_first(tmp_path: Path) -> None:
    built, site = tmp_path / "built", tmp_path / "site"
    built.mkdir()
    (built / "index.html").write_text("built")
    site.mkdir()
    for version in ("0.9.0", "0.10.0", "0.11.0rc1", "0.10.0"):
        publish.publish(built, site, version)
    assert json.loads((site / "versions.json").read_text()) == ["0.11.0rc1", "0.10.0", "0.9.0"]
    assert "url=0.10.0/index.html" in (site / "index.html").read_text()
    assert (site / "0.9.0" / "index.html").read_text() == "built"


def test_every_page_is_in_the_table_of_contents() -> None:
    listed = set(re.findall(r"^(?:.*<)?([\w/-]+)>?$", (DOCS / "index.md").read_text(encoding="utf-8"), re.MULTILINE))
    pages = {
        str(path.relative_to(DOCS).with_suffix(""))
        for path in DOCS.rglob("*")
        if path.suffix in (".md", ".ipynb") and "_build" not in path.parts
    }
    assert pages - {"index"} <= listed
