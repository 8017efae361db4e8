"""What the endpoints that stand in for another server have in common."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Coroutine, Mapping
from itertools import takewhile
from typing import Any, ClassVar

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict

from rm_plugins.errors import DataError
from rm_plugins.server.dialects.dialect import STATUS, Cause, Problem, Scored

__all__ = ["LABEL", "DropInRoute", "RequestBody", "probability", "tokens"]

LABEL = "LABEL_0"
"""What transformers calls the only label of a model that was given no names for them."""


class RequestBody(BaseModel):
    """The body of a request: fields that the original does not know are ignored, and those that it knows have their types."""

    model_config: ClassVar[ConfigDict] = ConfigDict(strict=True, extra="ignore")


class DropInRoute(APIRoute):
    """An endpoint that tells of problems with the statuses of the original."""

    statuses: ClassVar[Mapping[Cause, int]] = {}
    """The status of a cause, where the original has another one than `rm_plugins.server.dialects.dialect.STATUS`."""

    async def adapt(self, problem: Problem, request: Request) -> None:
        """Give a problem the status of the original."""
        problem.status = self.statuses.get(problem.cause, problem.status)

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
            except Problem as error:
                problem = error
            if problem.status == STATUS[problem.cause]:
                await self.adapt(problem, request)
            raise problem

        return handle_telling


def _complaint(error: RequestValidationError) -> str:
    """What is wrong with a body, by field, without repeating what was sent."""
    if isinstance(error.body, bytes):
        return "the body is read as JSON, and needs Content-Type: application/json"
    reasons_by_place: dict[str, dict[str, None]] = {}
    for one in error.errors():
        if one["type"] == "json_invalid":
            return f"the body is no JSON: {one['ctx']['error']}"
        # The alternatives of a field ("str", "list[int]") stand behind its name; they are all wrong, for different reasons.
        place = takewhile(lambda part: part not in ("str", "int") and re.fullmatch(r"\w+", str(part)), one["loc"])
        reasons_by_place.setdefault(".".join(map(str, place)), {})[one["msg"]] = None
    told = [f"{place}: {', or: '.join(reasons)}" for place, reasons in reasons_by_place.items()]
    return "; ".join(told[:5]) + (f"; and {len(told) - 5} more" if len(told) > 5 else "")


def probability(reward: float) -> float:
    """The sigmoid of a reward: what servers of classifiers answer for a model with one output, unless they are told not to."""
    if reward >= 0:
        return 1 / (1 + math.exp(-reward))
    return math.exp(reward) / (1 + math.exp(reward))


def tokens(scored: Scored) -> int:
    """How many tokens were scored, as far as the reward says it."""
    return int(scored.metadata.get("tokens", 0))
