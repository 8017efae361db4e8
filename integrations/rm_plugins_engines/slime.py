"""Rewards for slime: the function of ``--custom-rm-path``, for single samples and for groups (``--group-rm``).

slime's sample has the prompt as messages, or as text that ``--apply-chat-template`` has rendered. Then the row's ``metadata`` must have the
messages, or the text is scored unchanged. slime has no way to train without a reward, but its dynamic filter can leave out the whole group.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rm_plugins.data.plain_values import plain_row, plain_value
from rm_plugins.errors import UnsupportedError
from rm_plugins.samples import Sample
from rm_plugins.server.dialects.queries import without_eos
from rm_plugins_engines.engine_reward import EngineReward, NoReward, Outcome
from rm_plugins_engines.prompts import AUTO, NONE, PromptSource
from rm_plugins_engines.shared_reward import Spec

ENGINE = "slime"
METADATA = "rm_plugins"
"""Where the facts about a reward are kept, in a sample's ``metadata``."""

_DROPS = "its dynamic filter leaves out the group"


class SlimeReward:
    """A reward with the signature of slime's custom reward function, for a sample or a list of samples.

    Args:
        spec: Anything that `rm_plugins.load` takes.
        no_reward: What a sample without a reward becomes: ``"raise"``, a number, or ``"drop"``, which leaves out its group and
            needs ``--dynamic-sampling-filter-path`` with `keep_group`.
        prompt: Where the prompt is: ``auto``, what slime hands over unless it is rendered; ``text``; ``rendered``; ``none``; or
            ``column:PATH`` in ``metadata``.
        details: The details of the reward to keep in ``metadata``, such as ``member/0``.

    Raises:
        SpecError: An argument is wrong.
    """

    def __init__(self, spec: Spec, *, no_reward: NoReward = "raise", prompt: str = AUTO, details: Sequence[str] = ()) -> None:
        self.reward = EngineReward(spec, ENGINE, no_reward=no_reward, details=details, drops=_DROPS)
        self.group_reward = EngineReward(spec, ENGINE, no_reward=no_reward, details=details, drops=_DROPS, groups=True)
        self._prompt = PromptSource(prompt, ENGINE, "metadata")

    async def custom_rm(self, args: Any, sample: Any, **others: Any) -> float | list[float | None] | None:
        """The reward of a sample, or those of a list: slime calls one function with either.

        Args:
            args: slime's arguments.
            sample: A sample; or several that a custom generation returned; or with ``--group-rm`` the samples of a prompt.
            others: Ignored.

        Returns:
            One number, or a list of them; None for a sample that must be left out. With ``--reward-key``, each is a mapping.

        Raises:
            DataError: The prompt is missing or rendered.
            UnsupportedError: `no_reward` is ``"drop"``, and slime has no dynamic filter.
            ScoringError: There is no reward, and `no_reward` is ``"raise"``.
        """
        several = isinstance(sample, (list, tuple))
        samples = list(sample) if several else [sample]
        if self.reward.no_reward == "drop" and not getattr(args, "dynamic_sampling_filter_path", None):
            raise UnsupportedError(
                "slime leaves out a group only through its dynamic filter. Add --dynamic-sampling-filter-path MODULE.keep_group with the "
                "adapter's module, or choose `no_reward='raise'` or a number."
            )
        # Without --group-rm, a list has the turns of one generation, which must not be compared.
        reward = self.group_reward if several and getattr(args, "group_rm", False) else self.reward
        outcomes = await reward.score_async([self._sample(one) for one in samples])
        for one, outcome in zip(samples, outcomes, strict=True):
            if not isinstance(getattr(one, "metadata", None), dict):
                one.metadata = {}
            one.metadata[METADATA] = outcome.facts
        key = getattr(args, "reward_key", None)
        values = [outcome.value if not key or outcome.value is None else _keyed(key, outcome) for outcome in outcomes]
        return values if several else values[0]  # type: ignore[return-value]  # a mapping only where slime asks for one

    def keep_group(self, args: Any, samples: Sequence[Any], **others: Any) -> bool:
        """Whether all samples of a group have a reward, for ``--dynamic-sampling-filter-path``."""
        return all(one.reward is not None for sample in samples for one in (sample if isinstance(sample, list) else [sample]))

    def _sample(self, sample: Any) -> Sample:
        if isinstance(sample, (list, tuple)):
            raise UnsupportedError(
                "slime cannot give a reward to each of several samples that a custom generation returned, if --group-rm is set. Remove "
                "--group-rm, or return one sample."
            )
        metadata = {name: value for name, value in dict(sample.metadata or {}).items() if name != METADATA}
        columns = {**metadata, **({} if sample.label is None else {"label": sample.label})}
        if self._prompt.source == NONE:
            return self._prompt.sample("", sample.response, columns)
        prompt = plain_value(sample.prompt)
        if not isinstance(prompt, (list, tuple)):
            return self._prompt.sample(prompt, sample.response, columns)
        return Sample(prompt, without_eos(sample.response), plain_row(columns))


def _keyed(key: str, outcome: Outcome) -> dict[str, Any]:
    """A reward for ``--reward-key``."""
    return {**outcome.facts, key: outcome.value}
