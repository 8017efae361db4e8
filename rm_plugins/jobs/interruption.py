"""What a job raises when its user interrupts it."""

from __future__ import annotations

from pathlib import Path


class JobInterrupted(KeyboardInterrupt):
    """A job was interrupted with Ctrl-C; the message says what is kept and how to resume.

    It is a `KeyboardInterrupt`, so that code which handles `KeyboardInterrupt` handles it too.

    Args:
        work: What the job was doing: ``scoring`` or ``generating``.
        done: How many rows are kept, those of earlier runs included.
        kept_in: The file that they are in; None where they are gone.
    """

    def __init__(self, work: str, done: int, kept_in: Path | None) -> None:
        self.work = work
        self.done = done
        self.kept_in = kept_in if done else None
        if self.kept_in is None:
            message = f"Interrupted while {work}. Nothing is kept; run the same command again to start from the beginning."
        else:
            message = f"Interrupted while {work}. {done} rows are kept in {self.kept_in}; run the same command again to resume."
        super().__init__(message)
