"""Rewards that a file names, by default ``rm_plugins.yaml`` in the working directory."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rm_plugins.errors import SpecError
from rm_plugins.missing_path import not_there
from rm_plugins.written_settings import read_mapping

SPEC_VARIABLE = "RM_PLUGINS_SPEC"
"""The environment variable with the path of the file of named rewards; ``rm_plugins.yaml`` in the working directory if unset."""


def named_rewards() -> Mapping[str, Any]:
    """Specs by name, from the file that ``RM_PLUGINS_SPEC`` names or else ``rm_plugins.yaml``; empty if there is none.

    Raises:
        SpecError: The named file does not exist, or the file is not a mapping.
    """
    path = named_rewards_file()
    return read_mapping(path) if path is not None else {}


def named_rewards_file() -> Path | None:
    """The path of this file; None if there is none.

    Raises:
        SpecError: ``RM_PLUGINS_SPEC`` names a file that does not exist.
    """
    named = os.environ.get(SPEC_VARIABLE)
    path = Path(named or "rm_plugins.yaml")
    if path.is_file():
        return path
    if named:
        raise SpecError(
            f"The environment variable {SPEC_VARIABLE} names the file {named!r}, which does not exist{not_there(path, named)}"
        )
    return None
