"""A queue in which each client has its turn."""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

__all__ = ["FairQueue", "Job", "Line"]


class Job(Protocol):
    """What waits."""

    @property
    def client(self) -> str:
        """Whose it is."""

    @property
    def items(self) -> int:
        """How many samples it has."""

    @property
    def size(self) -> int:
        """How much work it is, at least 1."""


AnyJob = TypeVar("AnyJob", bound=Job)


@dataclass(slots=True)
class Line(Generic[AnyJob]):
    """The jobs of a client that wait, and how many samples and how much work they are."""

    jobs: deque[AnyJob] = field(default_factory=deque)
    credit: int = 0
    items: int = 0
    size: int = 0


class FairQueue(Generic[AnyJob]):
    """Jobs by client, taken by deficit round robin (Shreedhar and Varghese, 1995).

    Clients stand in a circle. At each turn a client is given credit, and its jobs are taken in their order as long as the credit
    pays for their sizes; what is left of it stays as long as the client has jobs. So all clients that wait get the same amount of
    work done, however many jobs they send and however large these are. The credit of a turn, `quantum`, is in the unit of sizes.
    """

    def __init__(self, quantum: int) -> None:
        self.quantum = max(1, quantum)
        self.items = 0
        self.size = 0
        self._lines: OrderedDict[str, Line[AnyJob]] = OrderedDict()
        self._has_credit = False  # whether the first client was given its credit in an earlier batch already

    def __bool__(self) -> bool:
        return bool(self._lines)

    def __contains__(self, client: str) -> bool:
        return client in self._lines

    @property
    def clients(self) -> int:
        """How many clients have jobs that wait."""
        return len(self._lines)

    def waiting(self, client: str) -> Line[AnyJob]:
        """What waits of a client's."""
        return self._lines.get(client) or Line()

    def put(self, job: AnyJob) -> None:
        """Add a job after those of its client."""
        line = self._lines.setdefault(job.client, Line())
        line.jobs.append(job)
        self._count(line, job.items, job.size)

    def discard(self, job: AnyJob) -> bool:
        """Take a job out; returns whether it was there."""
        line = self._lines.get(job.client)
        if line is None or job not in line.jobs:
            return False
        line.jobs.remove(job)
        self._count(line, -job.items, -job.size)
        if not line.jobs:
            self._leave(job.client)
        return True

    def take(self, budget: int) -> list[AnyJob]:
        """Take the jobs of the next batch: as many as fit in the budget, and the first one whatever its size."""
        batch: list[AnyJob] = []
        room = budget
        while self._lines:
            client, line = next(iter(self._lines.items()))
            if not self._has_credit:
                line.credit += self.quantum
                self._has_credit = True
            while line.jobs and line.jobs[0].size <= line.credit:
                job = line.jobs[0]
                if batch and job.size > room:
                    return batch
                line.jobs.popleft()
                self._count(line, -job.items, -job.size)
                batch.append(job)
                line.credit -= job.size
                room -= job.size
            if line.jobs:
                self._lines.move_to_end(client)
                self._has_credit = False
            else:
                self._leave(client)
        return batch

    def _count(self, line: Line[AnyJob], items: int, size: int) -> None:
        for counted in (self, line):
            counted.items += items
            counted.size += size

    def _leave(self, client: str) -> None:
        if next(iter(self._lines)) == client:
            self._has_credit = False
        del self._lines[client]
