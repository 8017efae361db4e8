"""Finds out which protocol a server speaks."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import ClassVar, NoReturn

from rm_plugins.errors import ScoringError, UnsupportedError
from rm_plugins.protocols.discovery import KEY_MISSING
from rm_plugins.protocols.native import Native
from rm_plugins.protocols.oip import OpenInference
from rm_plugins.protocols.openrlhf import OpenRLHF
from rm_plugins.protocols.protocol import Ask, Protocol, Request, Response, ServerFacts
from rm_plugins.protocols.sglang import SGLang
from rm_plugins.protocols.swift import Swift
from rm_plugins.protocols.tei import TEI
from rm_plugins.protocols.vllm import VLLM
from rm_plugins.redaction import redact_logs

logger = logging.getLogger(__name__)
redact_logs([__name__])


class Auto(Protocol):
    """Asks a server for what it is, and has the protocol that knows it speak.

    Nothing is scored for that. A server that several protocols know is spoken to by the first of them. A judge is never guessed:
    what it is asked, and what its answer is worth, must be said.

    Args:
        candidates: The protocols that may be chosen, in the order of preference; all built-in ones but the judge by default.
    """

    name: ClassVar[str] = "auto"
    sent_as: ClassVar[tuple[str, ...]] = ()

    def __init__(self, *, candidates: Sequence[Protocol] | None = None) -> None:
        if candidates is None:
            candidates = [Native(), VLLM(), SGLang(), TEI(), OpenInference(), OpenRLHF(), Swift()]
        self.candidates = tuple(candidates)

    async def prepare(self, ask: Ask) -> ServerFacts:
        """What the chosen protocol finds out.

        Raises:
            UnsupportedError: None of the candidates knows the server, or it asks for a key.
            ScoringError: There is no answer.
        """
        answers: dict[str, Response] = {}

        async def ask_once(request: Request) -> Response:
            if request.path not in answers:
                answers[request.path] = await ask(request)
            status = answers[request.path].status
            if status == 401:  # it may be the very protocol that was asked for
                raise UnsupportedError(f"GET {request.path} answered 401: {KEY_MISSING}.")
            if status in (429, 502, 503, 504):
                raise ScoringError(
                    f"GET {request.path} answered {status}: what the server is cannot be told before it is ready."
                )
            return answers[request.path]

        for candidate in self.candidates:
            description = await candidate.detect(ask_once)
            if description is not None:
                logger.info("found %s, which is spoken to by the protocol %r", description, candidate.name)
                return await candidate.prepare(ask)
        asked = ", ".join(f"{path} ({response.status})" for path, response in answers.items())
        raise UnsupportedError(
            f"No protocol knows this server; it was asked for {asked or 'nothing'}. Check the URL, or name the protocol, "
            f"`protocol: NAME`: {', '.join(candidate.name for candidate in self.candidates)}."
        )

    def request(self, *arguments: object, **more: object) -> NoReturn:
        """Never used, as `answer`: the chosen protocol's are."""
        raise UnsupportedError(
            "'auto' only chooses a protocol: requests and answers are those of the `ServerFacts.protocol` that it prepared."
        )

    answer = request
