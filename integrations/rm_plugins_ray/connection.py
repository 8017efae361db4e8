"""The connection to a cluster: one that runs already, or one of this machine that is started for a job."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from rm_plugins.errors import MissingDependencyError, ProcessError
from rm_plugins_ray.carried_reward import check_versions
from rm_plugins_ray.connecting import connected_ray

_ASKED = 60.0
"""Seconds that a node may take to answer with its versions."""


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
        ProcessError: Nothing answers, the cluster runs another version of Ray, or a node lacks this version of rm-plugins.
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
    if address == "local":
        import ray

        ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    else:
        connected_ray(address, asked_by="--engine ray")


def check_nodes() -> None:
    """Ask every node for its versions; nodes that join later are asked when an actor starts there.

    Raises:
        ProcessError: As `check_versions`; or a node does not answer.
    """
    import ray
    from ray.exceptions import GetTimeoutError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    def versions() -> tuple[str, str]:
        # It is sent by value, as it is not at the top of a module: it also runs where rm-plugins is missing.
        import platform

        python = ".".join(platform.python_version_tuple()[:2])
        try:
            import rm_plugins_ray  # noqa: F401
            from rm_plugins.version import __version__
        except ImportError as error:
            return str(error), python
        return __version__, python

    ask = ray.remote(num_cpus=0, max_retries=3)(versions)
    nodes = [(node["NodeID"], str(node["NodeManagerAddress"])) for node in ray.nodes() if node["Alive"]]
    asked = [ask.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=True)).remote() for node, _ in nodes]
    try:
        answers = ray.get(asked, timeout=_ASKED)
    except GetTimeoutError as error:
        raise ProcessError(
            f"Not every node of the cluster started a process within {_ASKED:.0f} s. See `ray status` for nodes that hang."
        ) from error
    check_versions((name, version, python) for (_, name), (version, python) in zip(nodes, answers, strict=True))
