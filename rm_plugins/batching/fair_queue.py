"""A queue in which clients take turns."""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar


class Job(Protocol):
    """A waiting job."""

    @property
    def client(self) -> str:
        """The client that submitted it."""

    @property
    def items(self) -> int:
        """The number of samples."""

    @property
    def size(self) -> int:
        """The amount of work, at least 1."""


AnyJob = TypeVar("AnyJob", bound=Job)


@dataclass(slots=True)
class Line(Generic[AnyJob]):
    """The waiting jobs of a client, with their total samples and size."""

    jobs: deque[AnyJob] = field(default_factory=deque)
    credit: int = 0
    items: int = 0
    size: int = 0


class FairQueue(Generic[AnyJob]):
    """Jobs by client, taken by deficit round robin (Shreedhar and Varghese, 1995).

    Clients take turns in a circle. At each turn, a client gets the credit `quantum` (in the unit of sizes), and its jobs leave the queue in
    order until the credit is used up. Unused credit is kept while the client has jobs. So all waiting clients get the same amount of work
    done, regardless of the number and size of their jobs.
    """

    def __init__(self, quantum: int) -> None:
        self.quantum = max(1, quantum)
        self.items = 0
        self.size = 0
        self._lines: OrderedDict[str, Line[AnyJob]] = OrderedDict()
        self._has_credit = False  # whether the first client already got its credit in an earlier batch

    def __bool__(self) -> bool:
        return bool(self._lines)

    def __contains__(self, client: str) -> bool:
        return client in self._lines

    @property
    def clients(self) -> int:
        """The number of clients with waiting jobs."""
        return len(self._lines)

    def waiting(self, client: str) -> Line[AnyJob]:
        """The waiting jobs of a client."""
        return self._lines.get(client) or Line()

    def put(self, job: AnyJob) -> None:
        """Add a job after the other jobs of its client."""
        line = self._lines.setdefault(job.client, Line())
        line.jobs.append(job)
        self._count(line, job.items, job.size)

    def discard(self, job: AnyJob) -> bool:
        """Remove a job; returns whether it was in the queue."""
        line = self._lines.get(job.client)
        if line is None or job not in line.jobs:
            return False
        line.jobs.remove(job)
        self._count(line, -job.items, -job.size)
        if not line.jobs:
            self._leave(job.client)
        return True

    def take(self, budget: int) -> list[AnyJob]:
        """Take the jobs of the next batch: as many as fit in the budget, but at least one, of any size."""
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
