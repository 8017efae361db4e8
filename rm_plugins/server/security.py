"""Who may score, by what name and from which pages, and who is who in the queue."""

from __future__ import annotations

import hmac
import ipaddress
import re
import socket
from collections.abc import Mapping, Sequence
from typing import Any

from rm_plugins.remote.hosts import is_loopback
from rm_plugins.server.dialects.dialect import Problem

_HOST = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9._-]+)(?::\d{1,5})?")
_MOST_CHARACTERS = 64
_EVERY_ADDRESS = ("0.0.0.0", "::", "")


class ClientKeys:
    """The keys of which any one opens the server; none for an open server."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._keys = [key.encode() for key in keys]

    def __bool__(self) -> bool:
        return bool(self._keys)

    def matching(self, authorization: bytes) -> int | None:
        """The number of the key in a request's ``Authorization`` header, from 1; None where it has none that opens.

        Every key is compared whole, so that the time it takes says nothing of how much was right.

        >>> ClientKeys(["secret"]).matching(b"Bearer secret"), ClientKeys(["secret"]).matching(b"Bearer guess")
        (1, None)
        """
        scheme, _, given = authorization.partition(b" ")
        given = given.strip()
        equal = [hmac.compare_digest(given, key) for key in self._keys]
        return equal.index(True) + 1 if scheme.lower() == b"bearer" and any(equal) else None


def client_of(scope: Any, key: int | None) -> str:
    """What the queue takes for one client: an address, together with the key if there are any.

    Not a connection, for one trainer opens many; so trainers of one host share their turn unless each has a key of its own.
    """
    host = (scope.get("client") or ("unknown", 0))[0][:_MOST_CHARACTERS]  # a proxy may hand on what a client has made up
    return f"{host}#key{key}" if key is not None else str(host)


class Visitors:
    """By which names requests may call the server, and the pages of which origins may use it.

    A page of somebody else's reaches a server in a network that its author does not: it has the browser ask, or has a name of its
    own point at the server's address. The browser tells both, in ``Origin`` and ``Host``.

    Args:
        hosts: Names and addresses beside those of this machine; ``*`` for everything.
        origins: Origins of pages beside the server's own.
    """

    def __init__(self, hosts: Sequence[str] = (), origins: Sequence[str] = ()) -> None:
        self._hosts = {host.lower().strip("[]") for host in hosts}
        self._origins = {origin.lower().rstrip("/") for origin in origins}

    def check(self, headers: Mapping[str, str], address: str = "") -> str:
        """Refuse a request that a browser was made to send.

        Args:
            headers: Of the request.
            address: The server's own, to which the client is connected.

        Returns:
            The origin that may read the answer; empty where the request has none beside the server's own.

        Raises:
            Problem: The server is not called that, or a page of another origin asks.
        """
        host = headers.get("host", "")
        if not self._is_ours(host, address):
            raise Problem(
                "forbidden",
                f"this server is not called {host!r:.80}; if it is, start it with --allowed-host {_name_of(host) or 'NAME'!s:.80}",
                status=421,
            )
        origin = headers.get("origin", "").lower()
        if origin and origin in self._origins:
            return origin
        is_own = origin.partition("://")[2] == host.lower() if origin else True
        site = headers.get("sec-fetch-site", "none")
        is_link = headers.get("sec-fetch-mode") == "navigate" and not origin
        if not is_own or (site not in ("same-origin", "none") and not is_link):
            raise Problem(
                "forbidden",
                f"a page of another site asks ({origin or site!r:.80}); if it may, start the server with --allowed-origin ORIGIN",
            )
        return ""

    def _is_ours(self, host: str, address: str) -> bool:
        name = _name_of(host)
        own = {*self._hosts, address.lower().removeprefix("::ffff:")}
        return bool(name) and ("*" in self._hosts or name in own or is_loopback(name))


def _name_of(host: str) -> str:
    """The name or address in a ``Host`` header; empty where it is none."""
    match = _HOST.fullmatch(host)
    return match[1].lower().strip("[]").rstrip(".") if match else ""


def own_names(host: str) -> tuple[str, ...]:
    """What a server that listens on a host may be called beside the address that a client is connected to.

    >>> own_names("rewards.example")
    ('rewards.example',)
    """
    return (host,) if host not in _EVERY_ADDRESS else (socket.gethostname().lower(),)


def is_from_here(host: str) -> bool:
    """Whether a client's address is of this very machine.

    >>> is_from_here("::ffff:127.0.0.1"), is_from_here("192.0.2.7")
    (True, False)
    """
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
