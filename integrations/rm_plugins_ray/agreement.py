"""All replicas of a served reward are one reward: a small actor beside them, which Ray Serve keeps, remembers which one."""

from __future__ import annotations

from typing import Any

from rm_plugins.errors import ModelError, ProcessError
from rm_plugins_ray.node_check import reason_of

_NAME = "agreement"
_SECONDS = 10.0
"""The longest wait for the actor."""


def agreement_actor() -> Any:
    """The settings of the actor, for the deployment of the replicas; another version of the deployment has an actor of its own."""
    import ray
    from ray.serve.config import DeploymentActorConfig

    class Agreement:  # local, so that Ray sends its code
        """Remembers the fingerprint of the replica that was first."""

        def __init__(self) -> None:
            self._served = ""

        def join(self, fingerprint: str) -> str:
            self._served = self._served or fingerprint
            return self._served

    return DeploymentActorConfig(name=_NAME, actor_class=ray.remote(Agreement), actor_options={"num_cpus": 0})


def agree(fingerprint: str) -> None:
    """Agree with the other replicas to serve a reward, in the process of a replica.

    Raises:
        ModelError: The other replicas serve another reward.
        ProcessError: The actor that remembers it does not answer; Ray Serve starts it again.
    """
    import ray
    from ray import serve

    try:
        served = ray.get(serve.get_deployment_actor(_NAME).join.remote(fingerprint), timeout=_SECONDS)
    except (ray.exceptions.RayError, ValueError) as error:  # it is dead, or not there yet
        raise ProcessError(f"The actor that compares the replicas does not answer: {reason_of(error)}") from error
    if served != fingerprint:
        raise ModelError(
            f"The files of the spec have changed: the fingerprint of the reward is now {fingerprint[:12]}, but the other replicas serve "
            f"{served[:12]}. Restore the files, or save the changed ones in a new folder, and deploy a spec that names it."
        )
