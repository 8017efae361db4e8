"""Access control: keys, the names of the server, the origins of pages, and the identity of clients in the queue."""

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
    """The keys that are accepted; empty for a server without keys."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._keys = [key.encode() for key in keys]

    def __bool__(self) -> bool:
        return bool(self._keys)

    def matching(self, authorization: bytes) -> int | None:
        """The number of the key in a request's ``Authorization`` header, from 1; None if there is no accepted key.

        All keys are compared in constant time, so that the duration reveals nothing.

        >>> ClientKeys(["secret"]).matching(b"Bearer secret"), ClientKeys(["secret"]).matching(b"Bearer guess")
        (1, None)
        """
        scheme, _, given = authorization.partition(b" ")
        given = given.strip()
        equal = [hmac.compare_digest(given, key) for key in self._keys]
        return equal.index(True) + 1 if scheme.lower() == b"bearer" and any(equal) else None


def client_of(scope: Any, key: int | None) -> str:
    """The identity of a client in the queue: its address, together with its key if there are keys.

    A connection does not identify a client, because a trainer opens many. Trainers on one host share their turn unless each has its own
    key.
    """
    host = (scope.get("client") or ("unknown", 0))[0][
        :_MOST_CHARACTERS
    ]  # a proxy may forward an address that a client invented
    return f"{host}#key{key}" if key is not None else str(host)


class Visitors:
    """Checks the name by which a request calls the server, and the origin of the page that sends it.

    A page of another site can reach a server in a network that its author cannot: it makes the browser send a request, or points a host
    name at the server's address (DNS rebinding). The browser reports both, in ``Origin`` and ``Host``.

    Args:
        hosts: Accepted names and addresses in addition to those of this machine; ``*`` accepts all.
        origins: Accepted origins in addition to the server's own.
    """

    def __init__(self, hosts: Sequence[str] = (), origins: Sequence[str] = ()) -> None:
        self._hosts = {host.lower().strip("[]") for host in hosts}
        self._origins = {origin.lower().rstrip("/") for origin in origins}

    def check(self, headers: Mapping[str, str], address: str = "") -> str:
        """Refuse a request that a page of another site made a browser send.

        Args:
            headers: The headers of the request.
            address: The server's address to which the client is connected.

        Returns:
            The other origin that may read the answer; empty if the request has no origin or the server's own.

        Raises:
            Problem: The request calls the server by another name, or comes from a page of another origin.
        """
        host = headers.get("host", "")
        if not self._is_ours(host, address):
            raise Problem(
                "forbidden",
                f"this server does not accept the host name {host!r:.80}; to accept it, start the server with --allowed-host "
                f"{_name_of(host) or 'NAME'!s:.80} (on Ray Serve, with the argument `allowed_hosts`)",
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
                f"the request comes from a page of another site ({origin or site!r:.80}); to allow it, start the server with "
                "--allowed-origin ORIGIN",
            )
        return ""

    def _is_ours(self, host: str, address: str) -> bool:
        name = _name_of(host)
        own = {*self._hosts, address.lower().removeprefix("::ffff:")}
        return bool(name) and ("*" in self._hosts or name in own or is_loopback(name))


def _name_of(host: str) -> str:
    """The name or address in a ``Host`` header; empty if the header is invalid."""
    match = _HOST.fullmatch(host)
    return match[1].lower().strip("[]").rstrip(".") if match else ""


def own_names(host: str) -> tuple[str, ...]:
    """The names that a server that listens on a host accepts, in addition to the address that a client is connected to.

    >>> own_names("rewards.example")
    ('rewards.example',)
    """
    return (host,) if host not in _EVERY_ADDRESS else (socket.gethostname().lower(),)


def is_from_here(host: str) -> bool:
    """Whether a client's address is a loopback address of this machine.

    >>> is_from_here("::ffff:127.0.0.1"), is_from_here("192.0.2.7")
    (True, False)
    """
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
