"""The servers of one provider: chooses the server for the next request, and waits while none is available."""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections import Counter, deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import monotonic, time
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from rm_plugins.errors import AnswerError, RmPluginsError, ScoringError, UnsupportedError
from rm_plugins.protocols.protocol import Protocol, Request, Response, ServerFacts
from rm_plugins.redaction import forget_secrets, keep_secret, redact_logs
from rm_plugins.remote.endpoint import ConcurrencyLimit, Endpoint
from rm_plugins.remote.hosts import proxy_of
from rm_plugins.remote.loop import network
from rm_plugins.remote.notices import Notices
from rm_plugins.remote.repeated_answers import RepeatedAnswers
from rm_plugins.remote.request_failure import COUNTED, RequestFailure
from rm_plugins.remote.requests import ANSWER_BYTES, encoded
from rm_plugins.remote.retry import backoff, retry_after
from rm_plugins.remote.settings import Settings

if TYPE_CHECKING:
    from rm_plugins.remote.connections import Connections, Trust

logger = logging.getLogger(__name__)
redact_logs([__name__])

FACTS_LAST = 30.0
"""Seconds without an answer after which the facts about a server are requested again, because another server may have replaced it."""

_heard_urls: set[str] = set()
"""The URLs that answered any provider of this process."""

_LONGEST_QUESTION = 10.0
"""The timeout in seconds of requests for facts about a server."""


@dataclass(frozen=True, slots=True)
class Turn:
    """The permission to send one request to a server with these facts."""

    endpoint: Endpoint
    facts: ServerFacts


@dataclass(slots=True)
class _Waiting:
    turn: asyncio.Future[Turn]
    avoid: Endpoint | None


class Fleet:
    """The servers of one provider. Everything except the constructor runs on the network's thread.

    Args:
        urls: The URLs of the servers.
        protocol: The protocol of the servers.
        settings: The settings of the provider.
        called: The provider's name in messages.
    """

    def __init__(self, urls: Sequence[str], protocol: Protocol, settings: Settings, called: str) -> None:
        self.protocol = protocol
        self.settings = settings
        self.called = called
        self.network = network()
        self.endpoints = [Endpoint(url, ConcurrencyLimit(settings.concurrency)) for url in urls]
        self.fingerprint = ""  # of the model that scored last
        self.tally: Counter[str] = Counter()  # events that do not belong to one call
        self.random = random.Random()
        self.repeated = RepeatedAnswers()
        self._notices = Notices(logger)
        self._warned: set[object] = set()
        self._waiting: deque[_Waiting] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._asked: dict[Endpoint, asyncio.Task[None]] = {}
        self._known: set[Endpoint] = set()
        self._calls = 0
        self._key: str | None = None
        self._trusts: dict[Endpoint, Trust] = {}
        self._connections: dict[Trust, Connections] = {}

    @asynccontextmanager
    async def in_use(self) -> AsyncIterator[None]:
        """Within it, the key is available, and servers without facts are asked for them.

        Raises:
            ScoringError: The environment does not have the key.
        """
        self._key = self.settings.api_key
        keep_secret(self, *self.settings.secrets, *([self._key] if self._key else []))
        self._calls += 1
        now = monotonic()
        for endpoint in self.endpoints:
            endpoint.left_out = None
            if endpoint.in_flight == 0 and now - endpoint.heard_at > FACTS_LAST:
                endpoint.facts = None
        self._assign_turns()
        try:
            yield
        finally:
            self._calls -= 1
            if not self._calls:
                self._key = None
                tasks = list(self._asked.values())
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def close(self) -> None:
        """Release the connections, and forget the key."""
        forget_secrets(self)
        while self._connections:
            trust, _ = self._connections.popitem()
            await self.network.give_back(trust)

    # --- Who is next ------------------------------------------------------------------------------------------------------

    async def turn(self, avoid: Endpoint | None = None) -> Turn:
        """Wait until a server can take a request, in the order of the calls. Call `done` after the request.

        Args:
            avoid: The server that just failed; another one is preferred.

        Raises:
            UnsupportedError: No server can give rewards over the protocol.
            ScoringError: No server can be used, for this or other reasons.
        """
        waiting = _Waiting(asyncio.get_running_loop().create_future(), avoid)
        self._waiting.append(waiting)
        self._assign_turns()
        try:
            return await waiting.turn
        except asyncio.CancelledError:
            if waiting.turn.done() and not waiting.turn.cancelled() and waiting.turn.exception() is None:
                self.done(waiting.turn.result())
            raise

    def done(self, turn: Turn) -> None:
        """End a turn, whether its request succeeded or failed."""
        turn.endpoint.in_flight -= 1
        self._assign_turns()

    def warn_once(self, kind: object, text: str) -> None:
        """Log a warning about the scores, once for each hashable `kind`."""
        if kind not in self._warned:
            self._warned.add(kind)
            logger.warning("%s", text)

    def leave_out(self, endpoint: Endpoint, reason: RmPluginsError) -> None:
        """Stop using a server in the calls that are running."""
        endpoint.left_out = reason
        self._notices.say(("left out", endpoint.url), f"{endpoint.url} is not used any more: {reason}")
        self._assign_turns()

    def _assign_turns(self) -> None:
        """Assign turns to waiting requests while servers can take them, and ask servers without facts for them."""
        now = monotonic()
        for endpoint in self.endpoints:
            if self._calls and endpoint.facts is None and not endpoint.left_out and endpoint not in self._asked:
                self._asked[endpoint] = asyncio.ensure_future(self._ask_for_facts(endpoint))
        while self._waiting:
            first = self._waiting[0]
            chosen = self._chosen(first.avoid, now)
            if first.turn.done():  # cancelled
                pass
            elif all(endpoint.left_out for endpoint in self.endpoints):
                first.turn.set_exception(self._none_usable())
            elif chosen is not None and chosen.facts is not None:
                chosen.in_flight += 1
                first.turn.set_result(Turn(chosen, chosen.facts))
            else:
                break
            self._waiting.popleft()
        if self._timer is not None:
            self._timer.cancel()
        pause = min(endpoint.wait(now) for endpoint in self.endpoints)
        if self._waiting and math.isfinite(pause):
            self._timer = asyncio.get_running_loop().call_later(pause, self._assign_turns)

    def _chosen(self, avoid: Endpoint | None, now: float) -> Endpoint | None:
        ready = [endpoint for endpoint in self.endpoints if endpoint.wait(now) == 0]
        return min(ready, key=lambda endpoint: (endpoint is avoid, *endpoint.load), default=None)

    def _none_usable(self) -> RmPluginsError:
        reasons = [endpoint.left_out for endpoint in self.endpoints]
        listed = "; ".join(f"{endpoint.url}: {endpoint.left_out}" for endpoint in self.endpoints)
        unsupported = all(isinstance(reason, UnsupportedError) for reason in reasons)
        return (UnsupportedError if unsupported else ScoringError)(f"The remote scorer {self.called} cannot be used. {listed}")

    @property
    def troubles(self) -> str:
        """The last problem of each server, for the error of a request that never got a turn."""
        return (
            "; ".join(f"{endpoint.url}: {endpoint.trouble}" for endpoint in self.endpoints if endpoint.trouble)
            or "no server reported a problem"
        )

    # --- Facts about servers ----------------------------------------------------------------------------------------------

    async def _ask_for_facts(self, endpoint: Endpoint) -> None:
        """Ask a server for its facts until it answers or cannot be used."""
        unreachable = failed = 0
        endpoint.absent_since = math.inf
        statuses: set[int] = set()

        async def ask(request: Request) -> Response:
            response = await self.exchange(endpoint, request, encoded(request), longest=_LONGEST_QUESTION)
            statuses.add(response.status)
            if response.status in (429, 502, 503, 504):  # from a gateway, or from a server that is still loading
                raise RequestFailure("connection", f"{request.method} {request.path} answered {response.status}")
            return response

        try:
            while endpoint.facts is None and endpoint.left_out is None:
                await asyncio.sleep(min(endpoint.breaker.wait(monotonic()), max(0.0, self._absence_left())))
                sent_at = monotonic()
                try:
                    facts = await self.protocol.prepare(ask)
                    if not isinstance(facts, ServerFacts):
                        raise TypeError(
                            f"prepare() of the protocol {self.protocol.name!r} returned {facts!r:.80} instead of ServerFacts"
                        )
                    endpoint.facts = facts
                except Exception as error:  # the protocol of a plug-in may raise anything
                    failure = self._as_failure(error)
                    unreachable += failure.cause == "connection"
                    failed += failure.cause != "connection"
                    # If the server answered before, this may be the answer of a gateway while the server restarts.
                    final = isinstance(error, UnsupportedError) and endpoint not in self._known
                    hopeless = failed >= self.settings.tries and endpoint not in self._known
                    if final or failure.cause == "refused" or hopeless:
                        kind = UnsupportedError if final else ScoringError
                        hint = (
                            self.settings.key_hint
                            if statuses & {401, 403}
                            else _url_hint(endpoint.url)
                            if 404 in statuses
                            else ""
                        )
                        self.leave_out(endpoint, kind(f"{failure}. {hint}" if hint else str(failure)))
                        continue
                    endpoint.absent_since = min(endpoint.absent_since, sent_at) if failure.nothing_listens else math.inf
                    self.noted(endpoint, failure, sent_at, self.tally, self._until_when(failure))
                    if (left := self._absence_left()) <= 0:
                        self._leave_out_absent()
                    else:
                        await asyncio.sleep(min(left, backoff(unreachable + failed, self.random.random())))
                else:
                    endpoint.heard_at = monotonic()
                    again = " again" if endpoint in self._known else ""
                    if endpoint.trouble or not again:
                        notice = f"{endpoint.url} is available{again}: {endpoint.facts.description}"
                        self._notices.say((endpoint.url, notice), notice, logging.INFO)
                    self._known.add(endpoint)
                    _heard_urls.add(endpoint.url)
        finally:
            del self._asked[endpoint]
            self._assign_turns()

    @property
    def _never_heard(self) -> bool:
        return not any(endpoint.url in _heard_urls for endpoint in self.endpoints)

    def _until_when(self, failure: RequestFailure) -> str:
        """How long a server is asked again for its description, for messages."""
        absence = self.settings.absence
        if failure.nothing_listens and absence is not None and self._never_heard:
            return f"retrying for {absence:g} seconds; to wait longer for a server that is starting, set `deadline` in the spec"
        return f"retrying until the deadline of {self.settings.deadline:g} seconds (`deadline` in the spec)"

    def _absence_left(self) -> float:
        """Seconds until calls give up because nothing listens at any address; infinite if that is not so."""
        if self.settings.absence is None or not self._never_heard:
            return math.inf
        since = max((endpoint.absent_since for endpoint in self.endpoints if not endpoint.left_out), default=math.inf)
        return since + self.settings.absence - monotonic()

    def _leave_out_absent(self) -> None:
        for endpoint in self.endpoints:
            if not endpoint.left_out:
                reason = (
                    f"{endpoint.trouble}. Nothing listened at this address for {self.settings.absence:g} seconds. Is the server running, "
                    "and is the address right? To wait longer for a server that is starting, set `deadline` (in seconds) in the spec: "
                    f"{{provider: remote, url: {endpoint.url}, deadline: {self.settings.deadline:g}}}."
                )
                self.leave_out(endpoint, ScoringError(reason))

    def _as_failure(self, error: Exception) -> RequestFailure:
        if isinstance(error, RequestFailure):
            return error
        reason = str(error).rstrip(".") if isinstance(error, RmPluginsError) else f"{type(error).__name__}: {error}"
        return RequestFailure("bad-answer" if isinstance(error, AnswerError) else "retry", reason)

    # --- Requests ---------------------------------------------------------------------------------------------------------

    async def exchange(
        self,
        endpoint: Endpoint,
        request: Request,
        body: bytes | None,
        request_id: str = "",
        *,
        longest: float = math.inf,
        most: int = ANSWER_BYTES,
    ) -> Response:
        """Send a request to a server, with the user's key, and read the answer.

        Args:
            endpoint: The server.
            request: The request.
            body: The encoded body; None for no body.
            request_id: Sent as ``X-Request-ID``, unless empty.
            longest: The longest time in seconds, if shorter than the timeout of the settings.
            most: The most bytes of the answer.

        Raises:
            RequestFailure: There is no valid answer.
        """
        from rm_plugins.remote.connections import Trust  # here, because it imports the HTTP client, which takes a while

        headers = {
            **({"X-Request-ID": request_id} if request_id else {}),
            **dict(self.settings.headers),
            **request.headers,
            **({"Authorization": f"Bearer {self._key}"} if self._key else {}),
        }
        if endpoint not in self._trusts:
            url = urlsplit(endpoint.url)
            proxy = proxy_of(url)
            password = proxy and urlsplit(proxy).password
            if password:
                keep_secret(self, password, unquote(password))
            self._trusts[endpoint] = Trust(url.scheme == "https", self.settings.ca_file, proxy)
        trust = self._trusts[endpoint]
        if trust not in self._connections:
            self._connections[trust] = self.network.borrow(trust)
        timeout = min(self.settings.timeout, longest)
        address = f"{endpoint.url}{request.path}"
        return await self._connections[trust].exchange(address, request.method, body, headers, timeout, most)

    def failure_of(
        self, endpoint: Endpoint, protocol: Protocol, request: Request, response: Response, items: int
    ) -> RequestFailure:
        """The failure that an answer with an error status means, for a request with this number of items."""
        is_absent = response.status in (404, 405, 501)
        target = f" to {request.method} {request.path}" if is_absent else ""
        reason = f"it answered {response.status}{target}: {protocol.message(response)}"
        if response.status in (401, 403):
            reason = f"{reason}. {self.settings.key_hint}"
        if is_absent:
            causes = [protocol.if_absent, _url_hint(endpoint.url)]
            reason = ". ".join(part.rstrip(".") for part in (reason, *causes) if part)
        wait = retry_after(response.headers, time())
        return RequestFailure(protocol.failure(response, items), reason, status=response.status, retry_after=wait)

    def noted(self, endpoint: Endpoint, failure: RequestFailure, sent_at: float, tally: Counter[str], remedy: str) -> None:
        """Record a failed request, count it, and log it (not every time)."""
        cause, reason = failure.cause, str(failure)
        endpoint.failed(failure, sent_at, monotonic())
        if cause in COUNTED:
            tally[COUNTED[cause]] += 1
            self._notices.say((endpoint.url, cause, remedy), f"{endpoint.url}: {reason}; {remedy}.")
            logger.debug("%s: %s: %s", endpoint.url, cause, reason)


def _url_hint(url: str) -> str:
    """A hint for a URL that may not be a server's root, because it has a path, such as that of an endpoint; else empty."""
    path = urlsplit(url).path.rstrip("/")
    return (
        f"The URL ends with {path}, but whole paths such as /v1/models are appended to it: remove {path} from the URL, unless a gateway "
        "has the server there."
        if path
        else ""
    )
