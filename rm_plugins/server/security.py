"""Who may score, and who is who in the queue."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from typing import Any

__all__ = ["ClientKeys", "client_of"]


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
    host = (scope.get("client") or ("unknown", 0))[0]
    return f"{host}#key{key}" if key is not None else str(host)
