"""A provider as a reward function of GRPO, RLOO and Online DPO."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import rm_plugins as rm
from rm_plugins.wire import values_to_json
from rm_plugins_trl.awaiting import is_called_by_coroutine, may_be_awaited
from rm_plugins_trl.reward_batch import TrainerCall
from rm_plugins_trl.reward_scoring import RewardScoring, Spec

if TYPE_CHECKING:
    from transformers import TrainerState


def reward_func(spec: Spec, *, name: str | None = None, awaitable: bool | None = None) -> RewardFunction:
    """A reward for ``reward_funcs`` of TRL's GRPO, RLOO and Online DPO trainers.

    Args:
        spec: Anything that `rm_plugins.load` takes; it is loaded at once, so that errors show before training.
        name: Its name in the trainer's metrics, ``rewards/NAME/mean``; the provider's own label by default. Two
            rewards of one trainer need two names.
        awaitable: Whether trainers that await rewards (GRPO, RLOO and AsyncGRPO from TRL 1.14 on) await this one beside the others. By
            default they do, unless a function in it is not async, which may only work in the main thread. All other callers get the
            rewards at once.

    Raises:
        SpecError: The spec is wrong, or `awaitable` is set with an older TRL.
    """
    return RewardFunction(spec, name, awaitable)


class RewardFunction:
    """What `reward_func` returns: a callable with TRL's reward signature.

    It can be pickled: another process loads the same spec, with what this one has learned. An abstention is TRL's ``None``. What the
    provider learns while scoring is saved in the trainer's checkpoints, and restored when one is resumed.

    Args:
        spec: Anything that `rm_plugins.load` takes.
        name: The name in metrics.
        awaitable: As for `reward_func`.
    """

    watchers: list[Callable[[Sequence[rm.Sample], rm.Scores, TrainerState | None], None]]
    """Called after every batch that was scored in this process, with the trainer's state or None; not part of a copy."""

    def __init__(self, spec: Spec, name: str | None = None, awaitable: bool | None = None) -> None:
        scoring = RewardScoring(spec, name)
        self.use(scoring, scoring.name, may_be_awaited(scoring.provider, awaitable))

    def use(self, scoring: RewardScoring, name: str, awaitable: bool) -> None:
        """Take the rewards from this scoring, under this name; called once, by the constructor."""
        self._scoring = scoring
        self.spec = scoring.spec
        self.provider = scoring.provider
        self.__name__ = name
        self.awaitable = awaitable
        self.watchers = []
        self._warned = False
        if awaitable:
            # TRL asks whether the attribute `__call__` of the object is async. Calls of the object do not look at this attribute.
            vars(self)["__call__"] = self._awaited_call

    @property
    def key(self) -> str:
        """The entry of the trainer's checkpoints with what it has learned."""
        return self._scoring.key

    def __call__(
        self,
        /,  # so that a column may be called `self`
        prompts: Sequence[Any],
        completions: Sequence[Any],
        *,
        log_extra: Callable[[str, list[Any]], None] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        trainer_state: TrainerState | None = None,
        **others: Any,
    ) -> list[float | None]:
        """Score one batch of a trainer.

        A user's function gets all of this by name, as TRL would pass it, for the rows that it scores. It may be any part of the reward.

        Args:
            prompts: Text or message lists, [N].
            completions: Text or message lists, [N].
            log_extra: TRL's hook for columns of the completions table: gets every detail of the scores.
            log_metric: TRL's hook for scalars: gets every detail's mean, the share of abstentions, and the provider's own `metrics`.
            trainer_state: The trainer's state: its progress, and what its checkpoints keep.
            others: Further arguments. Lists with one item per row become `Sample.columns`, except the trainer's ``environments``.

        Returns:
            One reward per sample, None where the provider abstains. An async function that calls an `awaitable` reward gets a coroutine
            that returns them.

        Raises:
            DataError: A list or the completions differ in number from the prompts, or the training is resumed from
                a checkpoint of another reward.
            SpecError: Another reward of the training has the same name.
            ScoringError: The provider failed and its `on_error` is ``raise``.
        """
        call = TrainerCall(prompts, completions, log_extra, log_metric, trainer_state, others)
        if self.awaitable and is_called_by_coroutine():
            return self._awaited_rewards(call)  # type: ignore[return-value]
        return self._rewards(call, *self._now(call))

    async def _awaited_call(self, /, *arguments: Any, **named: Any) -> list[float | None]:
        rewards: Any = type(self).__call__(self, *arguments, **named)
        return await rewards  # type: ignore[no-any-return]

    async def _awaited_rewards(self, call: TrainerCall) -> list[float | None]:
        return self._rewards(call, *await self._awaited(call))

    def _now(self, call: TrainerCall) -> tuple[Sequence[rm.Sample], rm.Scores]:
        return self._scoring.now(call)

    async def _awaited(self, call: TrainerCall) -> tuple[Sequence[rm.Sample], rm.Scores]:
        return await self._scoring.awaited(call)

    def _rewards(self, call: TrainerCall, samples: Sequence[rm.Sample], scores: rm.Scores) -> list[float | None]:
        for watcher in self.watchers:
            watcher(samples, scores, call.trainer_state)
        if call.log_metric is None and call.trainer_state is not None and scores.abstained.any() and not self._warned:
            self._warned = True
            warnings.warn(
                f"The reward {self.__name__!r} abstained on {int(scores.abstained.sum())} of {len(samples)} samples, and this "
                "trainer adds an abstention as 0 (Online DPO does). Use a reward that always gives a number, and "
                "`on_error: {fallback: SPEC}` for failures.",
                stacklevel=3,
            )
        return values_to_json(scores.values)

    def __getstate__(self) -> dict[str, Any]:
        return {"scoring": self._scoring, "name": self.__name__, "awaitable": self.awaitable}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.use(state["scoring"], state["name"], state["awaitable"])

    def __repr__(self) -> str:
        return f"<reward {self.__name__!r}: {self.provider.name}>"
