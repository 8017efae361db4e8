"""A Ray cluster of two nodes on this machine, started once a run. Without Ray, every test here is skipped."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
OBJECT_STORE_BYTES = 80 * 2**20
"""Ray accepts no less than 75 MiB."""
REASON = "Ray is not installed; `make test` runs these tests with PYTHONPATH=.venv/worlds/ray-<version>"
# Ray's own, and those of what it needs.
RAY_WARNINGS = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def has_ray() -> bool:
    """Whether Ray itself can be imported, not only this folder's own name."""
    return importlib.util.find_spec("ray") is not None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests of this folder without Ray, and ignore the warnings of Ray in them."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            if not has_ray():
                item.add_marker(pytest.mark.skip(reason=REASON))
            for mark in RAY_WARNINGS:
                item.add_marker(mark)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Any]:
    """A cluster of two nodes with two CPUs each, to which this process is connected; more nodes can be added and removed.

    Its processes import this checkout, because they inherit PYTHONPATH.
    """
    import ray
    from ray.cluster_utils import Cluster

    paths = (str(ROOT), str(ROOT / "integrations"), os.environ.get("PYTHONPATH"))
    variables = {
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(filter(None, paths))),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        # By default, Ray's processes give way to all others (15), and do not start in time beside the tests of other folders.
        "RAY_worker_niceness": "0",
    }
    kept = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    node = {"num_cpus": 2, "object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args=node)
    try:
        made.add_node(num_cpus=2, object_store_memory=OBJECT_STORE_BYTES)
        ray.init(address=made.address, log_to_driver=False)
        yield made
    finally:
        ray.shutdown()
        made.shutdown()
        for name, value in kept.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
