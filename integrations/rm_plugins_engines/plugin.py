"""The plug-in that adds ``rm-plugins adapter``. Importing it imports no engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rm_plugins import hookimpl

if TYPE_CHECKING:
    import click


@hookimpl
def rm_register_commands() -> Sequence[click.Command]:
    """``adapter``."""
    from rm_plugins_engines.adapter import adapter

    return [adapter]
