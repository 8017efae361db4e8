"""The connection to a Ray cluster: one that runs already, or one of this machine that is started for a job."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any
from urllib.parse import urlsplit

from rm_plugins.errors import MissingDependencyError, ProcessError, SpecError
from rm_plugins.version import __version__
from rm_plugins_ray.node_check import node_check, reason_of

_SECONDS = 5.0
"""The longest wait for an address; Ray itself waits for minutes for one that answers nothing."""
_ASKED = 60.0
"""Seconds that a node may take to check its versions."""
_SETTINGS = 4
"""The kind of the first frame of every connection of HTTP/2 (RFC 9113, section 6.5)."""


def installed_ray(asked_by: str, library: str = "ray") -> Any:
    """The module ``ray``, or one of its libraries, such as ``ray.data``.

    Args:
        asked_by: What needs it, for messages.
        library: The module.

    Raises:
        MissingDependencyError: It is not installed; the message says how to install it.
    """
    try:
        return import_module(library)
    except ImportError as error:
        raise MissingDependencyError(
            f"{asked_by} needs the package {library} ({error}): pip install 'rm-plugins[ray]'."
        ) from error


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
    ray = installed_ray(asked_by)
    if ray.is_initialized():
        return ray
    if address not in ("auto", "local"):
        _check_listening(address, asked_by)
    try:
        ray.init(address=address, log_to_driver=False)
    except Exception as error:  # Ray raises ConnectionError, RuntimeError or ValueError
        where = "on this machine or in the environment variable RAY_ADDRESS" if address == "auto" else f"at {address!r}"
        raise ProcessError(
            f"{asked_by} cannot connect to a Ray cluster {where}: {_first_line(error)}. Start one with "
            "`ray start --head`, or set `address` to the HOST:PORT that it printed."
        ) from error
    return ray


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Within it, this process is the driver of a cluster whose nodes have this version of rm-plugins.

    Args:
        address: ``HOST:PORT`` of a running cluster, ``auto`` for the one that runs on this machine, or ``local`` for a new one of this
            machine only, which is stopped at the end. By default what ``RAY_ADDRESS`` says, else ``local``. A process that is connected
            already stays connected.

    Raises:
        ProcessError: Nothing answers, Ray cannot be started here, the cluster runs another version of Ray, or a node lacks this version of
            rm-plugins.
        SpecError: The address has another form.
    """
    ray = installed_ray("--engine ray")
    if ray.is_initialized():
        check_nodes()
        yield
        return
    target = address or os.environ.get("RAY_ADDRESS") or "local"
    _connect(target)
    try:
        check_nodes()
        yield
    finally:
        ray.shutdown()


def _connect(address: str) -> None:
    if address != "local":
        connected_ray(address, asked_by="--engine ray")
        return
    import ray

    try:
        ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    except Exception as error:  # whatever its programs fail of
        raise ProcessError(
            f"Ray cannot be started on this machine: {_first_line(error)}. Check its free memory and disk, the limits of this process "
            "(`ulimit -a`), and Ray's logs in /tmp/ray/session_latest/logs."
        ) from error


def check_nodes() -> None:
    """Check that every node can run what this process sends; nodes that join later are checked when an actor starts there.

    Raises:
        ProcessError: A node has another version of rm-plugins or of Python, lacks rm-plugins, or does not answer.
    """
    import ray
    from ray.exceptions import GetTimeoutError, RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    check = ray.remote(num_cpus=0, max_retries=3)(node_check(__version__))
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    checks = [check.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=True)).remote() for node in nodes]
    try:
        ray.get(checks, timeout=_ASKED)
    except GetTimeoutError as error:
        raise ProcessError(
            f"Not every node of the cluster started a process within {_ASKED:.0f} s. See `ray status` for nodes that hang."
        ) from error
    except RayError as error:
        raise ProcessError(f"A node of the cluster cannot run this job. {reason_of(error)}") from error


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


def _first_line(error: Exception) -> str:
    """The first line of what Ray raised, without a full stop."""
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
