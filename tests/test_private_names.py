"""What begins with an underscore stays in its file."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = [
    path
    for folder in ("rm_plugins", "integrations/rm_plugins_ray", "integrations/rm_plugins_trl")
    for path in sorted((ROOT / folder).rglob("*.py"))
]


def private_imports(tree: ast.AST) -> Iterator[str]:
    """The private names of this project that a file imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rm_plugins"):
            yield from (
                f"{node.module}.{alias.name}"
                for alias in node.names
                if alias.name.startswith("_") and alias.name != "__version__"
            )


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_imports_a_private_name_of_another(path: Path) -> None:
    assert list(private_imports(ast.parse(path.read_text(encoding="utf-8")))) == []


def test_it_would_be_seen() -> None:
    assert list(private_imports(ast.parse("from rm_plugins.spec import _written, load"))) == ["rm_plugins.spec._written"]
