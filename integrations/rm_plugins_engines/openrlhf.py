"""Rewards for OpenRLHF 0.11: the file of ``--reward.remote_url``.

OpenRLHF hands over the query (prompt and response as one text, with special tokens), the prompt as its dataset made it, and the label. With
``--data.apply_chat_template`` the prompt is rendered. Then the label must carry the messages, or the query is scored unchanged.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from rm_plugins.data.plain_values import plain_value
from rm_plugins.errors import DataError
from rm_plugins.samples import Sample
from rm_plugins_engines.engine_reward import EngineReward, NoReward
from rm_plugins_engines.prompts import AUTO, PromptSource, from_json
from rm_plugins_engines.shared_reward import Spec

logger = logging.getLogger(__name__)

ENGINE = "OpenRLHF"


class OpenRLHFReward:
    """A reward with the signature of OpenRLHF's ``reward_func``.

    Args:
        spec: Anything that `rm_plugins.load` takes.
        no_reward: What a sample without a reward becomes: ``"raise"`` or a number. OpenRLHF logs what its reward raises as information,
            and ends the training later because the reward is None; the reason is also logged as an error here.
        prompt: Where the prompt is: ``auto``, the text that OpenRLHF hands over unless it is rendered; ``text``; ``rendered``;
            ``none``; or ``column:PATH`` in the label. Such a label is a mapping or JSON; ``column:label`` is for one that is the prompt.
        details: The details of the reward to log, such as ``member/0``.

    Raises:
        SpecError: An argument is wrong.
    """

    def __init__(self, spec: Spec, *, no_reward: NoReward = "raise", prompt: str = AUTO, details: Sequence[str] = ()) -> None:
        self.reward = EngineReward(spec, ENGINE, no_reward=no_reward, details=details)
        self._prompt = PromptSource(prompt, ENGINE, "the label")

    def reward_func(
        self, queries: Sequence[str], prompts: Sequence[str], labels: Sequence[Any], **others: Any
    ) -> dict[str, Any]:
        """Score queries. OpenRLHF calls this in a thread for each sample; samples of several calls are scored together.

        Args:
            queries: Prompt and response as one text, [N].
            prompts: The prompts, [N].
            labels: The labels, [N]: the column ``label`` of the samples. The items of a label that is a mapping, or JSON of one, are
            columns.
            others: Ignored.

        Returns:
            ``rewards`` and ``scores``, float32 tensors [N], and ``extra_logs``: the details and ``rm_no_reward``, tensors [N].

        Raises:
            DataError: The lists differ in length, or the prompt is missing or rendered.
            ScoringError: There is no reward, and `no_reward` is ``"raise"``.
        """
        import torch

        try:
            outcomes = self.reward.score(self._samples(queries, prompts, labels))
        except Exception:
            logger.exception("There is no reward for a sample. OpenRLHF continues without it until it needs the number")
            raise
        rewards = torch.tensor([outcome.value for outcome in outcomes], dtype=torch.float32)
        names = outcomes[0].numbers if outcomes else {}
        logs = {name: torch.tensor([outcome.numbers[name] for outcome in outcomes], dtype=torch.float32) for name in names}
        return {"rewards": rewards, "scores": rewards.clone(), "extra_logs": logs}

    def _samples(self, queries: Sequence[str], prompts: Sequence[str], labels: Sequence[Any]) -> list[Sample]:
        if not len(queries) == len(prompts) == len(labels):
            raise DataError(
                f"There are {len(queries)} queries, {len(prompts)} prompts and {len(labels)} labels; one of each is needed."
            )
        return [
            self._prompt.query_sample(query, prompt, columns_of_label(label))
            for query, prompt, label in zip(queries, prompts, labels, strict=True)
        ]


def columns_of_label(label: Any) -> dict[str, Any]:
    """The columns of a sample whose row an engine hands over as a label. An item named ``label`` takes the place of the whole label.

    >>> columns_of_label('{"answer": "4"}'), columns_of_label("4"), columns_of_label(None), columns_of_label({"label": "4"})
    ({'label': '{"answer": "4"}', 'answer': '4'}, {'label': '4'}, {}, {'label': '4'})
    """
    if label is None:
        return {}
    items = plain_value(from_json(label))
    return {"label": plain_value(label), **(items if isinstance(items, Mapping) else {})}
