"""The ``rm-plugins`` program."""

from rm_plugins.cli.program import main

__all__ = ["main"]
