"""The connection to a cluster: one that runs already, or one of this machine that is started for a job."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from rm_plugins.errors import MissingDependencyError, ProcessError
from rm_plugins.version import __version__
from rm_plugins_ray.connecting import connected_ray, reason_in_short
from rm_plugins_ray.node_check import node_check, reason_of

_ASKED = 60.0
"""Seconds that a node may take to check its versions."""


def check_installed() -> None:
    """Check that Ray is installed.

    Raises:
        MissingDependencyError: Ray is not installed; the message says how to install it.
    """
    try:
        import ray.data  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            f'--engine ray needs the package ray with its data library ({error}): pip install "rm-plugins[ray]".'
        ) from error


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
    check_installed()
    import ray

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
            f"Ray cannot be started on this machine: {reason_in_short(error)}. Check its free memory and disk, the limits of this process "
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
