"""The processes that score the blocks of a job: each is given the next block when it is done with one, and lost ones are replaced."""

from __future__ import annotations

import logging
import multiprocessing
import signal
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import ForkingPickler
from typing import Any, Protocol

from rm_plugins.devices import accelerators, environment, environment_of
from rm_plugins.errors import ProcessError
from rm_plugins.jobs.crew_member import Done, LoadedReward, Prepare, Task, scoring_process

logger = logging.getLogger(__name__)

_TICK_SECONDS = 0.2
_CLOSING_SECONDS = 5.0
_RESUME = "Run the same command again to resume: what is scored is kept."


class CrewProcess(ABC):
    """A process of a crew, as the job sees it."""

    name: str
    """What messages call it, such as ``process 1 (cuda:1)``."""

    def __init__(self) -> None:
        self.connection: Connection | None = None
        self.is_loaded = False
        self.work: bytes | None = None
        """The block that it scores, as it was sent."""
        self.rows = (0, 0)
        """The numbers of the first and the last row of that block."""
        self.failed_loads = 0
        """How often in a row it has ended before the reward was loaded."""

    @abstractmethod
    def start(self) -> bool:
        """Start it where it does not run; returns whether it runs."""

    @abstractmethod
    def how_it_ended(self) -> str:
        """How it has ended, after its connection was closed."""

    @abstractmethod
    def end(self, at_once: bool) -> None:
        """End it."""

    def send(self, *request: Any) -> bool:
        """Send a request; returns False where it has ended."""
        return self.send_bytes(bytes(ForkingPickler.dumps(request)))

    def send_bytes(self, request: bytes) -> bool:
        """Send a request that is pickled already."""
        if self.connection is None:
            return False
        try:
            self.connection.send_bytes(request)
        except OSError:
            return False  # its end is noticed where its answer is awaited
        return True

    def disconnect(self) -> None:
        """Close the connection."""
        if self.connection is not None:
            self.connection.close()
        self.connection, self.is_loaded, self.work = None, False, None


class OwnProcess(CrewProcess):
    """A process that the job starts.

    Args:
        number: Its number, from 0.
        processes: The number of processes.
        prepare: Sets it up.
        device: Its device; None leaves the choice to the environment.
    """

    def __init__(self, number: int, processes: int, prepare: Prepare, device: str | None) -> None:
        super().__init__()
        self.name = f"process {number}" if device is None else f"process {number} ({device})"
        self._prepare = prepare
        self._variables = {} if device is None else environment_of(device, processes)
        self._process: Any = None

    def start(self) -> bool:
        """Start it where it does not run."""
        if self.connection is None:
            context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
            self.connection, theirs = context.Pipe()
            process = context.Process(target=scoring_process, args=(theirs, self._prepare), name=self.name)
            with environment(self._variables):
                process.start()
            theirs.close()
            self._process = process
        return True

    def how_it_ended(self) -> str:
        """Its signal or exit status."""
        self._process.join(_CLOSING_SECONDS)
        code = self._process.exitcode
        if code is None:
            return "closed its connection"
        with suppress(ValueError):
            return f"ended with signal {-code} ({signal.Signals(-code).name})"
        return f"ended with exit status {code}"

    def end(self, at_once: bool) -> None:
        """End it; its last block gets lost if it has to be at once."""
        if self._process is None:
            return
        if at_once:
            self._process.kill()
        self._process.join(_CLOSING_SECONDS)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self.disconnect()


def own_processes(number: int, prepare: Prepare = nullcontext) -> list[CrewProcess]:
    """So many processes of this machine, each with an accelerator of its own as far as there are enough.

    Args:
        number: How many; they share the CPUs, and the accelerators where these are fewer.
        prepare: Sets up each process.
    """
    devices = accelerators() or ("cpu",)
    return [OwnProcess(place, number, prepare, devices[place % len(devices)]) for place in range(number)]


class Arrivals(Protocol):
    """Where processes that others have started join a crew."""

    @property
    def awaits_more(self) -> bool:
        """Whether further ones are to come."""
        ...

    def come(self) -> Sequence[CrewProcess]:
        """Those that have come since this was called last."""
        ...

    def close(self) -> None:
        """Let no further one join."""
        ...


class Crew:
    """Processes that score blocks of rows for a job. Close it at the end, or use it as a context manager.

    Args:
        processes: The processes, which it starts when they are needed.
        arrivals: Where further processes come; None if none can.
    """

    def __init__(self, processes: Sequence[CrewProcess], arrivals: Arrivals | None = None) -> None:
        self._processes = list(processes)
        self._arrivals = arrivals
        self._spec = ""
        self._loads = 0
        self._facts: LoadedReward | None = None
        self._failed_on: dict[int, str] = {}

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(at_once=kind is not None)

    @property
    def facts(self) -> LoadedReward:
        """What is known of the reward that `load` has loaded."""
        assert self._facts is not None
        return self._facts

    def load(self, spec: str) -> LoadedReward:
        """Load a reward in every process, in place of the one before; returns what the first process that is ready tells of it.

        Raises:
            RmPluginsError: The reward cannot be loaded.
            ProcessError: A process has ended, or loaded another reward.
        """
        self._spec, self._facts = spec, None
        self._loads += 1
        self._failed_on = {}
        for process in self._processes:
            self._begin(process)
        while self._facts is None:
            self._next_answers()
        return self._facts

    def await_loaded(self) -> None:
        """Wait until every process has loaded the reward; scoring does not need it.

        Raises:
            RmPluginsError: The reward cannot be loaded.
        """
        while not all(process.is_loaded for process in self._processes):
            self._next_answers()

    def unload(self) -> None:
        """Free what the reward holds in the processes."""
        for process in self._processes:
            process.is_loaded = False
            process.send("unload")

    def score(self, tasks: Iterator[Task]) -> Iterator[Done]:
        """Score blocks in the processes, which keep the scores; returns them as they are done, in any order.

        Args:
            tasks: The blocks, each of which is read when a process is about to need it.

        Raises:
            RmPluginsError: The reward failed.
            ProcessError: Two processes have ended while they scored the same block, or there is no process left.
        """
        lost: deque[tuple[bytes, tuple[int, int]]] = deque()
        ready = map(_pickled, tasks)
        following = next(ready, None)
        while True:
            for process in [one for one in self._processes if one.is_loaded and one.work is None]:
                if lost:
                    process.work, process.rows = lost.popleft()
                elif following is not None:
                    process.work, process.rows = following
                    following = None
                else:
                    break
                process.send_bytes(process.work)
                # Prepared while the processes score, so that none waits for it.
                following = following or next(ready, None)
            if not lost and following is None and not any(one.work for one in self._processes):
                return
            yield from self._next_answers(lost)

    def describe(self, **arguments: Any) -> dict[str, Any]:
        """What identifies the reward, as `rm_plugins.evaluation.scored_reward.reward_facts` returns it in one of the processes."""
        while True:
            for process in self._processes:
                if process.is_loaded and process.send("describe", arguments):
                    answers = self._next_answers(awaited=process)
                    while not answers and process.is_loaded:
                        answers = self._next_answers(awaited=process)
                    if answers:
                        description: dict[str, Any] = answers[0]
                        return description
            self._next_answers()

    def close(self, at_once: bool = False) -> None:
        """End the processes.

        Args:
            at_once: Also in the middle of a block, which gets lost.
        """
        if self._arrivals is not None:
            self._arrivals.close()
        if not at_once:
            for process in self._processes:
                process.send_bytes(bytes(ForkingPickler.dumps(None)))
        for process in self._processes:
            process.end(at_once or not process.is_loaded)
        self._processes = []

    # --- Answers ----------------------------------------------------------------------------------------------------------

    def _begin(self, process: CrewProcess) -> None:
        """Have a process load the reward."""
        process.is_loaded = False
        if process.start():
            process.send("load", self._spec, self._loads)

    def _next_answers(
        self, lost: deque[tuple[bytes, tuple[int, int]]] | None = None, awaited: CrewProcess | None = None
    ) -> list[Any]:
        """Wait a moment for processes; what those have scored, and what `awaited` has described."""
        for process in () if self._arrivals is None else self._arrivals.come():
            self._processes.append(process)
            self._begin(process)
        connected = {one.connection: one for one in self._processes if one.connection is not None}
        if not connected and (self._arrivals is None or not self._arrivals.awaits_more):
            raise ProcessError(f"All processes of this job have ended. {_RESUME}")
        answers: list[Any] = []
        for connection in wait([*connected], _TICK_SECONDS):
            process = connected[connection]  # type: ignore[index]  # it is one of those that were waited for
            try:
                name, *content = process.connection.recv()  # type: ignore[union-attr]
            except (EOFError, OSError):
                self._replace(process, lost)
                continue
            if name == "failed":
                error, trace = content
                error.add_note(f"In {process.name}:\n{trace}")
                raise error
            if name == "loaded":
                if content[1] == self._loads:  # not of a reward that was replaced before the process had loaded it
                    self._check(process, content[0])
            elif name == "scored":
                process.work = None
                answers.append(content[0])
            elif process is awaited:
                answers.append(content[0])
        return answers

    def _check(self, process: CrewProcess, facts: LoadedReward) -> None:
        """Take note that a process has loaded the reward, which must be the same everywhere."""
        if self._facts is not None and facts != self._facts:
            raise ProcessError(
                f"The processes of this job have different rewards: the fingerprint is {self._facts.fingerprint[:12]}, and "
                f"{facts.fingerprint[:12]} in {process.name}. Give every machine the same files and packages, and start again."
            )
        self._facts = facts
        process.is_loaded, process.failed_loads = True, 0

    def _replace(self, process: CrewProcess, lost: deque[tuple[bytes, tuple[int, int]]] | None) -> None:
        """Name a process that has ended, give its block to another one, and start it again."""
        work, (first, last), was_loaded = process.work, process.rows, process.is_loaded
        ended = f"{process.name} {process.how_it_ended()}"
        process.disconnect()
        process.failed_loads = 0 if was_loaded else process.failed_loads + 1
        if process.failed_loads > 1:
            raise ProcessError(
                f"{_capital(ended)} while it loaded the reward, for the second time. If memory is short, use fewer --processes. {_RESUME}"
            )
        if work is not None and (before := self._failed_on.get(first)):
            raise ProcessError(
                f"{_capital(ended)} while it scored rows {first} to {last}, like {before} before. If memory is short, use a smaller "
                f"--batch-size or fewer --processes. {_RESUME}"
            )
        doing = "" if was_loaded else " while it loaded the reward"
        if work is not None:
            doing = f" while it scored rows {first} to {last}"
        if work is not None and lost is not None:
            self._failed_on[first] = process.name
            lost.append((work, (first, last)))
        self._begin(process)
        others = "A new one is started" if process.connection is not None else "The others continue"
        logger.warning("%s%s. %s.", _capital(ended), doing, others)


def _pickled(task: Task) -> tuple[bytes, tuple[int, int]]:
    return bytes(ForkingPickler.dumps(("score", task))), (task.first, task.first + len(task.samples) - 1)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
