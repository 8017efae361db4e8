"""Where a scoring job runs other than in this process: `JobEngine`, which plug-ins add for ``rm-plugins score --engine NAME``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from rm_plugins.data.mapping import RowMapping
    from rm_plugins.jobs.progress import JobProgress


@dataclass(frozen=True, slots=True)
class ScoringRequest:
    """What ``rm-plugins score`` was asked to do.

    Args:
        spec: The reward's spec.
        source: A file, or a folder of files.
        split: The split of a folder.
        out: The output, a file or a folder.
        overwrite: Whether to replace a finished output, and to start again instead of resuming.
        mapping: How the source's columns become those that are read; None where there is none.
        column: What the columns of scores are called.
        batch_size: Samples scored at a time.
    """

    spec: str
    source: str
    split: str
    out: Path
    overwrite: bool = False
    mapping: RowMapping | None = None
    column: str = "score"
    batch_size: int = 512


@dataclass(frozen=True, slots=True)
class ScoringSummary:
    """What a scoring job has done.

    Args:
        rows: The rows in the output.
        counts: ``samples`` that were scored in this run, and of them ``abstained`` and ``errors``.
        throughput: The speed, in words; may be empty.
    """

    rows: int
    counts: Counter[str] = field(default_factory=Counter)
    throughput: str = ""


class JobEngine(ABC):
    """Runs scoring jobs elsewhere, such as on a cluster. The output must be what ``rm-plugins score`` writes without an engine.

    Args:
        address: Where it is, in the form that the engine documents; None for its default.
        workers: How many copies of the reward score at the same time; None for as many as fit.
    """

    name: ClassVar[str]

    def __init__(self, address: str | None = None, workers: int | None = None) -> None:
        self.address = address
        self.workers = workers

    @abstractmethod
    def score(self, request: ScoringRequest, progress: JobProgress) -> ScoringSummary:
        """Score every row of the source into the output, which is written whole or not at all.

        Args:
            request: What to score.
            progress: Is told how far the job is.

        Raises:
            DataError: The output exists, or an unfinished run beside it belongs to another reward or other rows.
            RmPluginsError: It cannot run, for one of the reasons in `rm_plugins.errors`.
        """
