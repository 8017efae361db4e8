"""Shared parts of the dialects that replace another server."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from rm_plugins.samples import RenderedSample, Sample
from rm_plugins.server.dialects.dialect import Dialect, Scorer


class RequestBody(BaseModel):
    """The body of a request: unknown fields are ignored, as by the original server; known fields are type-checked strictly."""

    model_config: ClassVar[ConfigDict] = ConfigDict(strict=True, extra="ignore")


class DropIn(Dialect):
    """A dialect with fields that may have several forms."""

    def complaint(self, errors: Sequence[Mapping[str, Any]], body: Any) -> str:
        """A message for pydantic's errors in a body, grouped by field, so that all forms of a field are named together; the first five."""
        reasons_by_place: dict[str, dict[str, None]] = {}
        for error in errors:
            if error["type"] == "json_invalid":
                return f"the body is not valid JSON: {error['ctx']['error']}"
            # In pydantic's path, the form of a field ("str", "list[int]") follows its name.
            place = [*takewhile(lambda part: part not in ("str", "int") and re.fullmatch(r"\w+", str(part)), error["loc"])]
            inside = "".join(f"[{part}]" for part in error["loc"][len(place) :] if isinstance(part, int))
            reason = f"{inside}: {error['msg']}" if inside else error["msg"]
            reasons_by_place.setdefault(".".join(map(str, place)), {})[reason] = None
        complaints = [f"{place}: {', or: '.join(reasons)}" for place, reasons in reasons_by_place.items()]
        return "; ".join(complaints[:5]) + (f"; and {len(complaints) - 5} more" if len(complaints) > 5 else "")


def cuts_at(scorer: Scorer, samples: Sequence[Sample]) -> Literal["left", "right"]:
    """The side on which samples are truncated: pairs lose the end of their longer text, others the beginning."""
    is_rendered = any(isinstance(sample, RenderedSample) for sample in samples)
    return "right" if scorer.info["pair"] and not is_rendered else "left"


def probability(reward: float) -> float:
    """The sigmoid of a reward, which servers of classifiers return by default for a model with one output."""
    if reward >= 0:
        return 1 / (1 + math.exp(-reward))
    return math.exp(reward) / (1 + math.exp(reward))
