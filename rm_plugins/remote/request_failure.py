"""The ways in which a request can fail."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

from rm_plugins.errors import ScoringError
from rm_plugins.protocols.protocol import Failure

Cause: TypeAlias = Literal["connection", "timeout", "bad-answer"] | Failure
"""Why a request gave no scores.

- ``connection``: the server could not be reached, or closed the connection without an answer.
- ``timeout``: it took too long.
- ``bad-answer``: the answer violates the protocol.
- The others are meanings of an error status; see `rm_plugins.protocols.protocol.Failure`.
"""

COUNTED: Mapping[Cause, str] = {
    "connection": "connection_errors",
    "timeout": "timeouts",
    "bad-answer": "bad_answers",
    "retry": "server_errors",
    "overload": "overloads",
}
"""The name in `Provider.counts` for each cause after which a request is retried."""


class RequestFailure(ScoringError):
    """A request that gave no scores; never leaves this package.

    Args:
        cause: Decides how the failure is handled.
        reason: A description for messages.
        status: The status of the answer; 0 if there was none.
        retry_after: Seconds after which the server asked to retry; None if it did not ask.
        nothing_listens: Whether no connection was possible: it was refused, or the host is unknown.
    """

    def __init__(
        self, cause: Cause, reason: str, *, status: int = 0, retry_after: float | None = None, nothing_listens: bool = False
    ) -> None:
        super().__init__(reason)
        self.cause = cause
        self.status = status
        self.retry_after = retry_after
        self.nothing_listens = nothing_listens

    @property
    def speaks_of_the_server(self) -> bool:
        """Whether the problem is the server's, not the request's."""
        by_status = self.cause in ("retry", "overload") and (self.status >= 500 or self.status == 429)
        return self.cause in ("connection", "timeout") or by_status
