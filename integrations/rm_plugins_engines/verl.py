"""Rewards for verl 0.9: a function for ``reward.custom_reward_function``, and a reward manager.

verl's function gets the completion without its prompt, so the prompt must be in the row's ``extra_info``. The reward manager gets the
prompt's messages from verl (``raw_prompt``), and is the better choice for models. Both are called for one sample at a time, from many
coroutines of a reward worker; each worker loads the reward once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from rm_plugins.data.plain_values import plain_row, plain_value
from rm_plugins.errors import DataError, MissingDependencyError
from rm_plugins.samples import Sample
from rm_plugins_engines.engine_reward import EngineReward, NoReward, Outcome
from rm_plugins_engines.prompts import COLUMN, PromptSource
from rm_plugins_engines.shared_reward import Spec

ENGINE = "verl"
MANAGER = "rm_plugins"
"""The name under which the reward manager is registered."""

_ADDED_BY_VERL = ("num_turns", "rollout_reward_scores")


class VerlReward:
    """A reward with the signature of verl's ``compute_score``.

    Args:
        spec: Anything that `rm_plugins.load` takes.
        no_reward: What a sample without a reward becomes: a number, or ``"raise"``: an error that verl logs, to continue without the
            sample.
        prompt: Where the prompt is: ``column:PATH`` in ``extra_info``, or ``none`` for rewards that read completions only.
        details: The details of the reward to log, such as ``member/0``; verl needs the same names for every sample.

    Raises:
        SpecError: An argument is wrong.
    """

    def __init__(
        self,
        spec: Spec,
        *,
        no_reward: NoReward = "raise",
        prompt: str = f"{COLUMN}prompt",
        details: Sequence[str] = (),
    ) -> None:
        self.reward = EngineReward(spec, ENGINE, no_reward=no_reward, details=details)
        self._prompt = PromptSource(prompt, ENGINE, "extra_info", has_text=False, has_eos=False)

    async def compute_score(
        self, data_source: str, solution_str: str, ground_truth: Any, extra_info: Mapping[str, Any] | None = None, **others: Any
    ) -> dict[str, float | str]:
        """Score one completion; verl keeps every item of the result beside the reward.

        Args:
            data_source: The row's ``data_source``.
            solution_str: The completion, without special tokens.
            ground_truth: The row's ``reward_model.ground_truth``, the column ``ground_truth`` of the sample.
            extra_info: The row's ``extra_info``, the other columns of the sample.
            others: What verl or ``reward_kwargs`` add; ignored.

        Returns:
            ``score``, the details, ``rm_no_reward``, ``rm_error`` and ``rm_fingerprint``.

        Raises:
            DataError: The prompt is missing.
            ScoringError: There is no reward, and `no_reward` is ``"raise"``.
        """
        (outcome,) = await self.reward.score_async([self._sample(data_source, solution_str, ground_truth, extra_info)])
        return _result(outcome)

    def compute_score_sync(
        self, data_source: str, solution_str: str, ground_truth: Any, extra_info: Mapping[str, Any] | None = None, **others: Any
    ) -> dict[str, float | str]:
        """The same for callers without an event loop, such as verl's manager ``remote``."""
        (outcome,) = self.reward.score([self._sample(data_source, solution_str, ground_truth, extra_info)])
        return _result(outcome)

    def _sample(self, data_source: str, solution: str, ground_truth: Any, extra_info: Mapping[str, Any] | None) -> Sample:
        columns = {**_of_row(extra_info, "extra_info"), "data_source": data_source, "ground_truth": ground_truth}
        return self._prompt.sample("", solution, columns)


def reward_manager(spec: Spec, *, no_reward: NoReward = "raise", details: Sequence[str] = ()) -> type[Any]:
    """A reward manager class for ``reward.reward_manager``, registered in verl as ``rm_plugins``.

    Its samples have the messages of the prompt, and the columns of the row: those of ``extra_info``, ``data_source``, ``ground_truth``,
    and ``tools``.

    Args:
        spec: Anything that `rm_plugins.load` takes.
        no_reward: What a sample without a reward becomes: a number, or ``"raise"``: an error that verl logs, to continue without the
            sample.
        details: The details of the reward to log, such as ``member/0``.

    Raises:
        MissingDependencyError: verl is not installed, or has no reward loop.
        SpecError: An argument is wrong.
    """
    try:
        from verl.experimental.reward_loop.reward_manager import register
        from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase
    except ImportError as error:
        raise MissingDependencyError(
            f"A reward manager needs the reward loop of verl 0.9 or newer, which cannot be imported here ({error}). "
            "With an older verl, use `compute_score`."
        ) from error
    reward = EngineReward(spec, ENGINE, no_reward=no_reward, details=details)

    class RMPluginsRewardManager(RewardManagerBase):
        """Scores each sample's last response, together with the others that wait."""

        def __init__(
            self,
            config: Any,
            tokenizer: Any,
            compute_score: Any = None,
            reward_router_address: str | None = None,
            reward_model_tokenizer: Any = None,
        ) -> None:
            super().__init__(config, tokenizer, compute_score)

        async def run_single(self, data: Any) -> dict[str, Any]:
            item = data[-1:][0]
            completion = await asyncio.to_thread(self.tokenizer.decode, _response_ids(item), skip_special_tokens=True)
            (outcome,) = await reward.score_async([_sample_of(item, completion)])
            result = _result(outcome)
            return {"reward_score": result["score"], "reward_extra_info": result}

    registered: type[Any] = register(MANAGER)(_replaced(RMPluginsRewardManager))
    return registered


def _replaced(cls: type[Any]) -> type[Any]:
    """Forget an earlier class of the same name: verl refuses two, and imports the adapter's file more than once."""
    from verl.experimental.reward_loop.reward_manager.registry import REWARD_MANAGER

    REWARD_MANAGER.pop(MANAGER, None)
    return cls


def _response_ids(item: Any) -> Any:
    """The tokens of a response. Several outputs of a trajectory are padded as a whole, so that their masks do not give the lengths."""
    ids = item.batch["responses"]
    length = item.non_tensor_batch.get("response_len")
    if length is None:
        length = item.batch["attention_mask"][-ids.shape[-1] :].sum()
    return ids[: int(length)]


def _sample_of(item: Any, completion: str) -> Sample:
    row = item.non_tensor_batch
    if "raw_prompt" not in row:
        raise DataError("verl hands over no 'raw_prompt', so the prompt is not known. Set `data.return_raw_chat=True`.")
    columns = _of_row(row.get("extra_info"), "extra_info")
    columns["data_source"] = row.get("data_source")
    columns["ground_truth"] = _of_row(row.get("reward_model"), "reward_model").get("ground_truth")
    if row.get("tools") is not None:
        columns["tools"] = row["tools"]
    return Sample(plain_value(list(row["raw_prompt"])), completion, plain_row(columns))


def _of_row(value: Any, name: str) -> dict[str, Any]:
    """The items of a column of verl's datasets, without those that verl adds."""
    if value is not None and not isinstance(value, Mapping):
        raise DataError(
            f"verl hands over {name!r} that is not a mapping: {value!r:.80} ({type(value).__name__}). Make it one in the dataset."
        )
    return {name: item for name, item in (value or {}).items() if name not in _ADDED_BY_VERL}


def _result(outcome: Outcome) -> dict[str, float | str]:
    return {**outcome.facts, "score": outcome.number}
