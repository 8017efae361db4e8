"""Detects the protocol of a server."""

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
    """Detects which protocol a server speaks, and uses that protocol.

    Detection scores nothing. If several protocols recognize the server, the first one is used. The judge is never detected, because its
    question and the value of its answers must be configured.

    Args:
        candidates: The protocols to try, in order of preference; by default all built-in ones except the judge.
    """

    name: ClassVar[str] = "auto"
    sent_as: ClassVar[tuple[str, ...]] = ()

    def __init__(self, *, candidates: Sequence[Protocol] | None = None) -> None:
        if candidates is None:
            candidates = [Native(), VLLM(), SGLang(), TEI(), OpenInference(), OpenRLHF(), Swift()]
        self.candidates = tuple(candidates)

    async def prepare(self, ask: Ask) -> ServerFacts:
        """The facts that the detected protocol prepares.

        Raises:
            UnsupportedError: No candidate recognizes the server, or it requires a key.
            ScoringError: The server does not answer.
        """
        answers: dict[str, Response] = {}

        async def ask_once(request: Request) -> Response:
            if request.path not in answers:
                answers[request.path] = await ask(request)
            status = answers[request.path].status
            if status == 401:  # the path may belong to the right protocol, so do not try others
                raise UnsupportedError(f"GET {request.path} answered 401: {KEY_MISSING}.")
            if status in (429, 502, 503, 504):
                raise ScoringError(
                    f"GET {request.path} answered {status}: the server is not ready, so its protocol cannot be detected yet."
                )
            return answers[request.path]

        for candidate in self.candidates:
            description = await candidate.detect(ask_once)
            if description is not None:
                logger.info("detected %s; using the protocol %r", description, candidate.name)
                return await candidate.prepare(ask)
        requests = ", ".join(f"{path} ({response.status})" for path, response in answers.items())
        raise UnsupportedError(
            f"No protocol recognizes this server by its answers to GET {requests or 'nothing'}. Check the URL, or name the protocol with "
            f"`protocol: NAME`, one of {', '.join(candidate.name for candidate in self.candidates)}."
        )

    def request(self, *arguments: object, **more: object) -> NoReturn:
        """Never called, like `answer`: the methods of the detected protocol are."""
        raise UnsupportedError(
            "'auto' only detects a protocol: use the `request` and `answer` of the `ServerFacts.protocol` that `prepare` returned."
        )

    answer = request
