"""The versions that are promised: pyproject.toml, the constraints, the matrix of continuous integration and the pages say the same."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
WORKFLOW: dict[str, Any] = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))["jobs"]
ENGINES = ("areal", "nemo_gym", "nemo_rl", "swift", "verl")
"""What rm_plugins_engines imports where a user's training already runs in it."""
USERS = ("peft", "quantized", "ray", "report", "rules", "serve")
"""The extras that a user installs; the others are for those who work on the package."""


def needed(*extras: str) -> dict[str, Requirement]:
    """What the package and its extras need, without itself, by canonical name."""
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in PROJECT["optional-dependencies"][extra])]
    return {canonicalize_name(found.name): found for found in map(Requirement, lines) if found.name != PROJECT["name"]}


def lowest(specifiers: SpecifierSet) -> Version:
    """The lower bound: the single one that starts with >=."""
    (bound,) = [Version(each.version) for each in specifiers if each.operator == ">="]
    return bound


def pins(name: str) -> dict[str, Version]:
    """The pinned versions in a file of constraints, by canonical name."""
    lines = [line for line in (ROOT / name).read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    split = [line.split("==") for line in lines]
    return {canonicalize_name(package): Version(version) for package, version in split}


def pythons() -> list[str]:
    """The Pythons in the classifiers, in order."""
    found = (re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", line) for line in PROJECT["classifiers"])
    return [match[1] for match in found if match]


def test_the_oldest_versions_are_the_lower_bounds() -> None:
    assert pins("constraints-oldest.txt") == {name: lowest(need.specifier) for name, need in needed(*USERS).items()}


@pytest.mark.parametrize("name", ["constraints.txt", "constraints-oldest.txt"])
def test_the_pinned_versions_are_allowed(name: str) -> None:
    wanted = needed(*USERS)
    refused = [
        f"{package} {version}"
        for package, version in pins(name).items()
        if package in wanted and version not in wanted[package].specifier
    ]
    assert refused == []


def test_the_workflow_runs_every_python_and_the_oldest_versions() -> None:
    assert WORKFLOW["test"]["strategy"]["matrix"]["python-version"] == pythons()
    assert {"run": "make test"} in WORKFLOW["test"]["steps"]
    assert {"run": "make test-oldest"} in WORKFLOW["test-oldest"]["steps"]
    single = [
        step["with"]["python-version"]
        for name in ("lint", "docs", "test-oldest")
        for step in WORKFLOW[name]["steps"]
        if "with" in step
    ]
    assert single == [pythons()[0]] * 3


def test_the_oldest_python_is_the_required_one() -> None:
    assert lowest(SpecifierSet(PROJECT["requires-python"])) == Version(pythons()[0])


def test_the_pages_name_the_same_versions() -> None:
    wanted, oldest, newest = needed(), pythons()[0], pythons()[-1]
    bounds = {name: lowest(wanted[name].specifier) for name in ("trl", "transformers", "torch")}
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert (
        f"Python {oldest} to {newest}, PyTorch {bounds['torch']} or later, transformers {bounds['transformers']} or later, "
        f"TRL {bounds['trl']} or later."
    ) in readme
    page = (ROOT / "docs" / "getting-started" / "install.md").read_text(encoding="utf-8")
    assert f"Python {oldest} or later is needed." in page
    assert f"| Python | {oldest} to {newest} |" in page
    assert f"| TRL | {bounds['trl']} to 1.x |" in page
    assert f"| transformers | {bounds['transformers']} and later |" in page
    assert f"| PyTorch | {bounds['torch']} and later |" in page


def test_what_is_imported_is_declared() -> None:
    """Nothing is imported that comes only because another package needs it."""
    declared = set(needed(*USERS))
    distributions = packages_distributions()
    undeclared = set()
    for folder in (ROOT / "rm_plugins", ROOT / "integrations"):
        for file in folder.rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom) and not node.level:
                    names = [str(node.module)]
                for name in {name.partition(".")[0] for name in names}:
                    if name in sys.stdlib_module_names or name in (
                        "rm_plugins",
                        "rm_plugins_engines",
                        "rm_plugins_ray",
                        "rm_plugins_trl",
                    ):
                        continue
                    if name in ENGINES and file.parent.name == "rm_plugins_engines":  # where they are installed
                        continue
                    owners = {canonicalize_name(owner) for owner in distributions.get(name, [name])}
                    if not owners & declared:
                        undeclared.add(f"{file.relative_to(ROOT)} imports {name}")
    assert sorted(undeclared) == []
