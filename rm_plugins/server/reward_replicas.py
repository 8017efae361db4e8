"""A reward in several processes, such as one per accelerator, which take batches from one queue."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from rm_plugins.errors import ModelError, UnsupportedError
from rm_plugins.samples import Sample
from rm_plugins.scores import Scores
from rm_plugins.server.dialects.dialect import Token
from rm_plugins.server.replicas import Place, Replica
from rm_plugins.server.reward_process import Hosting, RewardProcess
from rm_plugins.server.served_reward import HostedReward, RewardFacts, RewardGone, RewardLate

logger = logging.getLogger(__name__)

_TICK_SECONDS = 0.1

Result = TypeVar("Result")


class RewardReplicas(HostedReward):
    """The same reward in several processes, each of which is restarted if it ends.

    A call goes to the process that has the least to do. If that process ends, another one answers the call.

    Args:
        source: The spec or path that the reward is loaded from.
        hosting: The settings of each process.
        places: Where each process runs.

    Raises:
        RmPluginsError: The reward cannot be loaded on one of the devices.
        ModelError: Its files have changed between two processes.
        UnsupportedError: It learns from the samples that it scores, and each process would learn from other ones.
    """

    def __init__(self, source: str | Path | Mapping[str, Any], hosting: Hosting, places: Sequence[Place]) -> None:
        self._hosting = hosting
        self._places = places
        self._processes = _loaded(source, hosting, places)
        self._calls = dict.fromkeys(self._processes, 0)
        self._changed = threading.Condition()
        facts = self._processes[0].facts
        self._most_calls = hosting.threads if facts.is_concurrent else 1
        super().__init__(facts, source)
        try:
            self._check()
        except Exception:
            self.close()
            raise

    def _check(self) -> None:
        facts = self.facts
        others = {process.fingerprint for process in self._processes} - {facts.fingerprint}
        if others:
            raise ModelError(
                f"The files of the reward have changed while it was loaded: its fingerprint was {facts.fingerprint[:12]} and "
                f"{others.pop()[:12]}. Load it again when they are complete."
            )
        check_shared(facts, len(self._processes))

    @property
    def is_alive(self) -> bool:
        """Whether one of the processes is running."""
        return any(process.is_alive for process in self._processes)

    @property
    def replicas(self) -> tuple[Replica, ...]:
        """The state of each process."""
        return tuple(replica for process in self._processes for replica in process.replicas)

    def again(self) -> RewardReplicas:
        """Load the same source in other processes."""
        assert self.source is not None
        return RewardReplicas(self.source, self._hosting, self._places)

    def score(self, requests: Sequence[Sequence[Sample]], names: Sequence[str]) -> list[Scores]:
        """Score the samples of requests in one of the processes."""
        return self._ask(lambda process: process.score(requests, names))

    def render(self, samples: Sequence[Sample]) -> list[list[dict[str, Any]]]:
        """Render samples in one of the processes."""
        return self._ask(lambda process: process.render(samples))

    def lengths(self, samples: Sequence[Sample]) -> list[int]:
        """Count the tokens of samples in one of the processes."""
        return self._ask(lambda process: process.lengths(samples))

    def tokenize(self, texts: Sequence[str], add_special_tokens: bool) -> list[list[Token]]:
        """Tokenize texts in one of the processes."""
        return self._ask(lambda process: process.tokenize(texts, add_special_tokens))

    def detokenize(self, rows: Sequence[Sequence[int]], skip_special_tokens: bool) -> list[str]:
        """Decode token ids in one of the processes."""
        return self._ask(lambda process: process.detokenize(rows, skip_special_tokens))

    def close(self) -> None:
        """End the processes."""
        _close(self._processes)

    def _ask(self, call: Callable[[RewardProcess], Result]) -> Result:
        """The answer of a process; of a second one if the first ends.

        Raises:
            RewardGone: Both have ended, none is running, or the first did not answer in time. A call may be what ends a process, so it gets
                no third one.
        """
        try:
            with self._free() as process:
                return call(process)
        except RewardLate:
            raise
        except RewardGone:
            if not self.is_alive:
                raise
            logger.warning("A replica has ended; another one answers its requests")
        with self._free() as process:
            return call(process)

    @contextmanager
    def _free(self) -> Iterator[RewardProcess]:
        """The process with the fewest calls, as soon as it may have another call."""
        with self._changed:
            process = self._idlest()
            while self._calls[process] >= self._most_calls:
                self._changed.wait(_TICK_SECONDS)  # not longer, because a process may have been started again meanwhile
                process = self._idlest()
            self._calls[process] += 1
        try:
            yield process
        finally:
            with self._changed:
                self._calls[process] -= 1
                self._changed.notify_all()

    def _idlest(self) -> RewardProcess:
        alive = [process for process in self._processes if process.is_alive]
        return min(alive or self._processes, key=self._calls.__getitem__)  # if none is alive, the call says why


def check_shared(facts: RewardFacts, replicas: int) -> None:
    """Refuse a reward whose scores depend on the replica.

    Raises:
        UnsupportedError: It learns from the samples that it scores, and each replica would learn from other ones.
    """
    if facts.learns and replicas > 1:
        raise UnsupportedError(
            f"{', '.join(facts.learns)} learns from the samples that it scores, and each of the {replicas} replicas would learn from other "
            "samples. Serve one replica, or give the transform fixed statistics (`mean` and `std` instead of `running: true`)."
        )


def _loaded(source: str | Path | Mapping[str, Any], hosting: Hosting, places: Sequence[Place]) -> list[RewardProcess]:
    """A process per place; all load the reward at the same time.

    Raises:
        RmPluginsError: The reward cannot be loaded on one of them; the others are ended.
    """
    pool = ThreadPoolExecutor(len(places), thread_name_prefix="rm-plugins-load")
    for place in places if len(places) > 1 else ():
        logger.info("Replica %d of %d loads the reward for %s", place.number, place.processes, place.device)
    closing = threading.Event()
    loads = [pool.submit(RewardProcess, source, hosting, place, closing) for place in places]
    pool.shutdown(wait=False)
    wait(loads, return_when=FIRST_EXCEPTION)
    failed = next((load for load in loads if load.done() and load.exception() is not None), None)
    if failed is None:
        return [load.result() for load in loads]
    closing.set()
    for load in loads:
        load.add_done_callback(_close_loaded)
    raise failed.exception() or AssertionError


def _close_loaded(load: Future[RewardProcess]) -> None:
    if load.exception() is None:
        load.result().close()


def _close(processes: Sequence[RewardProcess]) -> None:
    """End processes at the same time, because each may take seconds."""
    with ThreadPoolExecutor(len(processes)) as pool:
        list(pool.map(RewardProcess.close, processes))
