"""What the server's endpoints have in common: how a request reaches the reward, and how each family of them tells an error."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

from fastapi import APIRouter, Request

from rm_plugins.samples import Sample

__all__ = ["Cause", "Dialect", "Problem", "Scored", "Scorer", "score", "score_all"]

Cause: TypeAlias = Literal[
    "invalid",  # the request is not what the endpoint takes, or a sample of it cannot be scored
    "too-large",
    "unauthorized",
    "not-found",
    "overload",
    "unavailable",  # stopping, or not ready yet
    "failed",  # the reward failed
]

STATUS: Mapping[Cause, int] = {
    "invalid": 422,
    "too-large": 413,
    "unauthorized": 401,
    "not-found": 404,
    "overload": 429,
    "unavailable": 503,
    "failed": 500,
}


@dataclass(eq=False)
class Problem(Exception):
    """What a client is told in place of scores; becomes the body that its dialect has for errors.

    Args:
        cause: Counted in the metrics by this name; decides the status unless `status` does.
        message: For people, without anything of the server's inside.
        status: The HTTP status where it is not the cause's usual one.
        headers: Such as ``Retry-After``.
    """

    cause: Cause
    message: str
    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__(self.message)
        self.status = self.status or STATUS[self.cause]


@dataclass(frozen=True, slots=True)
class Scored:
    """What the reward says of the samples of one request, [N].

    Args:
        values: The rewards; None where it abstained, and where it failed.
        details: Named per-sample extras, [N] each.
        errors: By row, why there is no reward where it failed.
        invalid: The rows among them that cannot be scored for what they are.
        fingerprint: Of the reward that scored all of them.
        metadata: Facts such as ``tokens`` and ``truncated``, for the whole request.
    """

    values: Sequence[float | None]
    details: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    errors: Mapping[int, str] = field(default_factory=dict)
    invalid: frozenset[int] = frozenset()
    fingerprint: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)


class Scorer(Protocol):
    """What endpoints see of the server: `rm_plugins.server.service.Service` is it."""

    name: str
    """The model's name in answers and paths."""

    fingerprint: str
    """Of the reward that scores now."""

    max_items: int
    """Most samples of a request."""

    @property
    def info(self) -> Mapping[str, Any]:
        """What ``GET /v1/info`` answers."""

    async def score(self, samples: Sequence[Sample], client: str) -> Scored:
        """Score one request's samples; cancelling the call drops those that have not begun.

        Raises:
            Problem: Overload, stopping, too many samples, or a failure of the whole request.
        """


@dataclass(frozen=True, slots=True)
class Dialect:
    """A family of endpoints that existing clients speak.

    Args:
        name: For metrics and logs.
        router: Its endpoints.
        error_body: The JSON that stands for a problem.
    """

    name: str
    router: APIRouter
    error_body: Callable[[Problem], Any]


async def score(request: Request, samples: Sequence[Sample]) -> Scored:
    """Have the server's reward score the samples of a request.

    Raises:
        Problem: There is no answer for any of them.
    """
    scorer: Scorer = request.app.state.service
    return await scorer.score(samples, request.state.client)


async def score_all(request: Request, samples: Sequence[Sample]) -> tuple[list[float], Scored]:
    """As `score`, for answers that have no way to say that a sample got no reward.

    Returns:
        The rewards, [N], and everything else that is known of them.

    Raises:
        Problem: A sample has no reward, because it failed or because the reward abstained.
    """
    found = await score(request, samples)
    for row, message in found.errors.items():
        raise Problem("invalid" if row in found.invalid else "failed", f"item {row} could not be scored: {message}")
    values: list[float] = []
    for row, value in enumerate(found.values):
        if value is None:
            raise Problem(
                "invalid",
                f"the reward abstained from item {row}, and this endpoint's answer has no way to say so; POST /v1/rewards has",
            )
        values.append(value)
    return values, found
