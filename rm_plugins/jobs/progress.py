"""What a job tells its caller while it runs."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["JobProgress"]


class JobProgress:
    """Told how far a job is; this one ignores it, and a caller overrides what it wants to know.

    After `begin`, `advance` is called for each batch, and `end` once, also where the job fails.
    """

    def resume(self, work: str, done: int) -> None:
        """An earlier run has left `done` rows, after which the job named `work` continues."""

    def note(self, message: str) -> None:
        """Something that the user should know, in a sentence."""

    def begin(self, work: str, done: int, total: Callable[[], int | None]) -> None:
        """The job named `work` (``scoring`` or ``generating``) begins; `total` counts its rows, which may read a file."""

    def advance(self, count: int, throughput: str = "") -> None:
        """`count` more rows are kept."""

    def end(self) -> None:
        """The job has ended or failed."""
