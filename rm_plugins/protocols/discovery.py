"""Questions that protocols ask a server before the first scoring request."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rm_plugins.errors import AnswerError, ScoringError, UnsupportedError
from rm_plugins.protocols.protocol import Ask, Protocol, Request, Response

KEY_MISSING = "the server requires a key, and got none or a wrong one"


async def get_mapping(ask: Ask, path: str) -> Mapping[str, Any] | None:
    """The JSON mapping that GET of a path answers, for `Protocol.detect`; None for any other answer."""
    return _mapping(await ask(Request(path, method="GET")))


async def required_mapping(ask: Ask, path: str, protocol: Protocol) -> Mapping[str, Any]:
    """The JSON mapping that GET of a path answers, for `Protocol.prepare`.

    Raises:
        UnsupportedError: The server does not know the path, or refuses the key.
        ScoringError: The server is not ready.
    """
    response = await ask(Request(path, method="GET"))
    if response.status in (401, 403):
        raise UnsupportedError(f"GET {path} answered {response.status} ({protocol.message(response)}): {KEY_MISSING}.")
    if response.status in (408, 425, 429) or response.status >= 500:
        raise ScoringError(f"GET {path} answered {response.status} ({protocol.message(response)}): the server is not ready.")
    answer = _mapping(response)
    if answer is None:
        raise UnsupportedError(
            f"GET {path} answered {response.status} and {response.body[:80]!r}: this server does not speak {protocol.name!r}, or "
            "the URL is not its root. Name the right protocol, or let `protocol: auto` detect it."
        )
    return answer


PROBE_TEXT = "What is two and two? The answer: 4 (naïve)."
"""A text whose tokens servers are asked for. Different vocabularies hardly ever agree on all of its tokens."""


@dataclass(frozen=True, slots=True)
class ServerTokens:
    """Facts about a server's tokenizer; None if unknown.

    Args:
        adds: Whether it adds any special token.
        closes: Whether it ends every text with a special token.
        of_probe: The token ids of `PROBE_TEXT`, without special tokens.
    """

    adds: bool | None = None
    closes: bool | None = None
    of_probe: tuple[int, ...] | None = None


async def server_tokens(ask: Ask, body: Callable[[str], Mapping[str, Any]], ids: Callable[[Any], object]) -> ServerTokens:
    """Ask ``POST /tokenize`` about the server's tokenizer.

    Args:
        ask: Sends a request.
        body: Makes the request body for a text, without ``add_special_tokens``.
        ids: Extracts the token ids from an answer.
    """
    answers: list[list[Any]] = []
    for adds in (True, False):
        response = await ask(Request("/tokenize", {**body(PROBE_TEXT), "add_special_tokens": adds}))
        if not 200 <= response.status < 300:
            return ServerTokens()
        try:
            row = ids(response.json())
        except (AnswerError, LookupError, TypeError):
            return ServerTokens()
        if not isinstance(row, list) or not row:
            return ServerTokens()
        answers.append(row)
    whole, bare = answers
    of_probe = tuple(bare) if all(type(token) is int for token in bare) else None
    return ServerTokens(adds=whole != bare, closes=whole[-len(bare) :] != bare, of_probe=of_probe)


async def listed_models(ask: Ask) -> list[Mapping[str, Any]]:
    """The models that ``GET /v1/models`` lists; empty if the server does not answer it."""
    return _entries(await get_mapping(ask, "/v1/models") or {})


async def only_model(ask: Ask, protocol: Protocol) -> str:
    """The name of the only model that ``GET /v1/models`` lists.

    Raises:
        UnsupportedError: It lists none or several.
        ScoringError: The server is not ready.
    """
    entries = _entries(await required_mapping(ask, "/v1/models", protocol))
    names: list[str] = [entry["id"] for entry in entries if isinstance(entry.get("id"), str)]
    if len(names) != 1:
        raise UnsupportedError(
            f"GET /v1/models lists {', '.join(map(repr, names)) or 'no model'}. Name the model to use, "
            f"`protocol: {{name: {protocol.name}, model: NAME}}`."
        )
    return names[0]


def _entries(models: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    listed = models.get("data")
    return [entry for entry in listed if isinstance(entry, Mapping)] if isinstance(listed, list) else []


def _mapping(response: Response) -> Mapping[str, Any] | None:
    if not 200 <= response.status < 300:
        return None
    try:
        answer = response.json()
    except AnswerError:
        return None
    return answer if isinstance(answer, Mapping) else None
