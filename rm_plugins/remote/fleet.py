"""The servers that one provider may ask: which of them gets the next request, and what to do while none can take one."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import re
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
"""Seconds without an answer after which a server is asked again what it is: another one may be there by now."""

_LONGEST_QUESTION = 10.0
"""Seconds that a server may take to say what it is."""


@dataclass(frozen=True, slots=True)
class Turn:
    """The permission to send one request to a server, which is known to be what `facts` say."""

    endpoint: Endpoint
    facts: ServerFacts


@dataclass(slots=True)
class _Waiting:
    turn: asyncio.Future[Turn]
    avoid: Endpoint | None


class Fleet:
    """The servers of one provider, which messages call `called`. But for making it, all happens on the network's thread."""

    def __init__(self, urls: Sequence[str], protocol: Protocol, settings: Settings, called: str) -> None:
        self.protocol = protocol
        self.settings = settings
        self.called = called
        self.network = network()
        self.endpoints = [Endpoint(url, ConcurrencyLimit(settings.concurrency)) for url in urls]
        self.fingerprint = ""  # of the model that scored last
        self.tally: Counter[str] = Counter()  # of what no call did
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
        """While the block runs, servers that are not there are looked after, and the key is at hand.

        Raises:
            ScoringError: The environment does not hold the key.
        """
        self._key = self.settings.api_key
        keep_secret(self, *self.settings.secrets, *([self._key] if self._key else []))
        self._calls += 1
        now = monotonic()
        for endpoint in self.endpoints:
            endpoint.left_out = None
            if endpoint.in_flight == 0 and now - endpoint.heard_at > FACTS_LAST:
                endpoint.facts = None
        self._go_on()
        try:
            yield
        finally:
            self._calls -= 1
            if not self._calls:
                self._key = None
                asked = list(self._asked.values())
                for task in asked:
                    task.cancel()
                await asyncio.gather(*asked, return_exceptions=True)

    async def close(self) -> None:
        """Give back the connections, and forget the key."""
        forget_secrets(self)
        while self._connections:
            trust, _ = self._connections.popitem()
            await self.network.give_back(trust)

    # --- Who is next ------------------------------------------------------------------------------------------------------

    async def turn(self, avoid: Endpoint | None = None) -> Turn:
        """Wait until a server can take a request; those who wait come in their order. It ends with `done`.

        Args:
            avoid: The server that just failed; another one is preferred.

        Raises:
            UnsupportedError: No server can give rewards by the protocol.
            ScoringError: No server can be used, for that reason or others.
        """
        waiting = _Waiting(asyncio.get_running_loop().create_future(), avoid)
        self._waiting.append(waiting)
        self._go_on()
        try:
            return await waiting.turn
        except asyncio.CancelledError:
            if waiting.turn.done() and not waiting.turn.cancelled() and waiting.turn.exception() is None:
                self.done(waiting.turn.result())
            raise

    def done(self, turn: Turn) -> None:
        """The request has ended, well or not, and another may be sent."""
        turn.endpoint.in_flight -= 1
        self._go_on()

    def warn_once(self, kind: object, text: str) -> None:
        """Say what everybody should know who uses these scores; once for each hashable kind."""
        if kind not in self._warned:
            self._warned.add(kind)
            logger.warning("%s", text)

    def leave_out(self, endpoint: Endpoint, reason: RmPluginsError) -> None:
        """Send a server nothing more in the calls that run now."""
        endpoint.left_out = reason
        self._notices.say(("left out", endpoint.url), f"{endpoint.url} is left out: {reason}")
        self._go_on()

    def _go_on(self) -> None:
        """Give turns to those who wait, as far as servers can take requests, and ask servers what they are."""
        now = monotonic()
        for endpoint in self.endpoints:
            if self._calls and endpoint.facts is None and not endpoint.left_out and endpoint not in self._asked:
                self._asked[endpoint] = asyncio.ensure_future(self._ask_what_it_is(endpoint))
        while self._waiting:
            first = self._waiting[0]
            chosen = self._chosen(first.avoid, now)
            if first.turn.done():  # cancelled
                pass
            elif all(endpoint.left_out for endpoint in self.endpoints):
                first.turn.set_exception(self._hopeless())
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
            self._timer = asyncio.get_running_loop().call_later(pause, self._go_on)

    def _chosen(self, avoid: Endpoint | None, now: float) -> Endpoint | None:
        ready = [endpoint for endpoint in self.endpoints if endpoint.wait(now) == 0]
        return min(ready, key=lambda endpoint: (endpoint is avoid, *endpoint.load), default=None)

    def _hopeless(self) -> RmPluginsError:
        reasons = [endpoint.left_out for endpoint in self.endpoints]
        told = "; ".join(f"{endpoint.url}: {endpoint.left_out}" for endpoint in self.endpoints)
        unsupported = all(isinstance(reason, UnsupportedError) for reason in reasons)
        return (UnsupportedError if unsupported else ScoringError)(f"The remote scorer {self.called} cannot be used. {told}")

    @property
    def troubles(self) -> str:
        """What was last wrong with each server, for somebody who waited in vain."""
        return (
            "; ".join(f"{endpoint.url}: {endpoint.trouble}" for endpoint in self.endpoints if endpoint.trouble)
            or "nothing was wrong"
        )

    # --- What a server is -------------------------------------------------------------------------------------------------

    async def _ask_what_it_is(self, endpoint: Endpoint) -> None:
        """Ask until the server tells, or cannot be used."""
        unreachable = failed = 0
        statuses: set[int] = set()

        async def ask(request: Request) -> Response:
            response = await self.exchange(endpoint, request, encoded(request), longest=_LONGEST_QUESTION)
            statuses.add(response.status)
            if response.status in (429, 502, 503, 504):  # of a gateway, or of a server that is still loading
                raise RequestFailure("connection", f"{request.method} {request.path} answered {response.status}")
            return response

        try:
            while endpoint.facts is None and endpoint.left_out is None:
                await asyncio.sleep(endpoint.breaker.wait(monotonic()))
                sent_at = monotonic()
                try:
                    facts = await self.protocol.prepare(ask)
                    if not isinstance(facts, ServerFacts):
                        raise TypeError(f"prepare() of the protocol {self.protocol.name!r} gave {facts!r:.80}, no ServerFacts")
                    endpoint.facts = facts
                except Exception as error:  # a protocol may be anybody's and raise anything
                    failure = self._as_failure(error)
                    unreachable += failure.cause == "connection"
                    failed += failure.cause != "connection"
                    # What a server that was known says now may be a gateway's, until the server is back.
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
                    else:
                        self.noted(endpoint, failure, sent_at, self.tally, "it is asked again what it is")
                        await asyncio.sleep(backoff(unreachable + failed, self.random.random()))
                else:
                    endpoint.heard_at = monotonic()
                    again = " again" if endpoint in self._known else ""
                    if endpoint.trouble or not again:
                        told = f"{endpoint.url} is there{again}: {endpoint.facts.description}"
                        self._notices.say((endpoint.url, told), told, logging.INFO)
                    self._known.add(endpoint)
        finally:
            del self._asked[endpoint]
            self._go_on()

    def _as_failure(self, error: Exception) -> RequestFailure:
        if isinstance(error, RequestFailure):
            return error
        told = str(error).rstrip(".") if isinstance(error, RmPluginsError) else f"{type(error).__name__}: {error}"
        return RequestFailure("bad-answer" if isinstance(error, AnswerError) else "retry", told)

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
        """Send a request to a server, with the user's key, and read at most so many bytes in so many seconds.

        Raises:
            RequestFailure: There is no answer.
        """
        from rm_plugins.remote.connections import Trust  # and the HTTP client with it, which takes a while to import

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
        """What an answer with an error status means, for a request of so many items."""
        is_absent = response.status in (404, 405, 501)
        asked = f" to {request.method} {request.path}" if is_absent else ""
        reason = f"it answered {response.status}{asked}: {protocol.message(response)}"
        if response.status in (401, 403):
            reason = f"{reason}. {self.settings.key_hint}"
        if is_absent:
            causes = [protocol.if_absent, _url_hint(endpoint.url)]
            reason = ". ".join(told.rstrip(".") for told in (reason, *causes) if told)
        wait = retry_after(response.headers, time())
        return RequestFailure(protocol.failure(response, items), reason, status=response.status, retry_after=wait)

    def noted(self, endpoint: Endpoint, failure: RequestFailure, sent_at: float, tally: Counter[str], remedy: str) -> None:
        """Take note of a request without scores, count it, and tell of it now and then."""
        cause, reason = failure.cause, str(failure)
        endpoint.failed(failure, sent_at, monotonic())
        if cause in COUNTED:
            tally[COUNTED[cause]] += 1
            self._notices.say((endpoint.url, cause, remedy), f"{endpoint.url}: {reason}; {remedy}.")
            logger.debug("%s: %s: %s", endpoint.url, cause, reason)


def _url_hint(url: str) -> str:
    """What to say of a URL that is likely not a server's root, where a path of it leads nowhere."""
    version = re.search(r"/v\d+$", url)
    return (
        f"The URL ends with {version[0]}, and whole paths such as /v1/models are appended to it: leave that out."
        if version
        else ""
    )
