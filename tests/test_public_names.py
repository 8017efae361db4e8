"""What each package says it exports is what it exports."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from pathlib import Path
from types import ModuleType

import pytest

import rm_plugins
import rm_plugins_engines
import rm_plugins_ray
import rm_plugins_trl
from rm_plugins import errors
from rm_plugins.errors import RmPluginsError


def packages(package: ModuleType) -> list[str]:
    """The name of a package and of every package in it."""
    found = pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    return [package.__name__, *(module.name for module in found if module.ispkg)]


def order(name: str) -> tuple[int, str]:
    """Constants, then classes, then the others, as ruff sorts ``__all__``."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)


@pytest.mark.parametrize(
    "name", [*packages(rm_plugins), *packages(rm_plugins_engines), *packages(rm_plugins_ray), *packages(rm_plugins_trl)]
)
def test_a_package_exports_what_it_says(name: str) -> None:
    module = importlib.import_module(name)
    exported: list[str] = module.__all__
    assert exported == sorted(exported, key=order)
    for found in exported:
        assert getattr(module, found) is not None
    written_here = {
        name
        for name, value in vars(module).items()
        if (inspect.isclass(value) or inspect.isfunction(value)) and value.__module__ == module.__name__
    }
    lazy = set(getattr(module, "_HOMES", ()))
    assert {name for name in written_here | lazy if not name.startswith("_")} <= set(exported)
    assert set(exported) <= set(dir(module))


def exports_of_its_own(name: str) -> set[str]:
    """What a package exports and the package around it does not."""
    parent = name.rpartition(".")[0]
    around = importlib.import_module(parent).__all__ if parent else []
    return {*importlib.import_module(name).__all__} - {*around}


def test_the_reference_has_every_package_that_exports_something() -> None:
    pages = sorted((Path(__file__).parents[1] / "docs" / "api").glob("*.md"))
    documented = set(
        re.findall(r"automodule:: ([\w.]+)\n   :members:", "".join(page.read_text(encoding="utf-8") for page in pages))
    )
    programs = {"rm_plugins.cli", "rm_plugins.providers", "rm_plugins.server.page"}  # docs/cli.md, docs/providers/, a web page
    exporting = {
        name for root in (rm_plugins, rm_plugins_ray, rm_plugins_trl) for name in packages(root) if exports_of_its_own(name)
    }
    assert exporting - programs <= documented
    for name in documented:
        importlib.import_module(name)


@pytest.mark.parametrize("module", [rm_plugins, rm_plugins_ray, rm_plugins_trl])
def test_an_unknown_name_is_an_attribute_error(module: ModuleType) -> None:
    assert dir(module) == module.__all__
    with pytest.raises(AttributeError, match=f"module '{module.__name__}' has no attribute 'absent'"):
        _ = module.absent


def test_the_error_tree_is_its_docstring() -> None:
    drawn = {line.split("── ")[1].split()[0] for line in (errors.__doc__ or "").splitlines() if "── " in line}
    written = {name for name, value in vars(errors).items() if inspect.isclass(value) and issubclass(value, RmPluginsError)}
    assert written - {"RmPluginsError"} == drawn
    assert written <= set(errors.__all__)
    for name in drawn:
        error = getattr(errors, name)
        assert str(error("what happened")) == "what happened"
        if name != "PluginError":
            assert any(
                base.__module__ == "builtins" and base not in (object, Exception, BaseException) for base in error.__mro__
            )
