"""A reward in an evaluation: what identifies it, and its scores."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import numpy as np

from rm_plugins.data.scored_rows import ScoredRow
from rm_plugins.errors import RmPluginsError
from rm_plugins.evaluation.shown_pairs import cut_text
from rm_plugins.identity import fingerprint, manifests_of, shown_spec
from rm_plugins.provider import Provider
from rm_plugins.samples import Sample
from rm_plugins.scores import FloatArray, ensemble_members


def scores_of(rows: Iterable[ScoredRow]) -> tuple[FloatArray, dict[str, FloatArray]]:
    """The scores of rows, float64 [N], and those of an ensemble's members by name; NaN in rows that lack a member."""
    values = array("d")
    details: dict[str, array[float]] = {}
    for scored in rows:
        before = len(values)
        values.extend(_numbers(scored.scores))
        for name, column in scored.details.items():
            details.setdefault(name, array("d", [np.nan] * before)).extend(_numbers(column))
        for known in details.values():
            known.extend([np.nan] * (len(values) - len(known)))
    return np.array(values, dtype=np.float64), {name: np.array(details[name]) for name in ensemble_members(details)}


def reward_facts(
    provider: Provider | None, *, name: str, source: str = "", sample: Sample | None = None, identity: str = ""
) -> dict[str, Any]:
    """What identifies a reward, as the fields of `rm_plugins.evaluation.results.RewardResult`.

    Args:
        provider: The reward; None where its scores were read from a column.
        name: What to call it.
        source: The spec as it was given.
        sample: What to render as an example.
        identity: The reward's fingerprint, where it is known already.
    """
    if provider is None:
        return {"name": name, "source": source, "spec": None, "fingerprint": "", "rendering": "", "manifest": {}}
    rendering = ""
    for _, part in provider.walk():
        with suppress(RmPluginsError):
            if sample is not None:
                rendering = cut_text(part.render(sample))
                break
    spec = None if provider.spec is None else json.loads(json.dumps(shown_spec(provider), default=str))
    return {
        "name": name,
        "source": source,
        "spec": spec,
        # Of what was made in Python it would say little, and of a model that is being trained nothing that lasts, at a price.
        "fingerprint": "" if spec is None else identity or fingerprint(provider),
        "rendering": rendering,
        "manifest": {
            path: manifest.training | ({} if manifest.trained_on is None else {"trained_on": manifest.trained_on})
            for path, manifest in manifests_of(provider).items()
        },
    }


def _numbers(values: Iterable[float | None]) -> list[float]:
    return [np.nan if value is None else value for value in values]
