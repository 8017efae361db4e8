"""A reward in an evaluation: what identifies it, and its scores."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rm_plugins.errors import RmPluginsError
from rm_plugins.evaluation.shown_pairs import cut_text
from rm_plugins.identity import fingerprint, shown_spec
from rm_plugins.provider import Provider
from rm_plugins.samples import Sample
from rm_plugins.scores import FloatArray, is_member

__all__ = ["RewardColumns", "RewardFacts", "reward_facts"]


@dataclass(frozen=True, slots=True)
class RewardFacts:
    """What identifies a reward in a report.

    Args:
        name: What it is called there.
        source: The spec as it was given.
        spec: The spec, every nested one written out; None where it was made in Python.
        fingerprint: Of its settings, weights and rendering.
        rendering: A sample as the model is given it, empty where it is no model.
        manifest: What its models' manifests say of their training, by their path in the spec.
    """

    name: str
    source: str = ""
    spec: Mapping[str, Any] | None = None
    fingerprint: str = ""
    rendering: str = ""
    manifest: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class RewardColumns:
    """The scores of one reward, as they come in.

    Args:
        values: The rewards, NaN where it abstained.
        details: The details of the scores, NaN where there are none.
    """

    values: array[float] = field(default_factory=lambda: array("d"))
    details: dict[str, array[float]] = field(default_factory=dict)

    def add(self, values: Iterable[float], details: Mapping[str, Iterable[float]]) -> None:
        """Take the scores of some samples."""
        before = len(self.values)
        self.values.extend(values)
        for name, found in details.items():
            self.details.setdefault(name, array("d", [np.nan] * before)).extend(found)
        for column in self.details.values():
            column.extend([np.nan] * (len(self.values) - len(column)))

    @property
    def members(self) -> dict[str, FloatArray]:
        """float64 [N] of each member, where the reward is an ensemble: what says how far its members disagree."""
        if "std" not in self.details:
            return {}  # the parts of a sum, say, which need not agree
        return {name: np.array(column) for name, column in self.details.items() if is_member(name)}


def reward_facts(
    provider: Provider, *, name: str, source: str = "", sample: Sample | None = None, identity: str = ""
) -> RewardFacts:
    """What identifies a reward.

    Args:
        provider: The reward.
        name: What to call it.
        source: The spec as it was given.
        sample: What to render as an example.
        identity: The reward's fingerprint, where it is known already.
    """
    manifests = {
        path: manifest.training for path, part in provider.walk() if (manifest := getattr(part, "manifest", None)) is not None
    }
    rendering = ""
    for _, part in provider.walk():
        with suppress(RmPluginsError):
            if sample is not None:
                rendering = cut_text(part.render(sample))
                break
    spec = None if provider.spec is None else json.loads(json.dumps(shown_spec(provider), default=str))
    # Of what was made in Python it would say little, and of a model that is being trained nothing that lasts, at a price.
    known = "" if spec is None else identity or fingerprint(provider)
    return RewardFacts(name, source, spec, known, rendering, manifests)
