"""Builds the Ray Serve application of a reward."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from rm_plugins.errors import SpecError, did_you_mean
from rm_plugins.spec import FILE_ENDINGS
from rm_plugins.version import __version__
from rm_plugins_ray.agreement import agree, agreement_actor
from rm_plugins_ray.connection import installed_ray
from rm_plugins_ray.node_check import node_check
from rm_plugins_ray.shipped_spec import ShippedSpec

Names = Annotated[tuple[str, ...], BeforeValidator(lambda value: value.split(",") if isinstance(value, str) else value)]
"""A list, or names separated by commas, as the command line has them."""


class ServeArguments(BaseModel):
    """The arguments of `app`: how many replicas, where requests go, and the server's settings (`rm_plugins.server.Settings`)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    spec: str | dict[str, Any] = Field(description="The reward's spec.")
    replicas: int = Field(1, ge=1, description="The number of replicas; the least number if `max_replicas` is set.")
    max_replicas: int | None = Field(
        None, ge=1, description="The most replicas: Serve then adds and removes them by their queues."
    )
    target_requests: float = Field(
        16, gt=0, description="The waiting and running requests of a replica that autoscaling aims at."
    )
    max_requests: int = Field(
        256, ge=1, description="The most requests that one replica holds; the others wait in front of it."
    )
    num_cpus: float = Field(1, ge=0, description="The CPUs that Ray reserves for a replica.")
    num_gpus: float = Field(0, ge=0, description="The GPUs that Ray reserves for a replica.")
    fronts: int = Field(1, ge=1, description="The number of actors that read requests and pass them on; they hold no model.")
    affinity_characters: int = Field(
        256, ge=1, description="How many characters of a text stand for its prompt if both are joined."
    )
    affinity_slack: int = Field(
        16,
        ge=0,
        description="How many more requests than the least busy replica that of a prompt may have before another is used.",
    )
    max_surge_percent: int = Field(
        0, ge=0, le=100, description="The extra replicas that an update may start before it stops old ones, in percent."
    )
    model_name: str = ""
    api_key_env: str | None = Field(None, description="The environment variable of the replicas with the accepted keys.")
    allowed_hosts: Names = ()
    allowed_origins: Names = ()
    eos_texts: Names | None = None
    max_batch_tokens: int | None = Field(None, ge=1)
    max_items: int = Field(1_024, ge=1)
    max_characters: int = Field(1_000_000, ge=1)
    max_body_bytes: int = Field(16 * 2**20, ge=1)
    max_queue_items: int = Field(4_096, ge=1)
    threads: int = Field(8, ge=1)
    max_score_seconds: float = Field(600.0, gt=0)
    drain_seconds: float = Field(60.0, ge=0)

    def server_settings(self) -> dict[str, Any]:
        """The keyword arguments of `rm_plugins.server.Settings`, without the keys, which only replicas know."""
        from rm_plugins.server.settings import Settings

        names = {setting.name for setting in fields(Settings)} & type(self).model_fields.keys()
        return {name: getattr(self, name) for name in sorted(names)}


def app(arguments: dict[str, Any]) -> Any:
    """The Serve application of a reward, for ``serve run rm_plugins_ray:app spec=SPEC`` and for ``import_path`` in a Serve config file.

    A front actor reads requests. Each goes as a whole to one replica, which answers in any dialect of ``rm-plugins serve`` and scores in
    micro-batches. Requests of one prompt go to the same replica. A request whose replica dies is answered by another one.

    Args:
        arguments: ``spec`` and other arguments of `ServeArguments`, as ``name=value`` on the command line or as ``args`` in the file.

    Returns:
        The application, for `ray.serve.run`.

    Raises:
        MissingDependencyError: Ray Serve is not installed.
        SpecError: An argument is unknown, missing or out of range, or the spec cannot be read here.
    """
    serve = installed_ray("rm_plugins_ray:app", "ray.serve")
    from ray.serve.config import RequestRouterConfig

    chosen = _checked(arguments)
    spec = _shipped(chosen.spec)
    reward, front = _deployment_classes(__version__)
    scaling: dict[str, Any] = {"num_replicas": chosen.replicas}
    if chosen.max_replicas is not None:
        scaling = {
            "autoscaling_config": {
                "min_replicas": chosen.replicas,
                "max_replicas": chosen.max_replicas,
                "target_ongoing_requests": chosen.target_requests,
            }
        }
    replicas = serve.deployment(
        reward,
        name="Reward",
        ray_actor_options={"num_cpus": chosen.num_cpus, "num_gpus": chosen.num_gpus},
        max_ongoing_requests=chosen.max_requests,
        graceful_shutdown_timeout_s=chosen.drain_seconds,
        max_surge_percent=chosen.max_surge_percent,
        request_router_config=RequestRouterConfig(
            request_router_class="rm_plugins_ray.prompt_router:PromptRouter",
            request_router_kwargs={"slack": chosen.affinity_slack},
        ),
        deployment_actors=[agreement_actor()],
        **scaling,
    ).bind(dict(spec.spec), dict(spec.paths), chosen.server_settings(), chosen.api_key_env)
    fronts = serve.deployment(
        serve.ingress()(front),
        name="Front",
        num_replicas=chosen.fronts,
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=chosen.max_requests * (chosen.max_replicas or chosen.replicas) * 4,
        graceful_shutdown_timeout_s=chosen.drain_seconds,
        max_surge_percent=100,
    )
    return fronts.bind(replicas, chosen.max_body_bytes, chosen.affinity_characters)


def _checked(arguments: Mapping[str, Any]) -> ServeArguments:
    try:
        chosen = ServeArguments.model_validate(arguments)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        key = str(problem["loc"][0])
        if problem["type"] == "extra_forbidden":
            raise SpecError(
                f"rm_plugins_ray:app has no argument {key!r}. {did_you_mean(key, ServeArguments.model_fields)}"
            ) from None
        if problem["type"] == "missing":
            raise SpecError(f"rm_plugins_ray:app needs the argument {key!r}, such as {key}=helpful.yaml.") from None
        raise SpecError(f"rm_plugins_ray:app: {key}: {problem['msg']}, not {problem['input']!r:.80}.") from None
    if chosen.max_replicas is not None and chosen.max_replicas < chosen.replicas:
        raise SpecError(
            f"rm_plugins_ray:app: max_replicas ({chosen.max_replicas}) must be at least replicas ({chosen.replicas})."
        )
    return chosen


def _shipped(spec: str | Mapping[str, Any]) -> ShippedSpec:
    shipped = ShippedSpec.read(spec)
    if isinstance(spec, str) and Path(spec).suffix in FILE_ENDINGS and "label" not in shipped.spec:
        return ShippedSpec({**shipped.spec, "label": Path(spec).stem}, shipped.paths)  # as `rm-plugins serve` names it
    return shipped


def _deployment_classes(version: str) -> tuple[type[Any], type[Any]]:
    """The classes of the replicas and of the front.

    They are local, so that Ray sends their code instead of importing it: a node without this package then reports that, with the remedy.
    """
    check = node_check(version)

    class Reward:
        """Holds the reward and answers requests."""

        def __init__(
            self, spec: dict[str, Any], paths: dict[str, str], settings: dict[str, Any], api_key_env: str | None
        ) -> None:
            check()
            from rm_plugins_ray.serving import start_replica

            self._replica = start_replica(spec, paths, settings, api_key_env)

        async def answer(self, prompt: str, request: Any) -> Any:
            return await self._replica.answer(request)

        async def check_health(self) -> None:
            await self._replica.check_health()

    class Front:
        """Reads requests and passes them on."""

        def __init__(self, replicas: Any, max_body_bytes: int, affinity_characters: int) -> None:
            check()
            from rm_plugins_ray.front import Front

            self._front = Front(replicas, max_body_bytes=max_body_bytes, affinity_characters=affinity_characters)

        def __serve_build_asgi_app__(self) -> Any:
            return self._front

    return Reward, Front


def start_replica(
    spec: Mapping[str, Any], paths: Mapping[str, str], settings: Mapping[str, Any], api_key_env: str | None
) -> Any:
    """Load the reward of a replica, in the replica's process.

    Raises:
        SpecError: The environment variable with the keys is not set.
        ModelError: Local paths in the spec do not exist on this node, or the other replicas have loaded another reward from them.
        RmPluginsError: The reward cannot be loaded.
    """
    from rm_plugins.server.security import own_names
    from rm_plugins.server.settings import Settings
    from rm_plugins_ray.replica import Replica

    keys = tuple(key.strip() for key in os.environ.get(api_key_env or "", "").split(",") if key.strip())
    if api_key_env and not keys:
        raise SpecError(f"api_key_env names the environment variable {api_key_env}, which is empty or not set on this node.")
    hosts = (*settings["allowed_hosts"], *own_names(""))
    replica = Replica(ShippedSpec(spec, paths), Settings(**{**settings, "allowed_hosts": hosts}, api_keys=keys))
    agree(replica.fingerprint)
    return replica
