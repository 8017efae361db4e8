"""Samples and scores as JSON, in the same form for files, manifests and the network."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rm_plugins.errors import DataError
from rm_plugins.samples import RenderedSample, Sample


def sample_to_json(sample: Sample) -> dict[str, Any]:
    """``{"prompt": ..., "completion": ..., "columns": {...}}``; without ``columns`` if the sample has none.

    A rendered sample becomes ``{"text": ..., "add_special_tokens": ...}`` or ``{"token_ids": [...]}``.

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
        raise DataError(f"A sample must be a mapping, not {value!r:.80}.")
    if set(value) == {"token_ids"} and isinstance(value["token_ids"], Sequence) and not isinstance(value["token_ids"], str):
        return RenderedSample.of(value["token_ids"])
    if {"text"} <= set(value) <= {"text", "add_special_tokens"} and isinstance(value["text"], str):
        added = value.get("add_special_tokens", True)
        if not isinstance(added, bool):
            raise DataError(f"add_special_tokens must be true or false, not {added!r:.80}.")
        return RenderedSample.of(value["text"], add_special_tokens=added)
    unknown = set(value) - {"prompt", "completion", "columns"}
    if unknown or not {"prompt", "completion"} <= set(value):
        raise DataError(
            "A sample must have the keys 'prompt' and 'completion', and may have 'columns'; got "
            f"{', '.join(map(repr, sorted(value))) or 'none'}."
        )
    columns = value.get("columns") or {}
    if not isinstance(columns, Mapping):
        raise DataError(f"The columns of a sample must be a mapping, not {columns!r:.80}.")
    return Sample(value["prompt"], value["completion"], columns)


def values_to_json(values: Iterable[float]) -> list[float | None]:
    """Scores for JSON: null where the provider abstained.

    >>> values_to_json([0.5, math.nan])
    [0.5, None]
    """
    return [None if math.isnan(value) else float(value) for value in values]
