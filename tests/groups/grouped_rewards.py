"""Rewards that compare samples, and batches whose groups are spread over processes."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import rm_plugins as rm
from rm_plugins.errors import ScoringError
from rm_plugins.groups import groups_of
from rm_plugins.scores import StepReward, TokenCounts
from rm_plugins.training.session import RewardInTraining, Training

RUNNING = {"name": "zscore", "running": True, "warmup": 2}


class Shorter(rm.Provider):
    """How many completions of the group are longer; a comparing judge, as far as groups are concerned."""

    name = "shorter"
    depends_on_batch = True
    metrics = ("groups",)

    def __init__(self, group: str | None = None) -> None:
        self.group = group
        self.scored: list[rm.Sample] = []

    def score_batch(self, samples: Sequence[rm.Sample]) -> rm.Scores:
        self.scored += samples
        values, sizes = np.full(len(samples), np.nan), np.full(len(samples), np.nan)
        groups = groups_of(samples, self.group)
        lengths = [len(sample.completion_text) for sample in samples]
        for rows in groups:
            for row in rows:
                values[row], sizes[row] = sum(lengths[other] > lengths[row] for other in rows), len(rows)
        broken = [row for rows in groups for row in rows if any(samples[other].completion == "bad" for other in rows)]
        error = ScoringError("a judge refused one of the group", rows=broken)
        values[broken] = np.nan
        return rm.Scores(
            values,
            {"size": sizes},
            {"groups": len(groups), "unknown": object()},
            errors=error.by_row,
            tokens=TokenCounts(np.array(lengths, dtype=np.int64), np.zeros(len(samples), dtype=np.bool_)),
            steps=[[StepReward(length, float(value))] for length, value in zip(lengths, values.tolist(), strict=True)],
        )


def length(samples: Sequence[rm.Sample]) -> list[float | None]:
    """Abstains on empty completions."""
    return [len(sample.completion_text) ** 2 / 7 or None for sample in samples]


def function(**more: Any) -> dict[str, Any]:
    return {"provider": "function", "function": length, **more}


def shorter() -> Shorter:
    provider = Shorter()
    provider.on_error = "abstain"
    return provider


REWARDS: dict[str, Any] = {
    "ranks": lambda: rm.load(function(transform="rank-in-group")),
    "standardized": lambda: rm.load(function(transform=["zscore-in-group", RUNNING])),
    "by a column": lambda: rm.load(function(transform={"name": "rank-in-group", "group": "id"}, on_error="abstain")),
    "a judge": shorter,
    "an ensemble": lambda: rm.load(
        {
            "provider": "sum",
            "members": [
                shorter(),
                function(transform={"name": "zscore-in-group", "group": "id"}),
                function(transform=RUNNING),
            ],
            "weights": [1.0, 0.5, 1.0],
            "transform": "rank-in-group",
            "on_error": "abstain",
        }
    ),
    "nothing is compared": lambda: rm.load(function(transform=RUNNING)),
}


def batch(seed: int, size: int) -> list[rm.Sample]:
    """Samples of few prompts, some without one, with ids that lie across the prompts."""
    chance = random.Random(seed)
    return [
        rm.Sample(
            chance.choice(["", "a", "b", "c"]),
            chance.choice(["", "x", "yy", "zzzz", "zzzzz", *["bad"] * (chance.random() < 0.2)]),
            {"id": chance.randrange(3)} if chance.random() < 0.9 else {},
        )
        for _ in range(size)
    ]


def shares(samples: Sequence[rm.Sample], processes: int, seed: int) -> list[list[rm.Sample]]:
    """The batch in contiguous shares of any sizes, as the trainers share it; some may be empty."""
    chance = random.Random(seed)
    cuts = sorted(chance.randrange(len(samples) + 1) for _ in range(processes - 1))
    return [list(samples[start:stop]) for start, stop in zip([0, *cuts], [*cuts, len(samples)], strict=True)]


def session(name: str) -> RewardInTraining:
    return RewardInTraining(REWARDS[name](), "mine")


def training(step: int = 0, kept: dict[str, Any] | None = None) -> Training:
    return Training(step, 10, {} if kept is None else kept, "nowhere")


def known(details: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """The details that any sample has: where all samples of a share fail, it has none."""
    return {name: values for name, values in details.items() if {*values} - {"nan"}}


def plain(scores: rm.Scores) -> dict[str, Any]:
    """Everything about the scores of samples that can be compared, NaN as text."""

    def numbers(values: Any) -> list[Any]:
        return ["nan" if math.isnan(value) else value for value in np.asarray(values, dtype=float).tolist()]

    return {
        "values": numbers(scores.values),
        # Messages count the rows of a batch, so they differ.
        "errors": {row: type(error).__name__ for row, error in sorted(scores.errors.items())},
        "details": known({name: numbers(values) for name, values in scores.details.items()}),
        "tokens": None if scores.tokens is None else scores.tokens.used.tolist(),
        "steps": None if scores.steps is None else [[(s.end, str(s.reward)) for s in steps] for steps in scores.steps],
        "parts": {name: plain(part) for name, part in scores.parts.items()},
        "kind": scores.kind,
    }


def rows_of(found: Mapping[str, Any], rows: Sequence[int]) -> dict[str, Any]:
    """The result of `plain` for some rows of a batch."""

    def chosen(values: Any) -> Any:
        return None if values is None else [values[row] for row in rows]

    places = {row: place for place, row in enumerate(rows)}
    return {
        "values": chosen(found["values"]),
        "errors": {places[row]: told for row, told in found["errors"].items() if row in places},
        "details": known({name: chosen(values) for name, values in found["details"].items()}),
        "tokens": chosen(found["tokens"]),
        "steps": chosen(found["steps"]),
        "parts": {name: rows_of(part, rows) for name, part in found["parts"].items()},
        "kind": found["kind"],
    }
