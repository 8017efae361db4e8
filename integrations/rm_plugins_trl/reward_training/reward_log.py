"""The rewards that a trainer has seen since its last log entry."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from rm_plugins.evaluation import head_metrics
from rm_plugins.losses import RewardBatch
from rm_plugins.models.heads import Heads

_REMEMBERED = 2_000  # training rewards whose statistics are saved where there is no evaluation data
_MOST_BATCHES = 1_000  # of training between two log entries; where nothing is ever logged, the older ones are forgotten
_OF_TRAINING = ("accuracy", "margin", "mean_reward", "std_reward", "min_reward", "max_reward")
"""The metrics that training logs, where an entry covers a few batches; an evaluation logs all metrics."""


@dataclass(slots=True)
class _Seen:
    """Batches of judged rows."""

    batches: list[tuple[np.ndarray, ...]] = field(default_factory=list)
    """Of each batch: outputs, pairs, lengths, labels."""
    sections: list[str] = field(default_factory=list)
    numbers: set[int] = field(default_factory=set)
    terms: dict[str, list[tuple[float, int]]] = field(default_factory=dict)
    """Of each regularizer and batch: its value, and the number of items of the loss."""
    rows: int = 0
    losses: list[tuple[float, int]] = field(default_factory=list)
    """Of each batch: its loss, and how many items that is the mean over."""


class RewardLog:
    """Keeps a model's outputs batch by batch, and computes metrics from them; `attributes` are the names of the labels' columns."""

    def __init__(self, heads: Heads, attributes: Sequence[str] = ()) -> None:
        self.heads = heads
        self.attributes = tuple(attributes)
        self._weights = np.array(heads.reward_weights)
        self._seen = {"train": _Seen(), "eval": _Seen()}
        self.rewards: dict[str, deque[float]] = {"train": deque(maxlen=_REMEMBERED), "eval": deque()}
        """The last training rewards, and all of the last evaluation."""

    def start_evaluation(self) -> None:
        """Forget the evaluation before."""
        self._seen["eval"] = _Seen()
        self.rewards["eval"].clear()

    def fresh(self, numbers: Sequence[int]) -> list[bool]:
        """Which judgements this evaluation has not seen. The others only fill up its last batch, so that all processes have equally many.

        Args:
            numbers: The dataset row of each judgement, negative if it is known to fill up a batch.
        """
        seen = set(self._seen["eval"].numbers)
        fresh = []
        for number in numbers:
            fresh.append(number >= 0 and number not in seen)
            seen.add(number)
        return fresh

    @torch.no_grad()
    def add(
        self,
        mode: str,
        batch: RewardBatch,
        numbers: Sequence[int],
        sections: Sequence[str | None],
        characters: Sequence[int],
    ) -> None:
        """Keep a batch.

        Args:
            mode: ``train`` or ``eval``.
            batch: The whole batch.
            numbers: The dataset row of each group; those of an evaluation are `fresh`.
            sections: The section of each group.
            characters: The length of each row's answer before truncation; 0 where no text is known.
        """
        if mode == "train" and len(self._seen[mode].batches) >= _MOST_BATCHES:
            self._seen[mode] = _Seen()
        seen = self._seen[mode]
        if mode == "eval":
            seen.numbers.update(numbers)
        outputs = batch.rewards.double().cpu().numpy()
        pairs = batch.pairs.cpu().numpy().reshape(-1, 2) + seen.rows
        labels = np.full((len(outputs), len(self.attributes)), np.nan)
        if batch.labels is not None and self.attributes:
            labels = batch.labels.double().cpu().numpy()
        seen.batches.append((outputs, pairs, np.array(characters), labels))
        seen.sections += [sections[group] or "other" if any(sections) else "" for group in batch.groups.tolist()]
        seen.rows += len(outputs)
        self.rewards[mode].extend((outputs @ self._weights).tolist())

    def add_term(self, mode: str, name: str, value: float, items: int) -> None:
        """Keep the value of a regularizer on a batch with so many items."""
        self._seen[mode].terms.setdefault(name, []).append((value, items))

    def add_loss(self, value: float, items: int) -> None:
        """Keep the loss of a batch of an evaluation, and how many items it is the mean over."""
        self._seen["eval"].losses.append((value, items))

    def evaluated_loss(self) -> float | None:
        """The mean over the items of all batches of an evaluation; None without any."""
        losses = self._seen["eval"].losses
        return _mean(losses) if any(items for _, items in losses) else None

    def metrics(self, mode: str) -> dict[str, float]:
        """The metrics of what was kept in this mode since the last call, which is then forgotten; empty if nothing was."""
        seen, self._seen[mode] = self._seen[mode], _Seen()
        if not seen.rows:
            return {}
        outputs, pairs, lengths, labels = map(np.concatenate, zip(*seen.batches, strict=True))
        metrics = head_metrics(
            outputs,
            self.heads,
            pairs,
            lengths,
            sections=seen.sections if any(seen.sections) else None,
            labels=labels if self.attributes else None,
            attributes=self.attributes,
        )
        if mode == "train":
            metrics = {name: metrics[name] for name in _OF_TRAINING if name in metrics}
        return metrics | {f"regularizers/{name}": _mean(values) for name, values in seen.terms.items()}


def _mean(values: Sequence[tuple[float, int]]) -> float:
    """The mean of values over their items; each counts once if there are none."""
    total = sum(items for _, items in values)
    return sum(value * items for value, items in values) / total if total else sum(value for value, _ in values) / len(values)
