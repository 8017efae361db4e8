"""Rewards for AReaL 1.0: a function for its workflows, and a workflow that calls it without a process pool.

AReaL's own workflow runs reward functions in a pool of processes with a limit of 15 seconds, and gives 0 to a sample that takes longer.
Each of the processes would load the reward. `AReaLReward.workflow` makes the same workflow call the reward in the process of the workflow,
where samples are scored together and without that limit. The prompt's messages are in the row, which AReaL hands over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rm_plugins.errors import MissingDependencyError, ScoringError
from rm_plugins.samples import Sample
from rm_plugins_engines.engine_reward import EngineReward, NoReward
from rm_plugins_engines.prompts import COLUMN, PromptSource
from rm_plugins_engines.shared_reward import Spec

ENGINE = "AReaL"

_PASSED_BY_NAME = ("prompt", "completions", "prompt_ids", "completion_ids")


class AReaLReward:
    """A reward with the signature of AReaL's reward functions. It can be pickled.

    Args:
        spec: Anything that `rm_plugins.load` takes.
        no_reward: What a sample without a reward becomes: ``"raise"``, which makes AReaL reject the trajectory, or a number.
        prompt: Where the prompt is: ``column:PATH`` in the row, ``rendered``, ``text`` or ``none``.

    Raises:
        SpecError: An argument is wrong.
    """

    def __init__(self, spec: Spec, *, no_reward: NoReward = "raise", prompt: str = f"{COLUMN}messages") -> None:
        self.reward = EngineReward(spec, ENGINE, no_reward=no_reward)
        self._prompt = PromptSource(prompt, ENGINE, "the row")

    def reward_fn(self, prompt: Any = None, completions: Any = None, /, *ids: Sequence[int], **data: Any) -> float:
        """Score one completion.

        AReaL's workflow for images passes the first four arguments by name. All others pass them by position, and then the row may have
        columns with these names.

        Args:
            prompt: The prompt as decoded by the policy's tokenizer, which a chat template has rendered.
            completions: The completion as decoded, with its EOS token.
            ids: The policy's token ids of both; ignored.
            data: The row of the dataset: the columns of the sample.

        Raises:
            DataError: The prompt or the completion is missing.
            ScoringError: There is no reward, and `no_reward` is ``"raise"``.
        """
        try:
            (outcome,) = self.reward.score([self._sample(prompt, completions, data)])
        except TimeoutError as error:  # AReaL gives 0 to a sample whose function raises this
            raise ScoringError(f"The reward ended with {type(error).__name__}: {error}") from error
        return outcome.number

    async def reward_fn_async(self, prompt: Any = None, completions: Any = None, /, *ids: Sequence[int], **data: Any) -> float:
        """The same for coroutines of one process, whose samples are scored together."""
        (outcome,) = await self.reward.score_async([self._sample(prompt, completions, data)])
        return outcome.number

    def workflow(self) -> type[Any]:
        """AReaL's ``RLVRWorkflow`` with this reward; its arguments are the same without ``reward_fn``.

        Raises:
            MissingDependencyError: AReaL is not installed.
        """
        try:
            from areal.workflow.rlvr import RLVRWorkflow
        except ImportError as error:
            raise MissingDependencyError(
                f"A workflow for AReaL needs AReaL, which cannot be imported here ({error})."
            ) from error
        reward = self

        class RMPluginsWorkflow(RLVRWorkflow):
            """Generates a completion and scores it."""

            def __init__(self, *args: Any, **kwargs: Any) -> None:
                super().__init__(reward.reward_fn, *args, **kwargs)
                self.async_reward_fn = reward.reward_fn_async

        return RMPluginsWorkflow

    def _sample(self, prompt: Any, completion: Any, data: Mapping[str, Any]) -> Sample:
        if prompt is None and completion is None:
            prompt, completion = data.get("prompt"), data.get("completions")
            data = {name: value for name, value in data.items() if name not in _PASSED_BY_NAME}
        return self._prompt.sample(prompt, completion, data)
