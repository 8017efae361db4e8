"""Sends requests over HTTP and translates the HTTP client's errors. The only module that uses the client."""

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
_KEPT_FOR = 4.0  # for HTTP/2; less than the 5 seconds after which many servers close an idle connection
_USER_AGENT = f"rm-plugins/{__version__}"


redact_logs(f"httpcore2.{part}" for part in ("connection", "http11", "http2", "proxy", "socks"))  # they log answers' headers
redact_logs(("hpack.hpack", "hpack.table"))  # they log all headers


@dataclass(frozen=True, slots=True)
class Trust:
    """The TLS and proxy settings of a connection; connections with the same settings are shared.

    Args:
        encrypted: Whether it uses TLS.
        ca_file: A file with the certificates of trusted authorities; None for those of the system.
        proxy: The URL of the proxy; None for a direct connection.
    """

    encrypted: bool
    ca_file: str | None
    proxy: str | None = field(default=None, repr=False)  # it may hold a password


class Connections:
    """Connections of one event loop: a new one for each HTTP/1.1 request, shared ones if the server offers HTTP/2.

    Redirects are not followed and cookies are not stored: a request goes only to the URL in the spec, and is the same each time.

    Args:
        trust: The certificates and the proxy to use.

    Raises:
        ScoringError: The file of certificates cannot be read or holds none, or the proxy is not supported.
    """

    def __init__(self, trust: Trust) -> None:
        self._transport = _Transport(trust)

    async def exchange(
        self, url: str, method: str, body: bytes | None, headers: Mapping[str, str], timeout: float, most: int
    ) -> Response:
        """Send a request, and read the whole answer.

        Raises:
            RequestFailure: There is no answer, it is not complete within `timeout` seconds, it has more than `most` bytes, it is a
                redirect, or there is more than one.
        """
        request = _request(url, method, body, headers, min(timeout, CONNECT_TIMEOUT))
        has_begun = False
        try:
            async with asyncio.timeout(timeout):
                answer = await self._transport.handle_async_request(request)
                has_begun = True
                try:
                    content = await _content(answer, most)
                    await _check_end(request, answer)
                finally:
                    await answer.aclose()
        except TimeoutError:
            await self._transport.drop(url)  # it may be dead, and over HTTP/2 the next request would use it too
            raise RequestFailure("timeout", f"no answer within {timeout:g} seconds") from None
        except RequestFailure:
            raise
        except Exception as error:  # from the client and its dependencies, whose errors it does not always translate
            await self._transport.drop(url)
            raise _failure_of(error, has_begun) from None
        if 300 <= answer.status_code < 400:
            target = answer.headers.get("location", "an unknown address")
            raise RequestFailure(
                "refused",
                f"it answered {answer.status_code}, a redirect to {target.partition('?')[0]:.200}. Redirects are not followed, because "
                "samples and keys are sent only to addresses in the spec. Set the key 'url' of the spec to the final address.",
                status=answer.status_code,
            )
        return Response(answer.status_code, content, {name.lower(): value for name, value in answer.headers.items()})

    async def close(self) -> None:
        """Close all connections."""
        await self._transport.aclose()


class _Transport(httpx2.AsyncHTTPTransport):
    """The client's own transport, with watched connections."""

    def __init__(self, trust: Trust) -> None:
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=_certificates(trust),
            proxy=None if trust.proxy is None else _proxy(trust.proxy),
            max_connections=None,  # each endpoint has its own limit
            keepalive_expiry=_KEPT_FOR,
            http2=True,
            network_backend=WatchedBackend(),
        )

    async def drop(self, url: str) -> None:
        """Close the shared connections to a server after an error on one of them."""
        origin = httpcore2.URL(url).origin
        for connection in self._pool.connections:
            if connection.can_handle_request(origin) and connection.can_multiplex():
                await connection.aclose()


def _request(url: str, method: str, body: bytes | None, headers: Mapping[str, str], connect_timeout: float) -> httpx2.Request:
    kind = {} if body is None else {"Content-Type": "application/json"}
    ends = {"Connection": "close"} if url.startswith("http:") else {}  # over TLS it may be HTTP/2, which has no such header
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
    """The decompressed body of an answer; reading and decompressing stop as soon as it is too long."""
    stream = answer.extensions.get("network_stream")
    if isinstance(stream, WatchedStream):
        stream.allow(most)
    assert isinstance(answer.stream, httpx2.AsyncByteStream)
    content = bytearray()
    async for (
        piece
    ) in answer.stream:  # not with the client's own method, which releases the connection at the end of the answer
        content += piece
        if len(content) > most:
            raise RequestFailure("bad-answer", _too_long(most))
    return _decompressed(bytes(content), answer.headers.get("content-encoding", "identity").lower(), most)


def _decompressed(content: bytes, encoding: str, most: int) -> bytes:
    """The decompressed body, for servers that compress although the request asks for no compression."""
    if encoding == "identity":
        return content
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise RequestFailure(
            "bad-answer", f"the answer is encoded with {encoding:.80}, although the request asked for no encoding"
        )
    try:
        decompressor = zlib.decompressobj(zlib.MAX_WBITS | 32)  # detects gzip or zlib by the first bytes
        decompressed = decompressor.decompress(content, most + 1)
    except zlib.error as error:
        raise RequestFailure("bad-answer", f"the answer cannot be decompressed ({error})") from None
    if len(decompressed) > most:
        raise RequestFailure("bad-answer", _too_long(most))
    if not decompressor.eof:
        raise RequestFailure("bad-answer", "the compressed answer is incomplete")
    return decompressed


def _too_long(most: int) -> str:
    return f"the answer is longer than the limit of {most:,} bytes"


async def _check_end(request: httpx2.Request, answer: httpx2.Response) -> None:
    stream = answer.extensions.get("network_stream")
    if isinstance(stream, WatchedStream):
        closes = any("close" in message.headers.get("connection", "").lower() for message in (request, answer))
        await stream.check_end(request.method, closes=closes)


def _certificates(trust: Trust) -> ssl.SSLContext:
    if not trust.encrypted:
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # trusts nobody; saves the time to read the system's certificates
    try:
        return httpx2.create_ssl_context() if trust.ca_file is None else ssl.create_default_context(cafile=trust.ca_file)
    except OSError as error:
        raise ScoringError(
            f"The certificates in ca_file={trust.ca_file!r} cannot be read: {error}. Name a file with certificates in PEM format."
        ) from error


def _proxy(url: str) -> httpcore2.Proxy:
    """The proxy with a URL.

    Raises:
        ScoringError: The kind of proxy is not supported, or a package for it is missing.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https", "socks5", "socks5h"):
        raise ScoringError(
            f"The environment sets a proxy with the scheme {parts.scheme!r}; supported are http, https and socks5."
        )
    if parts.scheme.startswith("socks") and find_spec("socksio") is None:
        raise ScoringError("The environment sets a SOCKS proxy, which needs the package socksio: pip install socksio.")
    auth = (unquote(parts.username), unquote(parts.password or "")) if parts.username else None
    address = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], "", "", ""))
    return httpcore2.Proxy(address, auth=auth)


def _failure_of(error: Exception, has_begun: bool) -> RequestFailure:
    """Translate an error of the HTTP client; `has_begun` is true if the server had begun to answer."""
    if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in _causes(error)):
        return RequestFailure(
            "refused",
            f"its certificate cannot be verified ({_described(error)}). If it is signed by your own authority, name the certificate "
            "of that authority with `ca_file`.",
        )
    if any(isinstance(cause, (WrongBytes, h11.RemoteProtocolError, h2.exceptions.ProtocolError)) for cause in _causes(error)):
        return RequestFailure("bad-answer", f"the answer is not valid HTTP ({_described(error)})")
    if not isinstance(error, httpx2.TransportError):
        return RequestFailure("bad-answer", f"the answer cannot be read ({_described(error)})")
    if has_begun:
        return RequestFailure("bad-answer", f"the answer ended early ({_described(error)})")
    if isinstance(error, (httpx2.LocalProtocolError, httpx2.ProxyError, httpx2.UnsupportedProtocol)):
        return RequestFailure("retry", f"the request could not be sent ({_described(error)})")
    if isinstance(error, httpx2.TimeoutException) and not isinstance(error, httpx2.ConnectTimeout):
        return RequestFailure("timeout", f"no answer ({_described(error)})")
    unencrypted = not any(isinstance(cause, ssl.SSLError) for cause in _causes(error))
    return RequestFailure(
        "connection",
        f"no connection ({_described(error)})",
        nothing_listens=isinstance(error, httpx2.ConnectError) and unencrypted,
    )


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
