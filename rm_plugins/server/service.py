"""Joins the loaded reward, the queue and the metrics: what the endpoints of all dialects call."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rm_plugins import __version__
from rm_plugins.batching.batcher import Batcher, Overloaded, Stopped
from rm_plugins.errors import DataError, RmPluginsError
from rm_plugins.protocols.native import VERSION
from rm_plugins.samples import Sample
from rm_plugins.scores import Scores, joined
from rm_plugins.server.aside import at_home
from rm_plugins.server.dialects.dialect import Output, Problem, Scored, Token, check_count
from rm_plugins.server.metrics import Metrics
from rm_plugins.server.request_log import current_fields
from rm_plugins.server.served_reward import HostedReward, RewardGone, characters
from rm_plugins.server.settings import Settings

logger = logging.getLogger(__name__)

_CHARACTERS_A_TOKEN = 4
_CHARACTERS_BESIDE = 32
"""What a sample costs beside its text: template, special tokens, rows in Python."""


@dataclass(frozen=True, slots=True)
class _Work:
    """The samples of a request: by row, the sizes of those that the reward can be given, and why it cannot be given the others."""

    samples: Sequence[Sample]
    name: str
    reward: HostedReward
    sizes: dict[int, int] = field(default_factory=dict)
    refused: dict[int, RmPluginsError] = field(default_factory=dict)

    @property
    def sound(self) -> list[Sample]:
        return [self.samples[row] for row in self.sizes]

    @property
    def refusal(self) -> Problem:
        row = min(self.refused)
        error = self.refused[row]
        return Problem("invalid", f"item {row}: {error}")

    def completed(self, scores: Scores) -> Scores:
        """The scores of the sound samples, with the errors of the others."""
        size = len(self.samples)
        return joined([scores.scattered([*self.sizes], size), Scores(np.full(size, np.nan), errors=self.refused)])


class Service:
    """Scores for many clients; `reload_all` has every process of the server load again, this one too, where there are several."""

    joins: Callable[[str], None] | None = None
    """Agrees with the other processes of the server to serve the reward of a fingerprint, or raises."""

    def __init__(self, reward: HostedReward, settings: Settings, reload_all: Callable[[], None] | None = None) -> None:
        self.reward = reward
        self.settings = settings
        self.names: Sequence[str] = (settings.model_name,) if settings.model_name else reward.facts.names
        self.name = self.names[0]
        self.fingerprint = reward.fingerprint
        self.max_items = settings.max_items
        self.max_values = settings.max_body_values
        self.eos_texts = settings.eos_texts
        self._reload_all = reload_all
        self._loading = asyncio.Lock()
        self._next_load: asyncio.Future[bool] | None = None
        self._loader: asyncio.Task[None] | None = None
        self._stopping: asyncio.Future[bool] | None = None
        self._batcher: Batcher[_Work, tuple[Scores, HostedReward]] = Batcher(
            self._run,
            **self._shape(reward),
            max_items=settings.max_queue_items,
            max_size=settings.max_queue_characters,
            on_batch=lambda batch: self.metrics.batch(batch),
        )
        self.metrics = Metrics(lambda: (self._batcher.queue.items, self._batcher.queue.size))
        self.metrics.serves(self.name, reward.fingerprint, now=True)
        self._warn(reward)

    @property
    def is_ready(self) -> bool:
        """Whether requests are accepted."""
        return not self._batcher.is_stopping and self.reward.is_alive

    @property
    def info(self) -> Mapping[str, Any]:
        """What ``GET /v1/info`` answers."""
        return {
            "protocol": VERSION,
            "server": f"rm-plugins {__version__}",
            "model": self.name,
            "fingerprint": self.reward.fingerprint,
            "manifests": self.reward.facts.manifests,
            "max_items": self.max_items,
            "rendered": self.reward.facts.takes_rendered,
            "reads": self.reward.facts.reads,
            "pair": self.reward.facts.pair,
            "templates": self.reward.facts.templates,
            "max_length": self.reward.facts.max_length,
            "spec": self.reward.facts.shown_spec,
        }

    @property
    def output(self) -> Output:
        """What a server of this very model would make of its output."""
        return self.reward.facts.output

    @property
    def load(self) -> int:
        """How many requests wait or are scored."""
        return self._batcher.load

    @property
    def request_id(self) -> str:
        """The id of the request that is answered here; empty outside of one."""
        return str((current_fields.get() or {}).get("request_id", ""))

    def start(self) -> None:
        """Begin to score, in the running event loop."""
        self._batcher.start()

    async def stop(self) -> bool:
        """Refuse new requests and finish the others, within the settings' time; returns whether all were."""
        if self._stopping is None:
            self._stopping = asyncio.ensure_future(self._batcher.stop(self.settings.drain_seconds))
        return await asyncio.shield(self._stopping)

    def close(self) -> None:
        """Give back what the reward holds."""
        self.reward.close()

    @at_home
    async def score(self, samples: Sequence[Sample]) -> Scored:
        """Score samples of the request that is answered here; see `rm_plugins.server.dialects.dialect.Scorer`."""
        reward = self.reward
        if not samples:
            return Scored(
                [], fingerprint=reward.fingerprint, metadata={"tokens": 0, "truncated": 0, "manifests": reward.facts.manifests}
            )
        work = await asyncio.to_thread(self._work, samples, reward, self.request_id)
        if not work.sizes:
            raise work.refusal
        fields = current_fields.get()
        client = str((fields or {}).get("client", ""))
        with _problems():
            done = await self._batcher.submit(work, client=client, items=len(work.sizes), size=sum(work.sizes.values()))
        scores, reward = done.result
        tokens = 0 if scores.tokens is None else int(scores.tokens.used.sum())
        truncated = 0 if scores.tokens is None else int(scores.tokens.truncated.sum())
        errors = {row: _told(scores.errors[row]) for row in sorted(scores.errors)}
        invalid = frozenset(row for row, error in scores.errors.items() if isinstance(error, DataError))
        self.metrics.scored(
            samples=len(samples),
            tokens=tokens,
            abstained=int(scores.abstained.sum()) - len(errors),
            failed=len(errors),
            waited=done.waited,
        )
        if fields is not None:
            fields["samples"] = fields.get("samples", 0) + len(samples)
            fields["tokens"] = fields.get("tokens", 0) + tokens
            fields["queue_ms"] = round(1e3 * done.waited, 1)
            fields["score_ms"] = round(1e3 * done.took, 1)
        if len(errors) == len(samples) and not invalid:
            raise Problem("failed", next(iter(errors.values())))
        return Scored(
            _finite(scores.values),
            {name: _finite(column) for name, column in scores.columns.items()},
            errors,
            invalid,
            reward.fingerprint,
            {"tokens": tokens, "truncated": truncated, "manifests": reward.facts.manifests},
        )

    @at_home
    async def render(self, samples: Sequence[Sample]) -> list[list[dict[str, Any]]]:
        """What each model of the reward makes of each sample; see `rm_plugins.server.dialects.dialect.Scorer`."""
        reward = self.reward
        work = await asyncio.to_thread(self._work, samples, reward, self.request_id)
        if work.refused:
            raise work.refusal
        with _problems():
            return await self._batcher.call(reward.render, samples)

    @at_home
    async def lengths(self, samples: Sequence[Sample]) -> list[int]:
        """How many tokens each sample has; see `rm_plugins.server.dialects.dialect.Scorer`."""
        self._check_sizes(samples)
        with _problems():
            return await self._batcher.call(self.reward.lengths, samples)

    @at_home
    async def tokenize(self, texts: Sequence[str], *, add_special_tokens: bool) -> list[list[Token]]:
        """The tokens of texts; see `rm_plugins.server.dialects.dialect.Scorer`."""
        self._check_sizes([Sample("", text) for text in texts])
        with _problems():
            return await self._batcher.call(self.reward.tokenize, texts, add_special_tokens)

    @at_home
    async def detokenize(self, rows: Sequence[Sequence[int]], *, skip_special_tokens: bool) -> list[str]:
        """The texts of token ids; see `rm_plugins.server.dialects.dialect.Scorer`."""
        with _problems():
            return await self._batcher.call(self.reward.detokenize, rows, skip_special_tokens)

    @at_home
    async def reload(self) -> bool:
        """Load the spec again, in all processes of the server; see `rm_plugins.server.dialects.dialect.Scorer`."""
        if self._reload_all is None:
            return await self.reload_here()
        load = self._upcoming_load()
        self._reload_all()  # which has this process load again, too
        return await asyncio.shield(load)

    async def reload_here(self) -> bool:
        """Load the spec again, and have the next batch scored by what was loaded, unless it is the same; raises as `reload`."""
        load = self._upcoming_load()
        if self._loader is None:
            self._loader = asyncio.create_task(self._load_in_turn())
        return await asyncio.shield(load)  # a client that goes away leaves nothing half done

    def _upcoming_load(self) -> asyncio.Future[bool]:
        """What becomes of the load that begins next."""
        if self._next_load is None:
            self._next_load = asyncio.get_running_loop().create_future()
            self._next_load.add_done_callback(lambda load: load.exception())  # perhaps nobody waits any more
        return self._next_load

    async def _load_in_turn(self) -> None:
        async with self._loading:
            load = self._upcoming_load()
            self._next_load = self._loader = None  # who asks from here on may mean what is not read by this one
            try:
                load.set_result(await self._swap())
            except Exception as error:
                load.set_exception(error)

    async def _swap(self) -> bool:
        old = self.reward
        if old.source is None:
            raise Problem("invalid", "this reward was made in Python, not from a spec, so that there is nothing to load again")
        try:
            new = await asyncio.to_thread(self._again, old)
        except Exception as error:
            self.metrics.reloaded("failed")
            with suppress(RmPluginsError):
                self._join(old)
            logger.exception("The reward could not be loaded again; %s goes on", old.fingerprint[:12])
            raise Problem(
                "failed",
                f"the reward could not be loaded again ({type(error).__name__}), and the earlier one goes on; the server's log has the "
                "reason",
            ) from error
        changed = new.fingerprint != old.fingerprint
        self.metrics.reloaded("changed" if changed else "unchanged")
        if not changed and new.facts.spec == old.facts.spec:
            new.close()
            logger.info("The reward is the same as before: %s", old.fingerprint[:12])
            return False
        self.reward = new
        self.fingerprint = new.fingerprint
        self._batcher.shape(**self._shape(new))
        self.metrics.serves(self.name, old.fingerprint, now=False)
        self.metrics.serves(self.name, new.fingerprint, now=True)
        self._warn(new)
        if changed:
            logger.info("Another reward scores from now on: %s in place of %s", new.fingerprint[:12], old.fingerprint[:12])
        else:
            logger.info("The same reward has other settings from now on: %s", new.fingerprint[:12])
        await self._batcher.settled()
        await asyncio.to_thread(old.close)
        return changed

    def _again(self, old: HostedReward) -> HostedReward:
        """What the spec describes now, if the other processes serve it as well, or will."""
        new = old.again()
        try:
            self._join(new)
        except RmPluginsError:
            new.close()
            raise
        return new

    def _join(self, reward: HostedReward) -> None:
        if self.joins is not None:
            self.joins(reward.fingerprint)

    def _shape(self, reward: HostedReward) -> dict[str, Any]:
        tokens = self.settings.max_batch_tokens or reward.facts.batch_tokens
        threads = self.settings.threads if reward.facts.is_concurrent else 1
        return {"budget": _CHARACTERS_A_TOKEN * tokens, "threads": threads, "merges": reward.facts.is_merged}

    def _warn(self, reward: HostedReward) -> None:
        for part in reward.facts.learns:
            logger.warning(
                "%s learns from what it scores, so that what a client is answered depends on what all clients have sent. Use settings "
                "that are fixed, or serve it to one trainer alone.",
                part,
            )

    def _work(self, samples: Sequence[Sample], reward: HostedReward, name: str) -> _Work:
        check_count(self, len(samples))
        work = _Work(samples, name, reward)
        sizes: dict[int, int] = {}
        for row, sample in enumerate(samples):
            try:
                sizes[row] = self._size(sample)
            except DataError as error:
                work.refused[row] = error
        if (
            size := sum(sizes.values())
        ) > self.settings.max_queue_characters:  # one long prompt may be that of many completions
            most = self.settings.max_queue_characters
            raise Problem("too-large", f"the samples have {size:,} characters together; at most {most:,} are taken at a time")
        for row, size in sizes.items():
            try:
                reward.check(samples[row])
                work.sizes[row] = size
            except DataError as error:
                work.refused[row] = error
        return work

    def _check_sizes(self, samples: Sequence[Sample]) -> None:
        for row, sample in enumerate(samples):
            try:
                self._size(sample)
            except DataError as error:
                raise Problem("invalid", f"item {row}: {error}") from None

    def _size(self, sample: Sample) -> int:
        size = characters(sample)
        if size > self.settings.max_characters:
            raise DataError(f"It has {size:,} characters; at most {self.settings.max_characters:,} are taken.")
        return size + _CHARACTERS_BESIDE

    def _run(self, works: Sequence[_Work]) -> list[tuple[Scores, HostedReward] | Exception]:
        """Score the requests of a batch; runs in a thread."""
        reward = self.reward  # perhaps loaded after a request had come
        works = [work if work.reward is reward else self._work(work.samples, reward, work.name) for work in works]
        asked = [work for work in works if work.sizes]
        requests, names = [work.sound for work in asked], [work.name for work in asked]
        try:
            scored = iter(reward.score(requests, names) if requests else [])
        except RewardGone as error:
            return [_gone(error) for _ in works]
        return [(work.completed(next(scored)), reward) if work.sizes else work.refusal for work in works]


@contextmanager
def _problems() -> Iterator[None]:
    """What the batcher raises, as a client is told of it."""
    try:
        yield
    except Overloaded as error:
        raise Problem(
            "overload",
            f"the queue is full; retry in {error.retry_after} s",
            headers={"Retry-After": str(error.retry_after)},
        ) from None
    except Stopped:
        raise Problem("unavailable", "the server is stopping", headers={"Retry-After": "1"}) from None
    except RewardGone as error:
        raise _gone(error) from error
    except DataError as error:
        raise Problem("invalid", str(error)) from error


def _gone(error: RewardGone) -> Problem:
    return Problem("unavailable", f"{error}; it is started again", headers={"Retry-After": "5"})


def _told(error: Exception) -> str:
    """What a client may read of an error: all of what is said of its own sample, and of others no more than the kind."""
    if isinstance(error, DataError):
        return str(error)
    return f"the reward failed ({type(error).__name__}); the server's log has the reason"


def _finite(values: Any) -> list[float | None]:
    """Numbers as JSON has them."""
    return [value if value - value == 0 else None for value in values.tolist()]
