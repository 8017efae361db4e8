"""What protocols ask a server before the first request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rm_plugins.errors import AnswerError, ScoringError, UnsupportedError
from rm_plugins.protocols.protocol import Ask, Protocol, Request, Response

__all__ = ["KEY_MISSING", "found_at", "only_model", "told_by"]

KEY_MISSING = "the server asks for a key, and was sent none or another one"


async def found_at(ask: Ask, path: str) -> Mapping[str, Any] | None:
    """The JSON mapping that a GET of the path answers, for `Protocol.detect`; None where there is anything else."""
    return _mapping(await ask(Request(path, method="GET")))


async def told_by(ask: Ask, path: str, protocol: Protocol) -> Mapping[str, Any]:
    """The JSON mapping that a GET of the path answers, for `Protocol.prepare`.

    Raises:
        UnsupportedError: The server does not know the path, or refuses the key.
        ScoringError: It has no answer at the moment.
    """
    response = await ask(Request(path, method="GET"))
    if response.status in (401, 403):
        raise UnsupportedError(f"GET {path} answered {response.status} ({protocol.message(response)}): {KEY_MISSING}.")
    if response.status in (408, 425, 429) or response.status >= 500:
        raise ScoringError(f"GET {path} answered {response.status} ({protocol.message(response)}): the server is not ready.")
    found = _mapping(response)
    if found is None:
        raise UnsupportedError(
            f"GET {path} answered {response.status} and {response.body[:80]!r}: this server does not speak {protocol.name!r}, or "
            "the URL is not its root. Name the protocol that it speaks; `protocol: auto` finds out."
        )
    return found


async def only_model(ask: Ask, protocol: Protocol) -> str:
    """The one model that ``GET /v1/models`` lists.

    Raises:
        UnsupportedError: It lists none or several.
        ScoringError: There is no answer at the moment.
    """
    listed = (await told_by(ask, "/v1/models", protocol)).get("data")
    entries = listed if isinstance(listed, list) else []
    names: list[str] = [entry["id"] for entry in entries if isinstance(entry, Mapping) and isinstance(entry.get("id"), str)]
    if len(names) != 1:
        raise UnsupportedError(
            f"GET /v1/models lists {', '.join(map(repr, names)) or 'no model'}. Say which one is to be asked, "
            f"`protocol: {{name: {protocol.name}, model: NAME}}`."
        )
    return names[0]


def _mapping(response: Response) -> Mapping[str, Any] | None:
    if not 200 <= response.status < 300:
        return None
    try:
        found = response.json()
    except AnswerError:
        return None
    return found if isinstance(found, Mapping) else None
