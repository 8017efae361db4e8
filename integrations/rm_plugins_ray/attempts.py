"""Attempts at work that may end the process that does it: Ray would start the next process for it without end."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from rm_plugins.errors import ProcessError
from rm_plugins.files import output_errors

MOST_ATTEMPTS = 4
"""How many actors may end with the same work before it is given up, as it may be the cause."""


@dataclass(frozen=True, slots=True)
class Attempts:
    """Counts the attempts at each piece of work that no process has lived to end, in a folder that all nodes see.

    Args:
        folder: The folder; each attempt is a file in it, until the attempt ends.
    """

    folder: Path

    def forget(self) -> None:
        """Begin to count, which the driver does at the start of a run: an earlier run may have been killed."""
        with output_errors(self.folder):
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def attempt(self, key: str, doing: str) -> Iterator[None]:
        """Within it, this process does a piece of work.

        Args:
            key: What identifies the work, as a part of a file name.
            doing: The work in messages, such as ``scored rows 1 to 8``.

        Raises:
            ProcessError: Too many processes have ended with this work.
            OutputError: The folder cannot be written, or the run has ended.
        """
        ended = len(list(self.folder.glob(f"{key}-*")))
        if ended >= MOST_ATTEMPTS:
            raise ProcessError(
                f"{ended} actors in a row have ended while they {doing}, so it is not tried again. The logs of the cluster say how they "
                "ended. If memory is short, use fewer --workers or a smaller --batch-size. Scored rows are kept; run the same command "
                "again to resume."
            )
        mark = self.folder / f"{key}-{uuid4().hex}"
        with output_errors(mark):
            mark.touch(exist_ok=False)
        try:
            yield
        finally:  # the process has lived to end it
            for known in self.folder.glob(f"{key}-*"):
                known.unlink(missing_ok=True)
