"""How a request can fail."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

from rm_plugins.errors import ScoringError
from rm_plugins.protocols.protocol import Failure

__all__ = ["COUNTED", "Cause", "RequestFailure"]

Cause: TypeAlias = Literal["connection", "timeout", "bad-answer"] | Failure
"""Why there are no scores.

- ``connection``: the server could not be reached, or went away without an answer.
- ``timeout``: it took too long.
- ``bad-answer``: it answered, and not what the protocol says.
- The others are what an error status means; see `rm_plugins.protocols.protocol.Failure`.
"""

COUNTED: Mapping[Cause, str] = {
    "connection": "connection_errors",
    "timeout": "timeouts",
    "bad-answer": "bad_answers",
    "retry": "server_errors",
    "overload": "overloads",
}
"""The name in `Provider.counts` of each cause for which a request is sent again."""


class RequestFailure(ScoringError):
    """A request that brought no scores; never leaves this package.

    Args:
        cause: Decides what is done about it.
        reason: For people.
        status: The status of the answer; 0 where there was none.
        retry_after: Seconds that the server asked to be left alone.
    """

    def __init__(self, cause: Cause, reason: str, *, status: int = 0, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.cause = cause
        self.status = status
        self.retry_after = retry_after

    @property
    def speaks_of_the_server(self) -> bool:
        """Whether it says that the server is in trouble, rather than that something is wrong with the request."""
        by_status = self.cause in ("retry", "overload") and (self.status >= 500 or self.status == 429)
        return self.cause in ("connection", "timeout") or by_status
