"""Combines the loaded reward, the queue and the metrics; the endpoints of all dialects call it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from rm_plugins import __version__
from rm_plugins.batching.batcher import Batcher, Done, Overloaded, Part, Stopped
from rm_plugins.errors import DataError, RmPluginsError
from rm_plugins.protocols.native import VERSION
from rm_plugins.samples import Sample
from rm_plugins.scores import Scores
from rm_plugins.server.aside import at_home, beside
from rm_plugins.server.dialects.dialect import Output, Problem, Scored, Token, check_count
from rm_plugins.server.metrics import Metrics
from rm_plugins.server.request_log import current_fields
from rm_plugins.server.served_reward import HostedReward, RewardGone, characters
from rm_plugins.server.settings import Settings
from rm_plugins.server.work import Work

logger = logging.getLogger(__name__)

_CHARACTERS_A_TOKEN = 4
_CHARACTERS_BESIDE = 32
"""The size of a sample in addition to its text, for template, special tokens and Python objects."""


class Service:
    """Scores for many clients; `reload_all` makes all processes of the server reload, including this one, if there are several."""

    def __init__(self, reward: HostedReward, settings: Settings, reload_all: Callable[[], None] | None = None) -> None:
        self.reward = reward
        self.settings = settings
        self.names: Sequence[str] = (settings.model_name,) if settings.model_name else reward.facts.names
        self.name = self.names[0]
        self.fingerprint = reward.fingerprint
        self.max_items = settings.max_items
        self.max_values = settings.max_body_values
        self.eos_texts = settings.eos_texts
        self.joins: Callable[[HostedReward], None] = lambda reward: None
        """Agrees with the other processes of the server to serve a reward, or raises."""
        self._reload_all = reload_all
        self._loading = asyncio.Lock()
        self._load_began: float | None = None
        self._next_load: asyncio.Future[bool] | None = None
        self._loader: asyncio.Task[None] | None = None
        self._stopping: asyncio.Future[bool] | None = None
        self._batcher: Batcher[Work, tuple[Scores, HostedReward]] = Batcher(
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
    def loading_seconds(self) -> float | None:
        """How long the current reload has been loading the reward, in seconds; None without one."""
        return None if self._load_began is None else time.monotonic() - self._load_began

    @property
    def info(self) -> Mapping[str, Any]:
        """The answer of ``GET /v1/info``."""
        return {
            "protocol": VERSION,
            "server": f"rm-plugins {__version__}",
            "model": self.name,
            "fingerprint": self.reward.fingerprint,
            "manifests": self.reward.facts.manifests,
            "max_items": self.max_items,
            "rendered": self.reward.facts.takes_rendered,
            "compares": not self.reward.facts.is_merged,
            "reads": self.reward.facts.reads,
            "pair": self.reward.facts.pair,
            "templates": self.reward.facts.templates,
            "max_length": self.reward.facts.max_length,
            "spec": self.reward.facts.shown_spec,
        }

    @property
    def output(self) -> Output:
        """How another server of the same model would present its output."""
        return self.reward.facts.output

    @property
    def load(self) -> int:
        """The number of requests that wait or are being scored."""
        return self._batcher.load

    @property
    def request_id(self) -> str:
        """The id of the current request; empty outside a request."""
        return str((current_fields.get() or {}).get("request_id", ""))

    def start(self) -> None:
        """Start scoring, in the running event loop."""
        self._batcher.start()

    async def stop(self) -> bool:
        """Refuse new requests and finish accepted ones within the drain time; returns whether all were finished."""
        if self._stopping is None:
            self._stopping = asyncio.ensure_future(self._batcher.stop(self.settings.drain_seconds))
        return await asyncio.shield(self._stopping)

    def close(self) -> None:
        """Release the resources of the reward."""
        self.reward.close()

    @at_home
    async def score(self, samples: Sequence[Sample]) -> Scored:
        """Score samples of the current request; see `rm_plugins.server.dialects.dialect.Scorer`."""
        reward = self.reward
        if not samples:
            return Scored(
                [], fingerprint=reward.fingerprint, metadata={"tokens": 0, "truncated": 0, "manifests": reward.facts.manifests}
            )
        work = await beside(self._work, samples, reward, self.request_id)
        if not work.sizes:
            raise work.refusal
        fields = current_fields.get()
        client = str((fields or {}).get("client", ""))
        with _problems():
            done = await self._scored(work, client)
        scores, reward = done.result
        tokens = 0 if scores.tokens is None else int(scores.tokens.used.sum())
        truncated = 0 if scores.tokens is None else int(scores.tokens.truncated.sum())
        errors = {row: _public_message(scores.errors[row]) for row in sorted(scores.errors)}
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

    async def _scored(self, work: Work, client: str) -> Done[tuple[Scores, HostedReward]]:
        """The scores of a request, all of one reward, and that reward."""
        whole = Part(work, len(work.sizes), work.size)
        parts = work.divided()
        if len(parts) == 1:
            (only,) = await self._batcher.submit_parts([whole], client=client)
            return only

        def repeat(results: Sequence[tuple[Scores, HostedReward]]) -> Part[Work] | None:
            """The whole request, if another reward was loaded before all of its parts were scored."""
            return None if all(reward is work.reward for _, reward in results) else whole

        sized = [Part(part, len(part.sizes), part.size) for part in parts]
        done = await self._batcher.submit_parts(sized, client=client, repeat=repeat)
        if len(done) == 1:
            return done[0]
        scores, waited, took = [one.result[0] for one in done], max(one.waited for one in done), max(one.took for one in done)
        return Done((work.together(scores), work.reward), waited, took)

    @at_home
    async def render(self, samples: Sequence[Sample]) -> list[list[dict[str, Any]]]:
        """Render samples; see `rm_plugins.server.dialects.dialect.Scorer`."""
        work = await beside(self._work, samples, self.reward, self.request_id)
        if work.refused:
            raise work.refusal
        with _problems():
            return await self._batcher.call(self.reward.render, samples)  # perhaps reloaded meanwhile

    @at_home
    async def lengths(self, samples: Sequence[Sample]) -> list[int]:
        """Count the tokens of samples; see `rm_plugins.server.dialects.dialect.Scorer`."""
        self._check_sizes(samples)
        with _problems():
            return await self._batcher.call(self.reward.lengths, samples)

    @at_home
    async def tokenize(self, texts: Sequence[str], *, add_special_tokens: bool) -> list[list[Token]]:
        """Tokenize texts; see `rm_plugins.server.dialects.dialect.Scorer`."""
        self._check_sizes([Sample("", text) for text in texts])
        with _problems():
            return await self._batcher.call(self.reward.tokenize, texts, add_special_tokens)

    @at_home
    async def detokenize(self, rows: Sequence[Sequence[int]], *, skip_special_tokens: bool) -> list[str]:
        """Decode token ids; see `rm_plugins.server.dialects.dialect.Scorer`."""
        with _problems():
            return await self._batcher.call(self.reward.detokenize, rows, skip_special_tokens)

    @at_home
    async def reload(self) -> bool:
        """Reload the spec in all processes of the server; see `rm_plugins.server.dialects.dialect.Scorer`."""
        if self._reload_all is None:
            return await self.reload_here()
        load = self._upcoming_load()
        self._reload_all()  # includes this process
        return await asyncio.shield(load)

    async def reload_here(self) -> bool:
        """Reload the spec in this process; if the reward has changed, it scores from the next batch on. Raises like `reload`."""
        load = self._upcoming_load()
        if self._loader is None:
            self._loader = asyncio.create_task(self._load_in_turn())
        return await asyncio.shield(load)  # finish reloading even if the client disconnects

    def _upcoming_load(self) -> asyncio.Future[bool]:
        """The future result of the next reload."""
        if self._next_load is None:
            self._next_load = asyncio.get_running_loop().create_future()
            self._next_load.add_done_callback(lambda load: load.exception())  # perhaps no client waits any more
        return self._next_load

    async def _load_in_turn(self) -> None:
        async with self._loading:
            load = self._upcoming_load()
            # Later requests need another reload, because the files may change after this point.
            self._next_load = self._loader = None
            try:
                load.set_result(await self._swap())
            except Exception as error:
                load.set_exception(error)

    async def _swap(self) -> bool:
        old = self.reward
        if old.source is None:
            raise Problem("invalid", "this reward was made in Python, not from a spec, so it cannot be reloaded")
        logger.info("Loading the reward again; %s stays in use until then", old.fingerprint[:12])
        self._load_began = time.monotonic()
        try:
            new = await asyncio.to_thread(self._again, old)
        except Exception as error:
            self.metrics.reloaded("failed")
            with suppress(RmPluginsError):
                self.joins(old)
            logger.exception("The reward could not be reloaded; %s stays in use", old.fingerprint[:12])
            raise Problem(
                "failed",
                f"the reward could not be reloaded ({type(error).__name__}), and the previous one stays in use; see the server's log for "
                "the reason",
            ) from error
        finally:
            self._load_began = None
        changed = new.fingerprint != old.fingerprint
        self.metrics.reloaded("changed" if changed else "unchanged")
        is_serving = all(replica.state == "serving" for replica in old.replicas)
        if not changed and new.facts.spec == old.facts.spec and is_serving:
            new.close()
            logger.info("The reward has not changed: %s", old.fingerprint[:12])
            return False
        self.reward = new
        self.fingerprint = new.fingerprint
        self._batcher.shape(**self._shape(new))
        self.metrics.serves(self.name, old.fingerprint, now=False)
        self.metrics.serves(self.name, new.fingerprint, now=True)
        self._warn(new)
        if changed:
            logger.info("The reward has changed: %s replaces %s", new.fingerprint[:12], old.fingerprint[:12])
        elif is_serving:
            logger.info("The reward has new settings: %s", new.fingerprint[:12])
        else:
            logger.info("The reward has new processes: %s", new.fingerprint[:12])
        await self._batcher.settled()
        await asyncio.to_thread(old.close)
        return changed

    def _again(self, old: HostedReward) -> HostedReward:
        """The reward of the current spec, if the other processes agree to serve it."""
        new = old.again()
        try:
            self.joins(new)
        except RmPluginsError:
            new.close()
            raise
        return new

    def _shape(self, reward: HostedReward) -> dict[str, Any]:
        tokens = self.settings.max_batch_tokens or reward.facts.batch_tokens
        replicas = len(reward.replicas)
        threads = replicas * (self.settings.threads if reward.facts.is_concurrent else 1)
        budget = _CHARACTERS_A_TOKEN * tokens
        return {"budget": budget, "threads": threads, "shares": replicas, "merges": reward.facts.is_merged}

    def _warn(self, reward: HostedReward) -> None:
        for part in reward.facts.learns:
            logger.warning(
                "%s learns from the samples it scores, so a client's scores depend on the requests of all clients. Use fixed settings, or "
                "serve it to one trainer only.",
                part,
            )

    def _work(self, samples: Sequence[Sample], reward: HostedReward, name: str) -> Work:
        check_count(self, len(samples))
        work = Work(samples, name, reward)
        sizes: dict[int, int] = {}
        for row, sample in enumerate(samples):
            try:
                sizes[row] = self._size(sample)
            except DataError as error:
                work.refused[row] = error
        if (size := sum(sizes.values())) > self.settings.max_queue_characters:  # many completions may repeat one long prompt
            most = self.settings.max_queue_characters
            raise Problem(
                "too-large",
                f"the samples have {size:,} characters in total, but a request may have at most {most:,}; send fewer samples at a time",
            )
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
            raise DataError(f"It has {size:,} characters; the limit is {self.settings.max_characters:,}.")
        return size + _CHARACTERS_BESIDE

    def _run(self, works: Sequence[Work]) -> list[tuple[Scores, HostedReward] | Exception]:
        """Score the requests of a batch; runs in a thread."""
        reward = self.reward  # perhaps reloaded after the request arrived
        works = [work if work.reward is reward else self._work(work.samples, reward, work.name) for work in works]
        scorable = [work for work in works if work.sizes]
        requests, names = [work.valid for work in scorable], [work.name for work in scorable]
        try:
            scored = iter(reward.score(requests, names) if requests else [])
        except RewardGone as error:
            return [_gone(error) for _ in works]
        return [(work.completed(next(scored)), reward) if work.sizes else work.refusal for work in works]


@contextmanager
def _problems() -> Iterator[None]:
    """Translate errors of the batcher and the reward to problems for the client."""
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
    return Problem("unavailable", f"{error}; it is being restarted, retry later", headers={"Retry-After": "5"})


def _public_message(error: Exception) -> str:
    """The message of an error for the client: in full if it is about the client's sample, otherwise only the kind of error."""
    if isinstance(error, DataError):
        return str(error)
    return f"the reward failed ({type(error).__name__}); see the server's log for the reason"


def _finite(values: Any) -> list[float | None]:
    """Numbers for JSON: None for NaN and infinity."""
    return [value if value - value == 0 else None for value in values.tolist()]
