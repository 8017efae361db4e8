"""The output folder of the demonstration. Importing it imports neither torch nor trl."""

from __future__ import annotations

from pathlib import Path

from rm_plugins.errors import DataError
from rm_plugins.files import check_output


def check_free(folder: Path, overwrite: bool) -> None:
    """Refuse an output folder that cannot be written, or that is in use unless `overwrite` is given.

    Raises:
        OutputError: It cannot be written.
        DataError: It is not empty.
    """
    check_output(folder, is_folder=True)
    if folder.exists() and any(folder.iterdir()) and not overwrite:
        raise DataError(f"{folder} is not empty. Name another --output-dir, or replace what is there with --overwrite.")
