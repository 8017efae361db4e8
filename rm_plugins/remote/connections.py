"""Requests over HTTP, and what the HTTP client's errors mean. The only module that knows the client."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy

import httpx2

from rm_plugins.errors import ScoringError
from rm_plugins.protocols.protocol import Response
from rm_plugins.remote.request_failure import RequestFailure

THREAD_NAME = "rm-plugins-remote"
"""The thread on which all connections of a process are made and used."""

CONNECT_TIMEOUT = 5.0
_KEPT_FOR = 4.0  # less than the 5 seconds after which uvicorn hangs up an idle connection


def _is_worth_telling(record: logging.LogRecord) -> bool:
    """Not the client's line for each request: a training with thousands of them would log little else."""
    return record.threadName != THREAD_NAME or record.levelno != logging.INFO


logging.getLogger(httpx2.__name__).addFilter(_is_worth_telling)
logging.getLogger("hpack").setLevel(logging.INFO)  # below that it tells the headers, and the key in them


@dataclass(frozen=True, slots=True)
class Trust:
    """What a connection trusts; connections of the same trust are shared.

    Args:
        encrypted: Whether it uses TLS at all.
        ca_file: The certificates that sign the servers'; the system's where None.
        proxies: Whether the environment's proxies are used.
    """

    encrypted: bool
    ca_file: str | None
    proxies: bool


class Connections:
    """A pool of connections, by HTTP/2 where a server offers it; made and used on one event loop.

    Redirects are not followed, and cookies not kept: a request goes where the user said, and is the same each time.

    Args:
        trust: Which certificates and proxies it uses.

    Raises:
        ScoringError: The file of certificates cannot be read, or holds none.
    """

    def __init__(self, trust: Trust) -> None:
        self._client = httpx2.AsyncClient(
            http2=True,
            verify=_certificates(trust),
            trust_env=trust.proxies,
            timeout=None,
            limits=httpx2.Limits(keepalive_expiry=_KEPT_FOR),  # how many there may be is decided by each endpoint's limit
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
        )

    async def exchange(self, url: str, method: str, body: bytes | None, headers: Mapping[str, str], timeout: float) -> Response:
        """Send a request, and read the answer to its end.

        Raises:
            RequestFailure: There is no answer, not all of it within `timeout` seconds, or one that leads elsewhere.
        """
        limits = httpx2.Timeout(None, connect=min(timeout, CONNECT_TIMEOUT))
        kind = {} if body is None else {"Content-Type": "application/json"}
        request = self._client.build_request(
            method, url, content=body, headers={"Accept": "application/json", **kind, **headers}, timeout=limits
        )
        begun = False
        try:
            async with asyncio.timeout(timeout):
                answer = await self._client.send(request, stream=True)
                begun = True
                try:
                    content = await answer.aread()
                finally:
                    await answer.aclose()
        except TimeoutError:
            raise RequestFailure("timeout", f"no answer within {timeout:g} seconds") from None
        except httpx2.TransportError as error:
            raise _failure_of(error, begun) from error
        except httpx2.RequestError as error:
            raise RequestFailure("bad-answer", f"the answer cannot be read ({_told(error)})") from error
        if 300 <= answer.status_code < 400:
            target = answer.headers.get("location", "nowhere")
            raise RequestFailure(
                "refused",
                f"it answered {answer.status_code} and sends us to {target.partition('?')[0]:.200}. Redirects are not followed, for "
                "samples and keys go only where the spec says. Write the final address into the spec's key 'url'.",
                status=answer.status_code,
            )
        return Response(answer.status_code, content, {name.lower(): value for name, value in answer.headers.items()})

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()


def _certificates(trust: Trust) -> ssl.SSLContext | bool:
    if not trust.encrypted:
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # trusts nobody; reading the system's certificates takes a while
    try:
        return True if trust.ca_file is None else ssl.create_default_context(cafile=trust.ca_file)
    except OSError as error:
        raise ScoringError(f"The certificates in ca_file={trust.ca_file!r} cannot be read: {error}.") from error


def _failure_of(error: httpx2.TransportError, begun: bool) -> RequestFailure:
    """What an error of the client means; `begun` where the server had begun to answer."""
    if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in _causes(error)):
        return RequestFailure(
            "refused",
            f"its certificate cannot be verified ({_told(error)}). If an authority of your own signs it, name that one's "
            "certificate with `ca_file`.",
        )
    if begun:
        return RequestFailure("bad-answer", f"the answer broke off ({_told(error)})")
    if isinstance(error, (httpx2.LocalProtocolError, httpx2.ProxyError, httpx2.UnsupportedProtocol)):
        return RequestFailure("retry", f"the request could not be sent ({_told(error)})")
    if isinstance(error, httpx2.TimeoutException) and not isinstance(error, httpx2.ConnectTimeout):
        return RequestFailure("timeout", f"no answer ({_told(error)})")
    return RequestFailure("connection", f"no connection ({_told(error)})")


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
