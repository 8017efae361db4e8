"""Samples and scores as JSON: one form for files, manifests and the network."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rm_plugins.errors import DataError
from rm_plugins.samples import RenderedSample, Sample


def sample_to_json(sample: Sample) -> dict[str, Any]:
    """``{"prompt": ..., "completion": ..., "columns": {...}}``; columns only where there are any.

    What is rendered already is ``{"text": ..., "add_special_tokens": ...}`` or ``{"token_ids": [...]}``.

    >>> sample_to_json(Sample("2+2?", "4"))
    {'prompt': '2+2?', 'completion': '4'}
    """
    if isinstance(sample, RenderedSample):
        if sample.token_ids is not None:
            return {"token_ids": list(sample.token_ids)}
        return {"text": sample.completion, "add_special_tokens": sample.add_special_tokens}

    def plain(value: Any) -> Any:
        return value if isinstance(value, str) else [dict(message) for message in value]

    parts = {"prompt": plain(sample.prompt), "completion": plain(sample.completion)}
    return {**parts, "columns": dict(sample.columns)} if sample.columns else parts


def sample_from_json(value: Any) -> Sample:
    """The inverse of `sample_to_json`.

    Raises:
        DataError: A key is missing or unknown, or a part is not text or messages.
    """
    if not isinstance(value, Mapping):
        raise DataError(f"A sample is a mapping, not {value!r:.80}.")
    if set(value) == {"token_ids"} and isinstance(value["token_ids"], Sequence) and not isinstance(value["token_ids"], str):
        return RenderedSample.of(value["token_ids"])
    if {"text"} <= set(value) <= {"text", "add_special_tokens"} and isinstance(value["text"], str):
        added = value.get("add_special_tokens", True)
        if not isinstance(added, bool):
            raise DataError(f"add_special_tokens must be true or false, not {added!r:.80}.")
        return RenderedSample.of(value["text"], add_special_tokens=added)
    unknown = set(value) - {"prompt", "completion", "columns"}
    if unknown or not {"prompt", "completion"} <= set(value):
        raise DataError(f"A sample has the keys 'prompt', 'completion' and optionally 'columns'; got {sorted(value)}.")
    columns = value.get("columns") or {}
    if not isinstance(columns, Mapping):
        raise DataError(f"A sample's columns are a mapping, not {columns!r:.80}.")
    return Sample(value["prompt"], value["completion"], columns)


def values_to_json(values: Iterable[float]) -> list[float | None]:
    """Scores as JSON has them: null where the provider abstained.

    >>> values_to_json([0.5, math.nan])
    [0.5, None]
    """
    return [None if math.isnan(value) else float(value) for value in values]
