"""Connects this process to a Ray cluster, with messages that say what is wrong."""

from __future__ import annotations

import socket
from typing import Any
from urllib.parse import urlsplit

from rm_plugins.errors import MissingDependencyError, ProcessError, SpecError

_SECONDS = 5.0
"""Ray itself waits for minutes for an address that answers nothing."""


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
        reason = str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
        raise ProcessError(
            f"{asked_by} cannot connect to a Ray cluster {where}: {reason}. Start one with `ray start --head`, or set `address` to the "
            "HOST:PORT that it printed."
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
        socket.create_connection((host, port), _SECONDS).close()
    except OSError as error:
        raise ProcessError(
            f"{asked_by} cannot reach a Ray cluster at {address!r}: {error.strerror or error}. Check that the head node runs, and that its "
            "port is open from here."
        ) from error
