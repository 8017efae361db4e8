"""The cluster of the tests: its processes run this checkout."""

from __future__ import annotations

from typing import Any

import rm_plugins


def test_the_workers_import_this_checkout(cluster: Any) -> None:
    import ray

    def imported() -> str:
        import rm_plugins_ray

        return f"{rm_plugins.__file__} {rm_plugins_ray.__name__}"

    assert ray.get(ray.remote(imported).remote(), timeout=30) == f"{rm_plugins.__file__} rm_plugins_ray"
    assert sum(node["Alive"] for node in ray.nodes()) == 2
