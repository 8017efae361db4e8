"""The plug-in that adds what runs on Ray. Importing it imports no ray."""

from __future__ import annotations

from collections.abc import Sequence

from rm_plugins import hookimpl
from rm_plugins.jobs.job_engine import JobEngine
from rm_plugins.provider import Provider


@hookimpl
def rm_register_providers() -> Sequence[type[Provider]]:
    """``ray-actor``."""
    from rm_plugins_ray.ray_actor import RayActor

    return [RayActor]


@hookimpl
def rm_register_engines() -> Sequence[type[JobEngine]]:
    """``ray``."""
    from rm_plugins_ray.data_engine import RayDataEngine

    return [RayDataEngine]
