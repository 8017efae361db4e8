"""A request and its answer as a whole, as they are sent between the front and the replicas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_KEPT = (
    "client",
    "headers",
    "http_version",
    "method",
    "path",
    "query_string",
    "raw_path",
    "root_path",
    "scheme",
    "server",
    "type",
)
"""The parts of an ASGI scope that can be sent to another process."""


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A request that was read completely.

    Args:
        scope: The ASGI scope, without what only exists in the process that received the request.
        body: The body.
    """

    scope: Mapping[str, Any]
    body: bytes = field(repr=False)

    @classmethod
    def of(cls, scope: Mapping[str, Any], body: bytes) -> HttpRequest:
        """A request that can be sent to another process."""
        return cls({key: scope[key] for key in _KEPT if key in scope}, body)


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """The answer to a request.

    Args:
        status: The status code.
        headers: The headers.
        body: The body.
    """

    status: int
    headers: Sequence[tuple[bytes, bytes]]
    body: bytes = field(repr=False)
