"""Benchmarks of rewards, one a file, each with its own scoring rule."""

from __future__ import annotations

from collections.abc import Sequence

from rm_plugins.hookspecs import hookimpl
from rm_plugins.suites.suite import Suite, SuiteItem, SuiteResult, SuiteSection, SuiteTable

__all__ = ["Suite", "SuiteItem", "SuiteResult", "SuiteSection", "SuiteTable", "rm_register_suites"]


@hookimpl
def rm_register_suites() -> Sequence[type[Suite]]:
    """The built-in benchmarks."""
    return []
