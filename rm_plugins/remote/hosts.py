"""Tells whether a URL leads to this machine, and which proxy of the environment to use for it."""

from __future__ import annotations

import ipaddress
import socket
from contextlib import suppress
from functools import lru_cache
from typing import TypeAlias
from urllib.parse import SplitResult
from urllib.request import getproxies, proxy_bypass

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

_LOOPBACK_NAMES = ("localhost", "localhost.localdomain", "localhost6", "ip6-localhost", "ip6-loopback")


@lru_cache(256)  # a server asks for every request
def is_loopback(host: str) -> bool:
    """Whether a host name or address is a loopback address of this machine.

    >>> all(map(is_loopback, ["localhost", "LOCALHOST.", "::1", "127.0.0.2", "127.1", "0x7f000001", "::ffff:127.0.0.1"]))
    True
    >>> is_loopback("0.0.0.0"), is_loopback("127.0.0.1.example.com")
    (False, False)
    """
    address = _address(host)
    if address is not None:
        return address.is_loopback
    name = host.lower().rstrip(".")
    return name in _LOOPBACK_NAMES or name.endswith(".localhost")


def proxy_of(url: SplitResult) -> str | None:
    """The URL of the environment's proxy for a server; None for a direct connection, which loopback addresses always get."""
    host = url.hostname or ""
    address = _address(host)
    if is_loopback(host) or (address is not None and address.is_unspecified):
        return None
    proxies = getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    if not proxy or _is_excepted(host, address, proxies.get("no", "")):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def _is_excepted(host: str, address: Address | None, exceptions: str) -> bool:
    if proxy_bypass(host):
        return True
    for exception in map(str.strip, exceptions.split(",")):
        with suppress(ValueError):
            if address is not None and address in ipaddress.ip_network(exception.strip("[]"), strict=False):
                return True
    return False


def _address(host: str) -> Address | None:
    """The address in a host name, in any form that the system accepts, such as ``127.1`` and ``0x7f000001``; None if it is a name."""
    bare = host.strip("[]").rstrip(".")
    with suppress(ValueError):
        address = ipaddress.ip_address(bare)
        return getattr(address, "ipv4_mapped", None) or address
    with suppress(OSError, UnicodeError, ValueError):
        return ipaddress.IPv4Address(socket.inet_aton(bare))
    return None
