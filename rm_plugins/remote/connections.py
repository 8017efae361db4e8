"""Requests over HTTP, and what the HTTP client's errors mean. The only module that knows the client."""

from __future__ import annotations

import asyncio
import ssl
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from urllib.parse import unquote, urlsplit, urlunsplit

import h2.exceptions
import h11
import httpcore2
import httpx2

from rm_plugins.errors import ScoringError
from rm_plugins.protocols.protocol import Response
from rm_plugins.redaction import redact_logs
from rm_plugins.remote.request_failure import RequestFailure
from rm_plugins.remote.watched_stream import WatchedBackend, WatchedStream, WrongBytes
from rm_plugins.version import __version__

THREAD_NAME = "rm-plugins-remote"
"""The thread on which all connections of a process are made and used."""

CONNECT_TIMEOUT = 5.0
_KEPT_FOR = 4.0  # for HTTP/2; less than the 5 seconds after which many servers hang up an idle connection
_USER_AGENT = f"rm-plugins/{__version__}"


redact_logs(f"httpcore2.{part}" for part in ("connection", "http11", "http2", "proxy", "socks"))  # the headers of answers
redact_logs(("hpack.hpack", "hpack.table"))  # all headers


@dataclass(frozen=True, slots=True)
class Trust:
    """What a connection trusts; connections of the same trust are shared.

    Args:
        encrypted: Whether it uses TLS at all.
        ca_file: The certificates that sign the servers'; the system's where None.
        proxy: The URL of the proxy that it goes through; None for none.
    """

    encrypted: bool
    ca_file: str | None
    proxy: str | None = field(default=None, repr=False)  # it may hold a password


class Connections:
    """Connections, made and used on one event loop: one for each request by HTTP/1.1, shared ones where a server offers HTTP/2.

    Redirects are not followed, and cookies not kept: a request goes where the user said, and is the same each time.

    Args:
        trust: Which certificates and proxy it uses.

    Raises:
        ScoringError: The file of certificates cannot be read, or holds none; or there is no such proxy.
    """

    def __init__(self, trust: Trust) -> None:
        self._transport = _Transport(trust)

    async def exchange(
        self, url: str, method: str, body: bytes | None, headers: Mapping[str, str], timeout: float, most: int
    ) -> Response:
        """Send a request, and read the answer to its end.

        Raises:
            RequestFailure: There is no answer, not all of it within `timeout` seconds, more than `most` bytes, one that leads
                elsewhere, or more than one.
        """
        request = _request(url, method, body, headers, min(timeout, CONNECT_TIMEOUT))
        begun = False
        try:
            async with asyncio.timeout(timeout):
                answer = await self._transport.handle_async_request(request)
                begun = True
                try:
                    content = await _content(answer, most)
                    await _check_end(request, answer)
                finally:
                    await answer.aclose()
        except TimeoutError:
            await self._transport.drop(url)  # it may be dead, and by HTTP/2 the next request would go over it, too
            raise RequestFailure("timeout", f"no answer within {timeout:g} seconds") from None
        except RequestFailure:
            raise
        except Exception as error:  # the client's own, and those of what it is made of, of which it does not translate all
            await self._transport.drop(url)
            raise _failure_of(error, begun) from None
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
        await self._transport.aclose()


class _Transport(httpx2.AsyncHTTPTransport):
    """The client's own, with connections that are watched."""

    def __init__(self, trust: Trust) -> None:
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=_certificates(trust),
            proxy=None if trust.proxy is None else _proxy(trust.proxy),
            max_connections=None,  # how many there may be is decided by each endpoint's limit
            keepalive_expiry=_KEPT_FOR,
            http2=True,
            network_backend=WatchedBackend(),
        )

    async def drop(self, url: str) -> None:
        """Close the shared connections to a server, for something went wrong with one."""
        origin = httpcore2.URL(url).origin
        for connection in self._pool.connections:
            if connection.can_handle_request(origin) and connection.can_multiplex():
                await connection.aclose()


def _request(url: str, method: str, body: bytes | None, headers: Mapping[str, str], connect_timeout: float) -> httpx2.Request:
    kind = {} if body is None else {"Content-Type": "application/json"}
    ends = {"Connection": "close"} if url.startswith("http:") else {}  # by TLS it may be HTTP/2, which has no such header
    return httpx2.Request(
        method,
        url,
        content=body,
        headers={
            "Accept": "application/json",
            "Accept-Encoding": "identity",
            "User-Agent": _USER_AGENT,
            **ends,
            **kind,
            **headers,
        },
        extensions={"timeout": {"connect": connect_timeout}},
    )


async def _content(answer: httpx2.Response, most: int) -> bytes:
    """The answer's body; not read on once it is too long, and not decompressed further either."""
    stream = answer.extensions.get("network_stream")
    if isinstance(stream, WatchedStream):
        stream.allow(most)
    assert isinstance(answer.stream, httpx2.AsyncByteStream)
    content = bytearray()
    async for piece in answer.stream:  # not by the client's own reading, which lets the connection go at the answer's end
        content += piece
        if len(content) > most:
            raise RequestFailure("bad-answer", _too_long(most))
    return _decompressed(bytes(content), answer.headers.get("content-encoding", "identity").lower(), most)


def _decompressed(content: bytes, encoding: str, most: int) -> bytes:
    """What a server compressed though it was asked not to."""
    if encoding == "identity":
        return content
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise RequestFailure("bad-answer", f"the answer is encoded by {encoding:.80}, and was asked for as it is")
    try:
        decompressor = zlib.decompressobj(zlib.MAX_WBITS | 32)  # by what it begins with, as gzip or zlib
        decompressed = decompressor.decompress(content, most + 1)
    except zlib.error as error:
        raise RequestFailure("bad-answer", f"the answer cannot be decompressed ({error})") from None
    if len(decompressed) > most:
        raise RequestFailure("bad-answer", _too_long(most))
    if not decompressor.eof:
        raise RequestFailure("bad-answer", "the compressed answer broke off")
    return decompressed


def _too_long(most: int) -> str:
    return f"the answer is longer than the {most:,} bytes that are read at most"


async def _check_end(request: httpx2.Request, answer: httpx2.Response) -> None:
    stream = answer.extensions.get("network_stream")
    if isinstance(stream, WatchedStream):
        closes = any("close" in message.headers.get("connection", "").lower() for message in (request, answer))
        await stream.check_end(request.method, closes=closes)


def _certificates(trust: Trust) -> ssl.SSLContext:
    if not trust.encrypted:
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # trusts nobody; reading the system's certificates takes a while
    try:
        return httpx2.create_ssl_context() if trust.ca_file is None else ssl.create_default_context(cafile=trust.ca_file)
    except OSError as error:
        raise ScoringError(f"The certificates in ca_file={trust.ca_file!r} cannot be read: {error}.") from error


def _proxy(url: str) -> httpcore2.Proxy:
    """The proxy of a URL.

    Raises:
        ScoringError: There is no proxy of this kind, or a package for it is missing.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https", "socks5", "socks5h"):
        raise ScoringError(f"The environment names a proxy by {parts.scheme!r}; http, https and socks5 are understood.")
    if parts.scheme.startswith("socks") and find_spec("socksio") is None:
        raise ScoringError("The environment names a SOCKS proxy, for which the package socksio is needed: pip install socksio.")
    auth = (unquote(parts.username), unquote(parts.password or "")) if parts.username else None
    address = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], "", "", ""))
    return httpcore2.Proxy(address, auth=auth)


def _failure_of(error: Exception, begun: bool) -> RequestFailure:
    """What an error of the client means; `begun` where the server had begun to answer."""
    if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in _causes(error)):
        return RequestFailure(
            "refused",
            f"its certificate cannot be verified ({_told(error)}). If an authority of your own signs it, name that one's "
            "certificate with `ca_file`.",
        )
    if any(isinstance(cause, (WrongBytes, h11.RemoteProtocolError, h2.exceptions.ProtocolError)) for cause in _causes(error)):
        return RequestFailure("bad-answer", f"the answer is not HTTP as it should be ({_told(error)})")
    if not isinstance(error, httpx2.TransportError):
        return RequestFailure("bad-answer", f"the answer cannot be read ({_told(error)})")
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
