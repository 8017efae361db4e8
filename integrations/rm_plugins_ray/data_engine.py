"""``rm-plugins score --engine ray``: Ray Data streams blocks of files through a pool of actors, each with the reward loaded once."""

from __future__ import annotations

import platform
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from textwrap import shorten
from typing import Any, ClassVar, TypeVar

import rm_plugins as rm
from rm_plugins import errors
from rm_plugins.errors import OutputError, ProcessError, RmPluginsError, plain_error
from rm_plugins.jobs.crew_member import portable_error
from rm_plugins.jobs.file_blocks import BlockScoring, FileBlock, FileScoring, ScoredBlock, files_of
from rm_plugins.jobs.job_engine import JobEngine, ScoringRequest, ScoringSummary
from rm_plugins.jobs.progress import JobProgress
from rm_plugins.jobs.work import speed
from rm_plugins_ray.attempts import Attempts
from rm_plugins_ray.carried_reward import CarriedReward
from rm_plugins_ray.connection import connected, installed_ray
from rm_plugins_ray.node_check import reason_of

_BLOCK_ROWS = ((2**24, 256), (2**30, 1024))
"""Rows of a block of sources that have fewer bytes than this: enough blocks for many actors."""
_MOST_BLOCK_ROWS = 4096
"""Rows of a block of larger sources: seconds to minutes of scoring, which is what a dead actor loses."""

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
_ITEM = "item"
_REASON_CHARACTERS = 500
_AT_A_TIME = 2
"""Blocks that an actor has or waits for: the next one is there when one is done, and a dead actor loses no more."""


class RayDataEngine(JobEngine):
    """Scores files on a Ray cluster, with one copy of the reward per actor.

    Args:
        address: ``HOST:PORT`` of a running cluster, ``auto`` for the one that runs on this machine, or ``local`` for this machine alone. By
            default what ``RAY_ADDRESS`` says, else ``local``.
        workers: The number of actors; by default as many as the cluster has GPUs, or CPUs where the reward has no model or there is no GPU.
        block_rows: Rows that are scored and kept as one block; by default 256 to 4096, by the size of the source.
    """

    name: ClassVar[str] = "ray"

    def __init__(self, address: str | None = None, workers: int | None = None, *, block_rows: int | None = None) -> None:
        super().__init__(address, workers)
        self.block_rows = block_rows

    def score(self, request: ScoringRequest, progress: JobProgress) -> ScoringSummary:
        """Score the files; see `JobEngine.score`."""
        installed_ray("--engine ray", "ray.data")
        size = sum(path.stat().st_size for path in files_of(request))  # refuses a wrong source before a model is loaded
        block_rows = self.block_rows or next((rows for limit, rows in _BLOCK_ROWS if size < limit), _MOST_BLOCK_ROWS)
        reward = CarriedReward.load(request.spec)
        scoring = FileScoring(request, reward.fingerprint, reward.groups, block_rows)
        with closing(scoring) as job, job.released_on_failure(), connected(self.address), quiet_data_context():
            return self._scored(job, reward, progress)

    def _scored(self, job: FileScoring, reward: CarriedReward, progress: JobProgress) -> ScoringSummary:
        blocks = job.blocks  # without the job, which has a lock and stays here
        divided = _by_nodes(blocks.divide, range(len(job.files)))
        scored = job.plan(divided, _by_nodes(blocks.group_digests, divided))
        _by_nodes(blocks.check, [of_file for of_file in scored if of_file])
        if job.done:
            progress.resume("scoring", job.done)
        counts, work = Counter[str](), Counter[str]()
        missing = job.missing
        progress.begin("scoring", job.done, lambda: job.done + sum(block.rows for block in missing))
        try:
            for block in self._blocks(missing, blocks, reward) if missing else ():
                counts.update(block.counts)
                work.update(block.work)
                job.add(block)
                progress.advance(block.rows, _speed(work))
        finally:
            progress.end()
        if job.is_folder:
            _by_nodes(lambda of_file: blocks.finish(*of_file), [*zip(job.finishing(), range(len(job.files)), strict=True)])
        return ScoringSummary(job.join(), counts, _speed(work))

    def _blocks(self, missing: list[FileBlock], blocks: BlockScoring, reward: CarriedReward) -> Iterator[ScoredBlock]:
        """The scored blocks, in the order in which they are done."""
        import ray.data

        attempts = Attempts(blocks.folder / "attempts")
        attempts.forget()
        resources = actor_resources(reward.has_models)
        workers = min(self.workers or room_for_actors(resources), len(missing))
        # A block is a block of Ray Data too: what is sent to an actor, and what is sent again if it dies.
        scored = ray.data.from_items(
            [{_ITEM: packed(block)} for block in missing], override_num_blocks=len(missing)
        ).map_batches(
            BlockActor,
            fn_constructor_args=(reward, blocks, attempts),
            batch_size=1,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=_AT_A_TIME),
            **resources,
        )
        with ray_errors():
            for row in scored.iter_rows():
                yield _opened(row[_ITEM])


class BlockActor:
    """Scores blocks with a reward that it loads once. What goes wrong is its answer, so that Ray does not try again what cannot succeed."""

    def __init__(self, reward: CarriedReward, blocks: BlockScoring, attempts: Attempts) -> None:
        import ray

        self._blocks = blocks
        self._attempts = attempts
        actor = ray.get_runtime_context().get_actor_id()  # which stays when Ray starts it again
        self._reward: rm.Provider | RmPluginsError = _answer_of(partial(self._loaded, reward, f"loading-{actor}"))

    def _loaded(self, reward: CarriedReward, key: str) -> rm.Provider:
        with self._attempts.attempt(key, f"loaded the reward {reward.label!r}"):
            return reward.unpacked()

    def __call__(self, batch: Any) -> Any:
        """Score the block in a batch of one."""
        import pyarrow as arrow

        items = batch[_ITEM].to_pylist()
        return arrow.table({_ITEM: [packed(_answer_of(partial(self._scored, item))) for item in items]})

    def _scored(self, item: bytes) -> ScoredBlock:
        if isinstance(self._reward, RmPluginsError):
            raise self._reward
        block: FileBlock = _opened(item)
        first = block.part.first
        rows = f"{self._blocks.files[block.number]}, rows {first} to {first + block.rows - 1}"
        with self._attempts.attempt(str(block.first), f"scored {rows}"):
            try:
                return self._blocks.score(self._reward, block)
            except RmPluginsError:  # which names its rows
                raise
            except (Exception, SystemExit) as error:
                raise plain_error(portable_error(error), rows) from error


def _answer_of(work: Callable[[], _Result]) -> _Result | RmPluginsError:
    """What a function returns, or its error in a form that every process can read, with the traceback as a note."""
    try:
        return work()
    except (Exception, SystemExit) as error:
        answer = portable_error(error)
        answer.add_note(f"On the node {platform.node()}:\n{''.join(traceback.format_exception(error))}")
        return answer


def _by_nodes(work: Callable[[_Item], _Result], items: Sequence[_Item]) -> list[_Result]:
    """What a function returns for each item, such as a file of the source, in their order; the nodes of the cluster share the items."""
    import ray

    if len(items) < 2:
        return [work(item) for item in items]

    task = ray.remote(max_retries=-1)(lambda item: packed(_answer_of(partial(work, item))))
    with ray_errors():
        return [_opened(answer) for answer in ray.get([task.remote(item) for item in items])]


def actor_resources(has_models: bool) -> dict[str, float]:
    """What Ray reserves for an actor: a GPU where the reward has a model and the cluster has GPUs, else a CPU."""
    import ray

    gpus = ray.cluster_resources().get("GPU", 0)
    return {"num_gpus": 1.0} if has_models and gpus else {"num_cpus": 1.0}


def room_for_actors(resources: dict[str, float]) -> int:
    """How many actors the cluster has room for."""
    import ray

    room = ray.cluster_resources()
    if "num_gpus" in resources:
        return max(1, int(room.get("GPU", 1)))
    return max(1, int(room.get("CPU", 1)))


def packed(value: object) -> bytes:
    """A value as bytes, for a column of a data set."""
    import pickle

    return pickle.dumps(value)


def _opened(item: bytes) -> Any:
    """The value; an error is raised.

    Raises:
        RmPluginsError: The value is one.
    """
    import pickle

    value = pickle.loads(item)
    if isinstance(value, RmPluginsError):
        raise value
    return value


def _speed(work: Counter[str]) -> str:
    said = speed(work)
    return f"{said} of each actor" if said else ""


@contextmanager
def quiet_data_context() -> Iterator[None]:
    """Within it, Ray Data prints nothing of its own."""
    import logging

    import ray.data

    context = ray.data.DataContext.get_current()
    before = (context.enable_progress_bars, context.print_on_execution_start)
    loggers = [logging.getLogger(name) for name in ("ray", "ray.data")]
    levels = [logger.level for logger in loggers]
    context.enable_progress_bars = context.print_on_execution_start = False
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        context.enable_progress_bars, context.print_on_execution_start = before
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def ray_errors() -> Iterator[None]:
    """Turn what Ray raises into errors of ours, with what to do.

    Raises:
        OutputError: The object store is full.
        ProcessError: The cluster failed otherwise, or has gone.
    """
    from ray.exceptions import ObjectStoreFullError, OutOfDiskError, OutOfMemoryError, RayError

    try:
        yield
    except RmPluginsError:
        raise
    except (ObjectStoreFullError, OutOfDiskError) as error:
        raise OutputError(
            f"Ray's object store is full: {_reason(error)} Free memory or disk on the node, or start it with a larger "
            "--object-store-memory. Scored rows are kept; run the same command again to resume."
        ) from error
    except OutOfMemoryError as error:
        raise ProcessError(
            f"A node ran out of memory: {_reason(error)} Use fewer --workers or a smaller --batch-size. Scored rows are kept; "
            "run the same command again to resume."
        ) from error
    except RayError as error:
        if (ours := _of_ours(error)) is not None:
            raise ours from error
        raise ProcessError(
            f"The Ray cluster failed: {_reason(error)} See `ray status` and the cluster's logs. Scored rows are kept; run the same "
            "command again to resume."
        ) from error


def _of_ours(error: BaseException) -> RmPluginsError | None:
    """The error of ours that a worker raised, if it did."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, RmPluginsError):
            kind: Sequence[type[RmPluginsError]] = [
                cls for cls in type(seen).__mro__ if cls.__module__ == errors.__name__ and issubclass(cls, RmPluginsError)
            ]
            return kind[0](str(getattr(seen, "cause", seen)))
        seen = getattr(seen, "cause", None) or seen.__cause__
    return None


def _reason(error: BaseException) -> str:
    return shorten(reason_of(error), _REASON_CHARACTERS).rstrip(".") + "."
