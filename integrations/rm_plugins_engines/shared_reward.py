"""One loaded reward for each process. All calls of an engine share it, and calls that wait at the same time are scored in one batch.

An engine calls its reward for one sample at a time, from many coroutines or threads. The calls meet in a
`rm_plugins.batching.batcher.Batcher`, which has an event loop and a thread of its own, so that callers may use any event loop or none.
A forked child has neither of them: it loads the reward again, and computes in one thread.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeAlias

from rm_plugins.batching.batcher import Batch, Batcher
from rm_plugins.canonical_json import canonical_json
from rm_plugins.errors import SpecError
from rm_plugins.per_process import PerProcess
from rm_plugins.samples import RenderedSample, Sample
from rm_plugins.scores import Scores
from rm_plugins.server.served_reward import ServedReward, characters
from rm_plugins.spec import FILE_ENDINGS, load
from rm_plugins.training.whole_groups import scored_in_whole_groups
from rm_plugins.transforms import shared_batch

Spec: TypeAlias = str | Path | Mapping[str, Any] | Callable[..., Any]
"""What `rm_plugins.load` takes, except a provider that is already loaded, which belongs to one process."""

_CHARACTERS_A_TOKEN = 4
_THREADS_OF_WAITING = 8
"""The batches that run at the same time, if the reward waits for I/O instead of computing."""
_UNBOUNDED = 2**62
"""The engine bounds how many samples wait."""


_imported_by = os.getpid()


def _use_one_thread_if_forked() -> None:
    """torch's threads do not survive a fork, after which a computation in several threads crashes or never ends."""
    if os.getpid() != _imported_by and "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


class SharedReward:
    """A loaded reward, and the batches in which its callers' samples are scored. Any thread and any event loop may call it.

    Args:
        spec: The reward.

    Attributes:
        reward: The loaded reward, with facts about it.
        counts: The number of ``batches`` and ``samples`` so far.
        counting: Lets one thread count at a time.

    Raises:
        SpecError: The spec is wrong.
        ModelError: It names a model that cannot be used.
    """

    def __init__(self, spec: Spec) -> None:
        _use_one_thread_if_forked()
        self.reward = ServedReward(load(spec)) if callable(spec) else ServedReward.load(spec)
        self.counts: Counter[str] = Counter()
        self.counting = threading.Lock()
        facts = self.reward.facts
        self._batcher: Batcher[Sequence[Sample], Scores] = Batcher(
            self._scored,
            budget=_CHARACTERS_A_TOKEN * facts.batch_tokens,
            max_items=_UNBOUNDED,
            max_size=_UNBOUNDED,
            threads=_THREADS_OF_WAITING if facts.is_concurrent else 1,
            merges=facts.is_merged,
            on_batch=self._count,
        )
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="rm-plugins-engine", daemon=True).start()
        self._loop.call_soon_threadsafe(self._batcher.start)

    def score(self, samples: Sequence[Sample]) -> Scores:
        """The scores of the samples, in their order; see `submit`."""
        return self.submit(samples).result()

    def score_here(self, samples: Sequence[Sample]) -> Scores:
        """The same in the calling thread, without other callers' samples; groups that are spread over processes are whole.

        Raises:
            ProcessError: Another process fails, or is out of step.
        """
        scores = scored_in_whole_groups(self.reward.provider, samples, self._scored_here)
        self.counts["batches"] += 1
        self.counts["samples"] += len(samples)
        return scores

    def _scored_here(self, samples: Sequence[Sample]) -> Scores:
        with shared_batch(self.reward.provider):
            (scores,) = self._scored([samples])
        return scores

    async def score_async(self, samples: Sequence[Sample]) -> Scores:
        """The same for a coroutine of any event loop."""
        return await asyncio.wrap_future(self.submit(samples))

    def submit(self, samples: Sequence[Sample]) -> Future[Scores]:
        """Score the samples in the next batch, together with those of other callers.

        Returns:
            The future scores, [N]. `Scores.errors` has the failures that the reward's own `on_error` leaves.

        Raises:
            DataError: The reward does not take rendered texts, and a sample is one.
        """
        for sample in samples:
            if isinstance(sample, RenderedSample):
                self.reward.check(sample)
        return asyncio.run_coroutine_threadsafe(self._submitted(samples), self._loop)

    async def _submitted(self, samples: Sequence[Sample]) -> Scores:
        size = sum(max(1, characters(sample)) for sample in samples)
        done = await self._batcher.submit(samples, client="", items=len(samples), size=max(1, size))
        return done.result

    def _scored(self, calls: Sequence[Sequence[Sample]]) -> Sequence[Scores]:
        return self.reward.score(calls, [f"of an engine, for {len(samples)} samples" for samples in calls])

    def _count(self, batch: Batch) -> None:
        self.counts["batches"] += 1
        self.counts["samples"] += batch.items


class _Rewards:
    """The rewards of this process, by what names them; a load that runs is shared too."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loads: dict[Any, Future[SharedReward]] = {}

    def get(self, spec: Spec) -> SharedReward:
        key = _key(spec)
        with self._lock:
            is_first = key not in self._loads
            shared: Future[SharedReward] = self._loads.setdefault(key, Future())
        if is_first:
            try:
                shared.set_result(SharedReward(spec))
            except BaseException as error:
                with self._lock:
                    self._loads.pop(key, None)  # a later call tries again
                shared.set_exception(error)
        return shared.result()

    def loaded(self, spec: Spec) -> SharedReward | None:
        with self._lock:
            shared = self._loads.get(_key(spec))
        return shared.result() if shared is not None and shared.done() else None


_rewards = PerProcess[_Rewards]()


def shared_reward(spec: Spec) -> SharedReward:
    """The reward of a spec in this process: loaded by the first call, which other callers wait for.

    Raises:
        RmPluginsError: It cannot be loaded; the next call tries again.
    """
    return _rewards.made(_Rewards).get(spec)


async def shared_reward_async(spec: Spec) -> SharedReward:
    """The same without blocking the event loop while a model is loaded."""
    shared = _rewards.made(_Rewards).loaded(spec)
    return shared if shared is not None else await asyncio.to_thread(shared_reward, spec)


def located(spec: Spec) -> Spec:
    """The spec with the absolute path of its file or folder, which processes with another working directory find too.

    >>> located("constant"), located("http://10.0.0.5:8000/reward.json")
    ('constant', 'http://10.0.0.5:8000/reward.json')
    """
    if not isinstance(spec, (str, Path)) or is_url(spec):
        return spec
    path = os.path.abspath(os.path.expanduser(spec))
    is_named = isinstance(spec, Path) or path.endswith(FILE_ENDINGS) or str(spec).startswith(("/", ".", "~"))
    return path if is_named or os.path.isdir(path) else spec


def is_url(spec: Spec) -> bool:
    """Whether a spec is the URL of a remote scorer."""
    return isinstance(spec, str) and spec.lower().startswith(("http://", "https://"))


def checked_spec(spec: Spec) -> Spec:
    """The located spec. A spec whose file is not on this machine is refused before an engine starts.

    Raises:
        SpecError: There is no such file.
    """
    place = located(spec)
    if isinstance(place, str) and os.path.isabs(place) and not os.path.exists(place):
        raise SpecError(
            f"The spec {place} is not on the machine {socket.gethostname()!r}. Engines call rewards on several machines: put the file "
            "and what it names where all of them read it, or write the adapter for the URL of `rm-plugins serve`."
        )
    return place


def _key(spec: Spec) -> Any:
    return canonical_json(spec) if isinstance(spec, Mapping) else located(spec)
