"""A process that scores blocks of rows for a job of another process: it loads the reward, scores what it is sent, and keeps the scores."""

from __future__ import annotations

import gc
import logging
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import rm_plugins as rm
from rm_plugins.data.scored_rows import Block, scored_block
from rm_plugins.errors import RmPluginsError, ScoringError, UnsupportedError, plain_error
from rm_plugins.groups import RowGroups
from rm_plugins.identity import fingerprint
from rm_plugins.jobs.blocks import KeptBlocks
from rm_plugins.jobs.kept_rows import kept_line
from rm_plugins.jobs.work import counted_work
from rm_plugins.provider import Provider
from rm_plugins.providers.combinators.parts import groupings, learns_while_scoring
from rm_plugins.samples import Sample

Prepare = Callable[[], AbstractContextManager[Any]]
"""Sets up a process, such as its logging, until it is closed. It must be a function of a module, which another process can import."""


@dataclass(frozen=True, slots=True)
class LoadedReward:
    """What a job needs to know of a reward.

    Args:
        label: Its name.
        fingerprint: The digest of what makes its scores.
        groupings: By what its parts that compare samples group them (`groupings`); empty if none does.
        learns: The parts that change while they score.
        split: Whether a model of it is split over the processes of a launcher.
    """

    label: str
    fingerprint: str
    groupings: tuple[str | None, ...]
    learns: tuple[str, ...]
    split: bool = False

    @classmethod
    def of(cls, provider: Provider) -> LoadedReward:
        """The facts of a provider; every weight is read for its fingerprint."""
        parts = [part for _, part in provider.walk()]
        return cls(
            provider.label,
            fingerprint(provider),
            groupings(provider),
            tuple(part.called for part in parts if learns_while_scoring(part)),
            any(getattr(model.settings, "tp_plan", None) is not None for part in parts for model in part.models.values()),
        )

    def check_shared(self) -> None:
        """Refuse a reward whose rows cannot be divided among processes.

        Raises:
            UnsupportedError: Its scores depend on all rows before, or its model is split over the processes.
        """
        if self.learns:
            raise UnsupportedError(
                f"The scores of {self.label!r} depend on all rows before, because {', '.join(self.learns)} learns while it scores, so "
                "several processes cannot share the rows. Score with one process, or give the transform fixed statistics "
                "(`mean` and `std` instead of `running: true`)."
            )
        if self.split:
            raise UnsupportedError(
                f"A model of {self.label!r} is split over the processes (tp_plan), which then score the same rows together. Leave out "
                "tp_plan, or spread the model over the devices of one process with device_map."
            )


class Task(NamedTuple):
    """A block to score.

    Args:
        first: The number of its first row.
        digests: The digest of each row.
        samples: The samples of each row.
        folder: The folder of the kept blocks.
        key: Their key.
        groups: How the reward groups samples.
    """

    first: int
    digests: list[str]
    samples: list[tuple[Sample, ...]]
    folder: Path
    key: str
    groups: RowGroups


class Done(NamedTuple):
    """A block whose scores are kept.

    Args:
        first: The number of its first row.
        work: What was summed over its samples: tokens, seconds, rows.
        counts: What the reward has counted meanwhile (`Provider.counts`).
    """

    first: int
    work: dict[str, float]
    counts: dict[str, int]


def scoring_process(connection: Connection, prepare: Prepare) -> None:
    """Score for the process at the other end until that closes the connection or ends."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # a terminal sends them to all processes, and the job's own decides
    with prepare():
        attend(connection)


def attend(connection: Connection) -> None:
    """Answer the requests of a job until it closes the connection or ends.

    Args:
        connection: A request is a name with its arguments: ``load`` a spec, ``score`` a `Task`, ``describe`` the reward or ``unload``
            it. An error is an answer as well.
    """
    member = _Member()
    with suppress(EOFError, OSError):  # the job has ended
        while (request := connection.recv()) is not None:
            try:
                answer = member.answer(*request)
            except Exception as error:
                answer = ("failed", portable_error(error), "".join(traceback.format_exception(error)))
            connection.send(answer)
    member.unload()


def portable_error(error: BaseException) -> RmPluginsError:
    """What a process answers where it failed: an error that the job can read, and which says that a foreign exception is one."""
    if isinstance(error, RmPluginsError):
        return plain_error(error)
    if any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__):  # torch's, without importing it
        return ScoringError(f"The device has too little memory. {error}")
    if isinstance(error, MemoryError):
        return ScoringError("There is not enough memory. Try a smaller --batch-size, or fewer processes.")
    return ScoringError(f"Unexpected error, probably a fault in rm-plugins or in a plug-in: {type(error).__name__}: {error}")


class _Member:
    def __init__(self) -> None:
        self._provider: Provider | None = None
        self._counted: Counter[str] = Counter()

    def answer(self, name: str, *arguments: Any) -> tuple[Any, ...]:
        if name == "load":
            spec, number = arguments
            return "loaded", self._loaded(spec), number
        if name == "unload":
            self.unload()
            return ("unloaded",)
        if name == "describe":
            from rm_plugins.evaluation.scored_reward import reward_facts

            return "described", reward_facts(self._provider, **arguments[0])
        return "scored", self._scored(*arguments)

    def _loaded(self, spec: str) -> LoadedReward:
        self.unload()
        provider = rm.load(spec)
        facts = LoadedReward.of(provider)
        self._provider, self._counted = provider, Counter()
        return facts

    def _scored(self, task: Task) -> Done:
        assert self._provider is not None
        block = Block(task.first, [{} for _ in task.samples], task.samples)
        scored, metadata = scored_block(self._provider, block, task.groups)
        KeptBlocks(task.folder, task.key).write(task.first, map(kept_line, task.digests, scored))
        before, self._counted = self._counted, Counter(self._provider.counts)
        return Done(task.first, counted_work(metadata), dict(self._counted - before))

    def unload(self) -> None:
        if self._provider is None:
            return
        provider, self._provider = self._provider, None
        try:
            provider.close()
        except Exception:
            logging.getLogger(__name__).exception("The reward could not be closed")
        del provider
        free_memory()


def free_memory() -> None:
    """Free what a closed reward has held."""
    gc.collect()
    if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
