"""No file imports another one that, by whatever way, imports it back."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = (ROOT, ROOT / "integrations")


def modules(folder: Path, packages: tuple[str, ...] = ("*",)) -> dict[str, Path]:
    """The files of packages in a folder, by the names that they are imported by."""
    files = {}
    for package in sorted(path for pattern in packages for path in folder.glob(pattern) if (path / "__init__.py").exists()):
        for file in sorted(package.rglob("*.py")):
            parts = file.relative_to(folder).with_suffix("").parts
            files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return files


def imported(module: str, file: Path, known: Mapping[str, Path]) -> Iterator[str]:
    """The known modules that a file names in an import, wherever it stands: in a function or for type checkers alone, too."""
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*above, *filter(None, [node.module])])
            for alias in node.names:
                submodule = f"{source}.{alias.name}"
                if submodule in known or source in known:
                    yield submodule if submodule in known else source


def only_exports(file: Path) -> bool:
    """Whether a file only names what others have: imports, texts, assignments, and the functions that load a name at its first use."""
    lazy = {"__getattr__", "__dir__"}
    return file.name == "__init__.py" and all(
        isinstance(node, (ast.Import, ast.ImportFrom, ast.Expr, ast.Assign, ast.AnnAssign, ast.If))
        or (isinstance(node, ast.FunctionDef) and node.name in lazy)
        for node in ast.parse(file.read_text(encoding="utf-8")).body
    )


def graph(known: Mapping[str, Path]) -> dict[str, set[str]]:
    """Which module imports which. A package's ``__init__`` that only exports names is left out."""
    kept = {module: file for module, file in known.items() if not only_exports(file)}
    return {module: {other for other in imported(module, file, kept) if other != module} for module, file in kept.items()}


def circles(imports: Mapping[str, set[str]]) -> list[list[str]]:
    """For every group of modules that import each other, the shortest way from one of them back to itself."""
    groups: list[list[str]] = []
    seen: set[str] = set()
    for module in sorted(imports):
        way = None if module in seen else shortest_way_back(module, imports)
        if way:
            groups.append(way)
            seen |= set(way)
    return groups


def shortest_way_back(module: str, imports: Mapping[str, set[str]]) -> list[str] | None:
    ways = [[module]]
    seen: set[str] = set()
    for way in ways:
        for other in sorted(imports.get(way[-1], ())):
            if other == module:
                return [*way, module]
            if other not in seen:
                seen.add(other)
                ways.append([*way, other])
    return None


def test_no_file_imports_itself_by_way_of_others() -> None:
    known = {module: file for folder in FOLDERS for module, file in modules(folder, ("rm_plugins*",)).items()}
    assert {"rm_plugins.registry", "rm_plugins_trl.plugin"} <= set(known)
    assert [" -> ".join(circle) for circle in circles(graph(known))] == []


@pytest.mark.parametrize(
    ("files", "circle"),
    [
        ({"one": "import pack.two", "two": "from pack.one import name"}, "pack.one -> pack.two -> pack.one"),
        ({"one": "from pack import two", "two": "from . import one"}, "pack.one -> pack.two -> pack.one"),
        ({"one": "from .two import name", "two": "def call():\n    import pack.one"}, "pack.one -> pack.two -> pack.one"),
        (
            {"one": "from pack.two import name", "two": "from pack.three import name", "three": "if TYPE_CHECKING:\n    import pack.one"},
            "pack.one -> pack.two -> pack.three -> pack.one",
        ),
        ({"one": "import pack", "__init__": "from pack.one import name"}, None),  # it only exports
        ({"one": "import pack", "__init__": "from pack.one import name\ndef call(): ..."}, "pack -> pack.one -> pack"),
        ({"one": "import pack.two", "two": "import json"}, None),
    ],
)  # fmt: skip
def test_a_circle_is_found(files: dict[str, str], circle: str | None, tmp_path: Path) -> None:
    for name, source in {"__init__": "", **files}.items():
        file = tmp_path / "pack" / f"{name}.py"
        file.parent.mkdir(exist_ok=True)
        file.write_text(source)
    assert [" -> ".join(way) for way in circles(graph(modules(tmp_path)))] == ([circle] if circle else [])
