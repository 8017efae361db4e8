"""Rewards for verifiers 0.4: a function for a task's ``rewards``, which scores the last branch of a trace.

A trace has the messages, so the reward renders them itself. What the function raises makes the trace one with an error, which has no
reward. It can be a method of a task, too::

    class MyTask(vf.Task):
        @vf.reward(weight=1.0)
        async def helpful(self, trace) -> float:
            return await REWARD.reward(self.data, trace)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rm_plugins.data.plain_values import plain_row
from rm_plugins.errors import DataError
from rm_plugins.samples import Message, Sample, message_text
from rm_plugins_engines.engine_reward import EngineReward, NoReward
from rm_plugins_engines.prompts import written_arguments
from rm_plugins_engines.shared_reward import Spec

ENGINE = "verifiers"
INFO = "rm_plugins"
"""Where the facts about a reward are kept, in a trace's ``info``."""

_OF_VERIFIERS = (
    *(
        "idx",
        "id",
        "name",
        "description",
        "prompt",
        "system_prompt",
        "image",
        "workdir",
        "agent_user",
        "skills",
        "network_allow",
    ),
    *("network_block", "artifacts", "artifact_max_bytes", "timeout", "resources"),
)
"""Fields of every task, which do not become columns of a sample."""


class VerifiersReward:
    """A reward with the signature of verifiers' reward functions.

    Args:
        spec: Anything that `rm_plugins.load` takes.
        no_reward: What a trace without a reward becomes: ``"raise"``, which makes it a trace with an error, or a number.
        details: The details of the reward to record as metrics, such as ``member/0``.

    Raises:
        SpecError: An argument is wrong.
    """

    def __init__(self, spec: Spec, *, no_reward: NoReward = "raise", details: Sequence[str] = ()) -> None:
        self.reward_of_traces = EngineReward(spec, ENGINE, no_reward=no_reward, details=details)

    async def reward(self, task: Any, trace: Any) -> float:
        """Score a trace.

        The details and ``rm_no_reward`` become metrics of the trace; they, ``rm_error`` and ``rm_fingerprint`` are in ``trace.info``.

        Args:
            task: The task's data; its own fields are the columns of the sample.
            trace: The trace.

        Raises:
            DataError: The trace has no completion.
            ScoringError: There is no reward, and `no_reward` is ``"raise"``.
        """
        (outcome,) = await self.reward_of_traces.score_async([sample_of(task, trace)])
        trace.record_metrics({name: number for name, number in outcome.numbers.items() if not math.isnan(number)})
        trace.info[INFO] = outcome.json_facts
        return outcome.number


def sample_of(task: Any, trace: Any) -> Sample:
    """The sample of a trace: the prompt is the messages before the model's first one, the completion the rest of the branch.

    The branch is the last one that ends with the root agent's reply, where the trace knows that reply; and the last one otherwise.

    Raises:
        DataError: The model has written no message.
    """
    branches = trace.branches
    reply = getattr(trace, "root_reply", None)
    of_root = [branch for branch in branches if reply and _reply(branch) == reply.strip()]
    nodes = (of_root or branches)[-1].nodes if branches else []
    first = next((place for place, node in enumerate(nodes) if node.sampled), None)
    if first is None:
        raise DataError("The trace has no message of the model, so there is nothing to score.")
    messages = [_message(node.message) for node in nodes]
    tools = [_tool(tool) for tool in nodes[0].tools]
    data = task.model_dump(mode="json") if hasattr(task, "model_dump") else dict(task or {})
    columns = {name: value for name, value in data.items() if name not in _OF_VERIFIERS}
    return Sample(messages[:first], messages[first:], plain_row({**columns, **({"tools": tools} if tools else {})}))


def _reply(branch: Any) -> str:
    last = branch.nodes[-1]
    return message_text(_message(last.message)).strip() if last.sampled else ""


def _message(message: Any) -> Message:
    """A message of verifiers in the form of chat templates."""
    written = message.model_dump(mode="json", exclude_none=True)
    written.pop("provider_state", None)
    if calls := written.pop("tool_calls", None):
        written["tool_calls"] = [_call(call) for call in calls]
    if "content" not in written:
        written["content"] = ""
    return dict(written)


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = {"name": call["name"], "arguments": written_arguments(call["arguments"])}
    return {"type": "function", "id": call["id"], "function": function}


def _tool(tool: Any) -> dict[str, Any]:
    return {
        "type": "function",
        "function": {"name": tool.name, "description": tool.description, "parameters": tool.parameters},
    }
