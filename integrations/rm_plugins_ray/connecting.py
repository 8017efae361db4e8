"""Connects this process to a Ray cluster, with messages that say what is wrong."""

from __future__ import annotations

import os
import socket
from typing import Any
from urllib.parse import urlsplit

from rm_plugins.errors import MissingDependencyError, ProcessError, SpecError

_SECONDS = 5.0
"""Ray itself waits for minutes for an address that answers nothing."""
_SETTINGS = 4
"""The kind of the first frame of every connection of HTTP/2 (RFC 9113, section 6.5)."""


def connected_ray(address: str, *, asked_by: str) -> Any:
    """The module ``ray``, connected to a cluster; if this process is connected already, that connection stays.

    Args:
        address: ``auto`` for the cluster of this machine or job, ``HOST:PORT``, or ``ray://HOST:PORT``.
        asked_by: What needs the cluster, for messages.

    Raises:
        MissingDependencyError: Ray is not installed.
        SpecError: The address has no valid form.
        ProcessError: No cluster answers, or it has another version of Ray or Python.
    """
    try:
        import ray
    except ImportError as error:
        raise MissingDependencyError(f"{asked_by} needs Ray: pip install 'rm-plugins[ray]'.") from error
    if ray.is_initialized():
        return ray
    if address not in ("auto", "local"):
        _check_listening(address, asked_by)
    try:
        ray.init(address=address, log_to_driver=False)
    except Exception as error:  # Ray raises ConnectionError, RuntimeError or ValueError
        where = "on this machine or in the environment variable RAY_ADDRESS" if address == "auto" else f"at {address!r}"
        raise ProcessError(
            f"{asked_by} cannot connect to a Ray cluster {where}: {reason_in_short(error)}. Start one with "
            "`ray start --head`, or set `address` to the HOST:PORT that it printed."
        ) from error
    return ray


def _check_listening(address: str, asked_by: str) -> None:
    parts = urlsplit(address if "://" in address else f"//{address}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or not port:
        raise SpecError(f"{address!r} is not 'auto', HOST:PORT or ray://HOST:PORT.", key="address")
    try:
        with socket.create_connection((host, port), _SECONDS) as connection:
            answer = _first_answer(connection)
    except OSError as error:
        raise ProcessError(
            f"{asked_by} cannot reach a Ray cluster at {address!r}: {error.strerror or error}. Check that the head node runs, and that its "
            "port is open from here."
        ) from error
    if answer != _SETTINGS:
        raise ProcessError(
            f"{asked_by} cannot reach a Ray cluster at {address!r}: another program listens there. Name the HOST:PORT that "
            "`ray start --head` printed."
        )


def _first_answer(connection: socket.socket) -> int:
    """The kind of the frame with which a server of HTTP/2, which Ray is, answers at once."""
    if os.environ.get("RAY_USE_TLS", "").lower() in ("1", "true"):  # Ray itself must find out who listens
        return _SETTINGS
    connection.settimeout(_SECONDS)
    connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + bytes([_SETTINGS]) + bytes(5))
    frame = connection.recv(9, socket.MSG_WAITALL)
    return frame[3] if len(frame) == 9 else 0


def reason_in_short(error: Exception) -> str:
    """The first line of what Ray raised, without a full stop."""
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
