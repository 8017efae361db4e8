"""What the endpoints that stand in for another server have in common."""

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
    """The body of a request: fields that the original does not know are ignored, and those that it knows have their types."""

    model_config: ClassVar[ConfigDict] = ConfigDict(strict=True, extra="ignore")


class DropIn(Dialect):
    """A dialect whose bodies' fields may have several forms."""

    def complaint(self, errors: Sequence[Mapping[str, Any]], body: Any) -> str:
        """What is wrong with a body, by field: of a field with several forms, why and where it has none of them; the first five."""
        reasons_by_place: dict[str, dict[str, None]] = {}
        for error in errors:
            if error["type"] == "json_invalid":
                return f"the body is no JSON: {error['ctx']['error']}"
            # The forms of a field ("str", "list[int]") follow its name.
            place = [*takewhile(lambda part: part not in ("str", "int") and re.fullmatch(r"\w+", str(part)), error["loc"])]
            inside = "".join(f"[{part}]" for part in error["loc"][len(place) :] if isinstance(part, int))
            reason = f"{inside}: {error['msg']}" if inside else error["msg"]
            reasons_by_place.setdefault(".".join(map(str, place)), {})[reason] = None
        complaints = [f"{place}: {', or: '.join(reasons)}" for place, reasons in reasons_by_place.items()]
        return "; ".join(complaints[:5]) + (f"; and {len(complaints) - 5} more" if len(complaints) > 5 else "")


def cuts_at(scorer: Scorer, samples: Sequence[Sample]) -> Literal["left", "right"]:
    """The side at which samples lose what is too long for the model: pairs lose the end of their longer text, all else its beginning."""
    is_rendered = any(isinstance(sample, RenderedSample) for sample in samples)
    return "right" if scorer.info["pair"] and not is_rendered else "left"


def probability(reward: float) -> float:
    """The sigmoid of a reward: what servers of classifiers answer for a model with one output, unless they are told not to."""
    if reward >= 0:
        return 1 / (1 + math.exp(-reward))
    return math.exp(reward) / (1 + math.exp(reward))
