"""Folders that tests of several pytest processes share, made by whichever needs one first."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that is filled once a run: the other processes wait for it, while what fills it uses their cores too.

    Args:
        factory: Makes temporary folders.
        name: The folder's name, one for each thing that is made.
        make: Fills the folder, which is empty.
    """
    if "PYTEST_XDIST_WORKER" not in os.environ:
        folder = factory.mktemp(name)
        make(folder)
        return folder
    place = factory.getbasetemp().parent  # of this run
    folder, finished = place / name, place / f"{name}.finished"
    with FileLock(place / f"{name}.lock"):
        if not finished.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of an attempt that failed
            folder.mkdir()
            make(folder)
            finished.touch()
    return folder
