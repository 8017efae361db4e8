"""Several reward functions that share one scoring: one for each head, attribute, member or criterion of a reward."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

import rm_plugins as rm
from rm_plugins.one_thread import OneThread
from rm_plugins_trl.awaiting import may_be_awaited
from rm_plugins_trl.column_names import chosen_columns, is_named, missing_part, part_at
from rm_plugins_trl.reward_batch import TrainerCall
from rm_plugins_trl.reward_function import RewardFunction
from rm_plugins_trl.reward_scoring import RewardScoring, Spec

_MOST_KEPT = 8
"""How many scored batches are kept for columns that have not asked for them."""

Scored: TypeAlias = tuple[Sequence[rm.Sample], rm.Scores]


def reward_funcs(
    spec: Spec, columns: Sequence[str] | None = None, *, name: str | None = None, awaitable: bool | None = None
) -> list[RewardColumn]:
    """Rewards for ``reward_funcs`` of TRL's trainers, one for each part of a reward, which score each batch once for all of them.

    The trainer sees each part as a reward of its own, for ``reward_weights`` and for ``multi_objective_aggregation`` of GRPO. The reward
    that the spec makes of the parts is not used.

    Args:
        spec: Anything that `rm_plugins.load` takes; it is loaded at once, so that errors show before training.
        columns: The parts: names in `Scores.parts` (heads of a model, members of an ensemble by number, criteria), or labels of members.
            A part of a part is ``0/helpful``. All parts by default.
        name: The name of the reward, whose columns are ``rewards/NAME/COLUMN/mean`` in the trainer's metrics; its label by default.
        awaitable: As for `rm_plugins_trl.reward_func`.

    Returns:
        The rewards, in the order of `columns`. Each may be used alone, too.

    Raises:
        SpecError: The spec is wrong, the reward has no such part, or all parts are asked for where only a batch shows them.
    """
    shared = SharedScoring.of(spec, name=name, awaitable=awaitable)
    shared.choose(columns)
    return [RewardColumn(shared, column) for column in shared.paths]


@dataclass(eq=False)
class _Batch:
    """A batch that is scored, or has been."""

    call: TrainerCall
    step: int | None
    contents: tuple[Any, ...]
    taken: set[str]
    """The columns that have asked for its scores. One that asks again wants it scored again."""
    loop: asyncio.AbstractEventLoop | None
    scored: Future[Scored] = field(default_factory=Future)
    task: asyncio.Task[Scored] | None = None
    waiting: int = 0

    @classmethod
    def of(cls, call: TrainerCall, column: str, loop: asyncio.AbstractEventLoop | None) -> _Batch:
        return cls(call, _step(call), _contents(call), {column}, loop)

    def is_of(self, call: TrainerCall) -> bool:
        """Whether a call passes the very objects of this batch, at the same step, and nothing in them has changed."""
        own = self.call
        return (
            call.prompts is own.prompts
            and call.completions is own.completions
            and call.trainer_state is own.trainer_state
            and call.others.keys() == own.others.keys()
            and all(call.others[name] is own.others[name] for name in own.others)
            and _step(call) == self.step
            and _are_same(_contents(call), self.contents)
        )


class SharedScoring:
    """Scores a batch once for all columns that ask for it.

    A trainer calls each column with the same objects. A batch counts as the same if a column is called with the very lists of another
    column's call, unchanged and at the same step, and did not get its scores yet. So nothing is scored by its content, and a column that
    is called again, such as by another evaluation, scores again.

    Args:
        scoring: The reward.
        paths: By column, the path of its part.
        awaitable: Whether trainers await the columns.
    """

    def __init__(self, scoring: RewardScoring, paths: Mapping[str, str], awaitable: bool) -> None:
        self.scoring = scoring
        self.scoring.split(list(paths))
        self.paths = dict(paths)
        self.awaitable = awaitable
        self._batches: list[_Batch] = []
        self._alone = OneThread()

    @classmethod
    def of(cls, spec: Spec, *, name: str | None = None, awaitable: bool | None = None) -> SharedScoring:
        """The scoring of a reward that has no columns yet; the arguments are those of `reward_funcs`."""
        scoring = RewardScoring(spec, name)
        return cls(scoring, {}, may_be_awaited(scoring.provider, awaitable))

    def column(self, name: str) -> RewardColumn:
        """A further column.

        Raises:
            SpecError: The reward has no such part, or another column has it.
        """
        self.choose([*self.paths, name])
        return RewardColumn(self, name)

    def choose(self, columns: Sequence[str] | None) -> None:
        """Make these the columns; None means all parts of the reward.

        Raises:
            SpecError: As `reward_funcs`.
        """
        self.paths = chosen_columns(self.scoring.provider, columns)
        self.scoring.split(list(self.paths))

    def now(self, call: TrainerCall, column: str) -> Scored:
        """The samples and the scores of a column's part, scored in this thread unless another column has done so."""
        batch, is_new = self._taken(call, column, None)
        if is_new:
            try:
                batch.scored.set_result(self.scoring.now(call))
            except BaseException as error:
                self._forget(batch)
                batch.scored.set_exception(error)
                raise
        return self._of_column(*batch.scored.result(), column)

    async def awaited(self, call: TrainerCall, column: str) -> Scored:
        """The same, awaited. The scoring is cancelled when all columns that wait for it are."""
        loop = asyncio.get_running_loop()
        batch, is_new = self._taken(call, column, loop)
        if is_new:
            batch.task = loop.create_task(self.scoring.awaited(call))
        assert batch.task is not None
        batch.waiting += 1
        try:
            scored = await asyncio.shield(batch.task)
        except BaseException:
            self._forget(batch)
            raise
        finally:
            batch.waiting -= 1
            if not batch.waiting:
                batch.task.cancel()  # which does nothing to a task that is done
        return self._of_column(*scored, column)

    def _taken(self, call: TrainerCall, column: str, loop: asyncio.AbstractEventLoop | None) -> tuple[_Batch, bool]:
        """The batch of a call for a column, and whether it is a new one."""
        with self._alone:
            for batch in [*self._batches]:
                if batch.loop is not loop or not batch.is_of(call):
                    continue
                is_again = column in batch.taken  # then it is scored again, and no other column gets the earlier scores
                batch.taken.add(column)
                if is_again or len(batch.taken) == len(self.paths):
                    self._batches.remove(batch)
                if not is_again:
                    return batch, False
            batch = _Batch.of(call, column, loop)
            if len(self.paths) > 1:
                self._batches.append(batch)
                del self._batches[:-_MOST_KEPT]
            return batch, True

    def _forget(self, batch: _Batch) -> None:
        with self._alone:
            if batch in self._batches:
                self._batches.remove(batch)

    def _of_column(self, samples: Sequence[rm.Sample], scores: rm.Scores, column: str) -> Scored:
        part = part_at(scores, self.paths[column])
        if part is not None:
            return samples, part
        seen = self.scoring.seen
        if self.scoring.provider.part_names is None and seen and not is_named(self.paths[column], seen):
            raise missing_part(sorted(seen), self.scoring.name, self.paths[column])
        return samples, rm.Scores(np.full(len(samples), np.nan))

    def __getstate__(self) -> dict[str, Any]:
        return {"scoring": self.scoring, "paths": self.paths, "awaitable": self.awaitable}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


class RewardColumn(RewardFunction):
    """One of the rewards that `reward_funcs` returns: a `RewardFunction` for a part of a reward.

    Those of one reward that are pickled together still share their scoring. What the reward learns is kept once.

    Args:
        shared: The scoring.
        column: The name of the part.
    """

    def __init__(self, shared: SharedScoring, column: str) -> None:
        self._shared = shared
        self.column = column
        self.use(shared.scoring, f"{shared.scoring.name}/{column}", shared.awaitable)

    def _now(self, call: TrainerCall) -> Scored:
        return self._logged(call, self._shared.now(call, self.column))

    async def _awaited(self, call: TrainerCall) -> Scored:
        return self._logged(call, await self._shared.awaited(call, self.column))

    def _logged(self, call: TrainerCall, scored: Scored) -> Scored:
        if call.log_metric is not None:
            call.log_metric(
                f"rewards/{self.__name__}/abstained", float(np.mean(scored[1].abstained)) if len(scored[1]) else np.nan
            )
        return scored

    def __getstate__(self) -> dict[str, Any]:
        return {"shared": self._shared, "column": self.column}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


def _step(call: TrainerCall) -> int | None:
    return None if call.trainer_state is None else call.trainer_state.global_step


def _contents(call: TrainerCall) -> tuple[Any, ...]:
    """What the lists of a call hold now."""
    columns = (tuple(values) for values in call.others.values() if isinstance(values, list))
    return _frozen(call.prompts), _frozen(call.completions), *columns


def _frozen(value: Any) -> Any:
    """What a list or a mapping holds now, inside too; anything else is itself."""
    if isinstance(value, list):
        return tuple(map(_frozen, value))
    if isinstance(value, dict):
        return tuple((name, _frozen(item)) for name, item in value.items())
    return value


def _are_same(one: Any, other: Any) -> bool:
    """Whether two frozen values hold the same objects."""
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(_are_same, one, other))
    return one is other or (isinstance(one, str) and one == other)
