"""What the endpoints that stand in for another server have in common."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Coroutine, Mapping, Sequence
from itertools import takewhile
from typing import Any, ClassVar

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict

from rm_plugins.errors import DataError
from rm_plugins.samples import RenderedSample, Sample
from rm_plugins.server.dialects.dialect import STATUS, Cause, Problem, Scored, Scorer

__all__ = ["LABEL", "DropInRoute", "RequestBody", "probability", "text_sample", "tokens"]

LABEL = "LABEL_0"
"""What transformers calls the only label of a model that was given no names for them."""


class RequestBody(BaseModel):
    """The body of a request: fields that the original does not know are ignored, and those that it knows have their types."""

    model_config: ClassVar[ConfigDict] = ConfigDict(strict=True, extra="ignore")


class DropInRoute(APIRoute):
    """An endpoint that tells of problems with the statuses of the original."""

    statuses: ClassVar[Mapping[Cause, int]] = {}
    """The status of a cause, where the original has another one than `rm_plugins.server.dialects.dialect.STATUS`."""

    async def statuses_for(self, request: Request) -> Mapping[Cause, int]:
        """The statuses for a request of which there is a problem to tell."""
        return self.statuses

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's own, around which problems are caught."""
        handle = super().get_route_handler()

        async def handle_telling(request: Request) -> Response:
            try:
                return await handle(request)
            except RequestValidationError as error:
                problem = Problem("invalid", _complaint(error))
            except DataError as error:
                problem = Problem("invalid", str(error))
            except Problem as found:
                problem = found
            if problem.status == STATUS[problem.cause]:
                problem.status = (await self.statuses_for(request)).get(problem.cause, problem.status)
            raise problem

        return handle_telling


def _complaint(error: RequestValidationError) -> str:
    """What is wrong with a body, by field, without repeating what was sent."""
    if isinstance(error.body, bytes):
        return "the body is read as JSON, and needs Content-Type: application/json"
    found: dict[str, dict[str, None]] = {}
    for one in error.errors():
        if one["type"] == "json_invalid":
            return f"the body is no JSON: {one['ctx']['error']}"
        # The alternatives of a field ("str", "list[int]") stand behind its name; they are all wrong, for different reasons.
        place = takewhile(lambda part: part not in ("str", "int") and re.fullmatch(r"\w+", str(part)), one["loc"])
        found.setdefault(".".join(map(str, place)), {})[one["msg"]] = None
    told = [f"{place}: {', or: '.join(reasons)}" for place, reasons in found.items()]
    return "; ".join(told[:5]) + (f"; and {len(told) - 5} more" if len(told) > 5 else "")


def text_sample(scorer: Scorer, text: str | Sequence[int], *, add_special_tokens: bool = True) -> Sample:
    """A text that came without a prompt, or token ids.

    A reward of models alone scores it as it is. For any other it is a completion, for which no token ids can stand.

    Raises:
        Problem: The reward takes no token ids.
        DataError: There are no token ids, or one is negative.
    """
    if scorer.info["rendered"]:
        return RenderedSample.of(text, add_special_tokens=add_special_tokens)
    if isinstance(text, str):
        return Sample("", text)
    raise Problem("invalid", "this server's reward is not made of models alone and takes no token ids: send text or messages")


def probability(reward: float) -> float:
    """The sigmoid of a reward: what servers of classifiers answer for a model with one output, unless they are told not to."""
    if reward >= 0:
        return 1 / (1 + math.exp(-reward))
    return math.exp(reward) / (1 + math.exp(reward))


def tokens(scored: Scored) -> int:
    """How many tokens were scored, as far as the reward says it."""
    return int(scored.metadata.get("tokens", 0))
