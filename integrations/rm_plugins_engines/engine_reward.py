"""What all adapters share: scoring an engine's samples, and what a sample without a reward becomes."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from rm_plugins.errors import RmPluginsError, ScoringError, SpecError, UnsupportedError
from rm_plugins.samples import Sample
from rm_plugins.scores import FloatArray, Scores
from rm_plugins.server.served_reward import RewardFacts
from rm_plugins_engines.python_path import folders_of_functions, look_for_functions_in
from rm_plugins_engines.shared_reward import SharedReward, Spec, checked_spec, shared_reward, shared_reward_async

logger = logging.getLogger(__name__)

NoReward: TypeAlias = Literal["raise", "drop"] | float
"""What a sample without a reward becomes: an error, nothing (where the engine can leave samples out), or this number."""

NO_REWARD = "rm_no_reward"
"""The name under which engines log 1 for a sample without a reward of its own, and 0 for the others."""
ERROR = "rm_error"
"""The name under which engines keep why a sample has no reward; empty for the others."""
FINGERPRINT = "rm_fingerprint"
"""The name under which engines keep the fingerprint of the reward."""
_SHOWN = 500


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an engine is told about one sample.

    Args:
        value: The reward, or the number that the user chose for samples without one; None where the sample must be left out.
        why_none: Why the reward gave no score; empty where it did.
        details: The requested details of the reward, NaN where they are missing.
        fingerprint: The fingerprint of the reward.
    """

    value: float | None
    why_none: str
    details: Mapping[str, float]
    fingerprint: str

    @property
    def number(self) -> float:
        """The value, for engines that cannot leave out a sample, which is why dropping is not a choice there."""
        assert self.value is not None
        return self.value

    @property
    def numbers(self) -> dict[str, float]:
        """What engines log that collate numbers only: the details, and whether the value is not the reward's own."""
        return {**self.details, NO_REWARD: float(bool(self.why_none))}

    @property
    def facts(self) -> dict[str, float | str]:
        """What engines log that collate texts too. Every sample has the same names."""
        return {**self.numbers, ERROR: self.why_none[:_SHOWN], FINGERPRINT: self.fingerprint}

    @property
    def json_facts(self) -> dict[str, float | str | None]:
        """The same for JSON: None in place of a number that is not finite."""
        return {
            name: None if isinstance(fact, float) and not math.isfinite(fact) else fact for name, fact in self.facts.items()
        }


class EngineReward:
    """A reward as an engine calls it. It can be pickled: every process loads the spec for itself, and looks for its functions in the same
    folders (`look_for_functions_in`).

    Args:
        spec: Anything that `rm_plugins.load` takes, except a loaded provider.
        engine: The engine's name in messages.
        no_reward: What a sample becomes that the reward fails on or abstains from: ``"raise"``, a number, or ``"drop"`` if `drops`.
        details: The details of the reward to log, by their names in `Scores.columns`, such as ``member/0``.
        drops: How the engine leaves a sample out; empty if it cannot.
        groups: Whether a call has all completions of a prompt.
        in_step: Whether all processes of the training call the reward at the same steps, each with its share of the batch. Then a call is
            scored by itself in the calling thread, where rewards may exchange with those of other processes, and learn while they score.

    Raises:
        SpecError: `no_reward` is neither of these, or the spec's file does not exist.
        UnsupportedError: The engine cannot leave samples out.
    """

    def __init__(
        self,
        spec: Spec,
        engine: str,
        *,
        no_reward: NoReward = "raise",
        details: Sequence[str] = (),
        drops: str = "",
        groups: bool = False,
        in_step: bool = False,
    ) -> None:
        self.no_reward = checked_no_reward(no_reward, engine, drops)
        self.spec = checked_spec(spec)
        self.engine = engine
        self.details = tuple(details)
        self.groups = groups
        self.in_step = in_step
        self.counts: Counter[str] = Counter()

    def score(self, samples: Sequence[Sample]) -> list[Outcome]:
        """Score the samples of a call, together with those of other calls that wait.

        Returns:
            One outcome per sample, in order.

        Raises:
            ScoringError: A sample has no reward, and `no_reward` is ``"raise"``.
            UnsupportedError: The reward compares samples, and the engine hands them over one by one.
        """
        if not samples and not self.in_step:
            return []
        shared = shared_reward(self.spec)
        self._check(shared)
        return self._outcomes(shared, shared.score_here(samples) if self.in_step else shared.score(samples))

    async def score_async(self, samples: Sequence[Sample]) -> list[Outcome]:
        """The same in a coroutine, on any event loop."""
        if not samples:
            return []
        shared = await shared_reward_async(self.spec)
        self._check(shared)
        return self._outcomes(shared, await shared.score_async(samples))

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_folders": folders_of_functions()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        look_for_functions_in(*state.pop("_folders"))
        vars(self).update(state)

    def _check(self, shared: SharedReward) -> None:
        check_reward(shared.reward.facts, self.engine, groups=self.groups, in_step=self.in_step)

    def _outcomes(self, shared: SharedReward, scores: Scores) -> list[Outcome]:
        fingerprint = shared.reward.fingerprint
        columns = scores.columns
        if unknown := [name for name in self.details if _is_unknown(name, scores.values, columns)]:
            raise SpecError(
                f"The reward {shared.reward.facts.label!r} has no detail {unknown[0]!r}. It has: {', '.join(columns) or 'none'}. Change "
                "`details`."
            )
        with shared.counting:
            missing = self._missing(scores)
            self.counts["samples"] += len(scores)
        if missing and self.no_reward == "raise":
            raise self._told(shared.reward.facts.label, missing, len(scores))
        outcomes = []
        for row, value in enumerate(scores.values.tolist()):
            details = {name: float(columns[name][row]) if name in columns else math.nan for name in self.details}
            outcomes.append(
                Outcome(
                    value if row not in missing else self.no_reward if isinstance(self.no_reward, float) else None,
                    missing.get(row, ""),
                    details,
                    fingerprint,
                )
            )
        return outcomes

    def _missing(self, scores: Scores) -> dict[int, str]:
        """Why rows have no reward, by row; they are counted, and logged at 1, 10, 100, ... of them."""
        missing: dict[int, str] = {}
        for row, value in enumerate(scores.values.tolist()):
            if math.isfinite(value):
                continue
            failure = scores.errors.get(row)
            self.counts["failed" if failure is not None else "abstained"] += 1
            missing[row] = "it abstained" if failure is None else str(failure)
        before = self.counts["without"]
        self.counts["without"] += len(missing)
        if missing and (before == 0 or _magnitude(self.counts["without"]) > _magnitude(before)):
            became = {"raise": "is an error", "drop": "is left out"}.get(str(self.no_reward), f"gets {self.no_reward}")
            logger.warning(
                "%d of %d samples of %s had no reward so far (%d failed, %d abstained). Each %s. The last: %s",
                *(self.counts["without"], self.counts["samples"] + len(scores), self.engine),
                *(self.counts["failed"], self.counts["abstained"], became, next(reversed(missing.values()))),
            )
        return missing

    def _told(self, label: str, missing: Mapping[int, str], size: int) -> RmPluginsError:
        first = min(missing)
        which = "a sample" if size == 1 else f"{len(missing)} of {size} samples, the first of them sample {first}"
        return ScoringError(
            f"The reward {label!r} gave no score for {which}: {missing[first].rstrip('.')}. {self.engine} needs a number for every sample. "
            "Set `on_error: {fallback: SPEC}` in the spec; or choose what such a sample becomes with `no_reward` in the adapter.",
            rows=sorted(missing),
        )


def check_reward(facts: RewardFacts, engine: str, *, groups: bool = False, in_step: bool = False) -> None:
    """Refuse a reward whose scores would depend on which samples an engine happens to hand over together, or in which order.

    Args:
        facts: The facts about the reward.
        engine: The engine's name.
        groups: Whether a call has all completions of a prompt.
        in_step: Whether all processes call the reward at the same steps.

    Raises:
        UnsupportedError: It compares samples and there are no groups, or it learns from samples and there are no steps.
    """
    if facts.learns and not in_step:
        raise UnsupportedError(
            f"{facts.learns[0]} learns from the samples that it scores, but {engine} calls rewards in several processes and in no order, "
            "so equal samples would get different scores. Use fixed settings (`rm-plugins calibrate` finds them), or serve the reward once "
            "and write the adapter for its URL."
        )
    if not facts.is_merged and not groups:
        raise UnsupportedError(
            f"The reward {facts.label!r} compares the samples of a batch, but {engine} hands them to a reward one by one, so each would be "
            "compared with nothing. Use a reward whose scores do not depend on the batch."
        )


def checked_no_reward(no_reward: Any, engine: str, drops: str) -> NoReward:
    """The choice for samples without a reward, a number as a float.

    Args:
        no_reward: The choice.
        engine: The engine's name.
        drops: How the engine leaves a sample out; empty if it cannot.

    Raises:
        SpecError: It is neither ``"raise"``, ``"drop"`` nor a finite number.
        UnsupportedError: It is ``"drop"``, and the engine cannot leave samples out.
    """
    if no_reward == "raise" or (no_reward == "drop" and drops):
        return "drop" if no_reward == "drop" else "raise"
    if no_reward == "drop":
        raise UnsupportedError(
            f"{engine} cannot leave out a sample, so `no_reward` cannot be 'drop'. Choose 'raise', or the number that such a sample gets."
        )
    if isinstance(no_reward, bool) or not isinstance(no_reward, (int, float)) or not math.isfinite(no_reward):
        raise SpecError(f"`no_reward` must be 'raise', 'drop' or a finite number, not {no_reward!r}.")
    return float(no_reward)


def _is_unknown(detail: str, values: FloatArray, columns: Mapping[str, FloatArray]) -> bool:
    """Whether the part that a detail belongs to has scored samples, but has no such detail.

    A batch lacks the details of a part that scored none of its samples, such as another route or a reward that a fallback replaced.

    >>> values, route = np.array([1.0]), {"route/a": np.array([1.0]), "route/b": np.array([np.nan])}
    >>> [_is_unknown(name, values, route) for name in ("route/a", "route/a/std", "route/b/std", "std")]
    [False, True, False, True]
    """
    if detail in columns:
        return False
    part = detail.rpartition("/")[0]
    while part and part not in columns:
        part = part.rpartition("/")[0]
    of_fallback = columns.get(f"{part}/fallback" if part else "fallback")
    scored = np.isfinite(columns[part] if part else values)
    return bool((scored if of_fallback is None else scored & np.isnan(of_fallback)).any())


def _magnitude(count: int) -> int:
    return len(str(count))
