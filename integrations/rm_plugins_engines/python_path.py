"""The folders of a reward's functions, in this process and in those that get the reward from it.

Engines send the function or the class of an adapter's file to actors by value. An actor does not import the file, so what the file adds to
``sys.path`` is missing there.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

_folders: list[str] = []


def look_for_functions_in(*folders: str) -> None:
    """Look for the functions of rewards in these folders, after all others; processes to which an adapter is sent do so, too."""
    _add(sys.path, folders)
    _add(_folders, folders)


def folders_of_functions() -> tuple[str, ...]:
    """The folders that were added so far."""
    return tuple(_folders)


def _add(to: list[str], folders: Iterable[str]) -> None:
    to += [folder for folder in dict.fromkeys(folders) if folder not in to]
