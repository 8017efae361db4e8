"""Samples and scores as JSON: one form for files, manifests and the network."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rm_plugins.errors import DataError
from rm_plugins.types import Sample, Scores

__all__ = ["sample_from_json", "sample_to_json", "scores_to_json"]


def sample_to_json(sample: Sample) -> dict[str, Any]:
    """``{"prompt": ..., "completion": ..., "columns": {...}}``; columns only where there are any.

    >>> sample_to_json(Sample("2+2?", "4"))
    {'prompt': '2+2?', 'completion': '4'}
    """

    def plain(value: Any) -> Any:
        return value if isinstance(value, str) else [dict(message) for message in value]

    found = {"prompt": plain(sample.prompt), "completion": plain(sample.completion)}
    return {**found, "columns": dict(sample.columns)} if sample.columns else found


def sample_from_json(value: Mapping[str, Any]) -> Sample:
    """The inverse of `sample_to_json`.

    Raises:
        DataError: A key is missing or unknown, or a part is not text or messages.
    """
    unknown = set(value) - {"prompt", "completion", "columns"}
    if unknown or not {"prompt", "completion"} <= set(value):
        raise DataError(f"A sample has the keys 'prompt', 'completion' and, at will, 'columns'; got {sorted(value)}.")
    return Sample(value["prompt"], value["completion"], value.get("columns") or {})


def scores_to_json(scores: Scores) -> list[dict[str, Any]]:
    """One mapping a sample: ``{"score": 0.5, "details": {...}}``, null where the provider abstained.

    >>> import numpy as np
    >>> scores_to_json(Scores(np.array([0.5, np.nan])))
    [{'score': 0.5}, {'score': None}]
    """

    def number(value: float) -> float | None:
        return None if math.isnan(value) else float(value)

    rows = []
    for row, value in enumerate(scores.values):
        found: dict[str, Any] = {"score": number(value)}
        if scores.details:
            found["details"] = {name: number(column[row]) for name, column in scores.details.items()}
        rows.append(found)
    return rows
