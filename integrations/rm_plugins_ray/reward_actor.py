"""A reward in a Ray actor, for engines that already run Ray."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rm_plugins.batching.batcher import Batcher
from rm_plugins.errors import ProcessError, SpecError
from rm_plugins.samples import Sample
from rm_plugins.scores import Scores
from rm_plugins.server.served_reward import ServedReward, characters
from rm_plugins.training.whole_groups import portable_scores
from rm_plugins.version import __version__
from rm_plugins_ray.connection import installed_ray
from rm_plugins_ray.node_check import node_check, reason_of
from rm_plugins_ray.shipped_spec import ShippedSpec

_CHARACTERS_A_TOKEN = 4
_MOST_WAITING = 2**40
"""Callers wait for their answers, so their number bounds the queue."""


class RewardActor:
    """Holds a loaded reward, and scores the calls of several processes together in micro-batches.

    `start_actor` starts one; ``ray.remote(RewardActor)`` is an actor class like any other. The provider ``ray-actor`` calls it.

    Args:
        spec: The reward's spec, or what `ShippedSpec.read` read on another node.

    Raises:
        ModelError: Local paths in the spec do not exist on this node.
        RmPluginsError: The reward cannot be loaded.
    """

    def __init__(self, spec: str | Path | Mapping[str, Any] | ShippedSpec) -> None:
        shipped = spec if isinstance(spec, ShippedSpec) else ShippedSpec.read(spec)
        shipped.check_here()
        self._reward = ServedReward.load(shipped.spec)
        facts = self._reward.facts
        self._batcher: Batcher[Sequence[Sample], Scores] = Batcher(
            self._run,
            budget=_CHARACTERS_A_TOKEN * facts.batch_tokens,
            threads=8 if facts.is_concurrent else 1,
            merges=facts.is_merged,
            max_items=_MOST_WAITING,
            max_size=_MOST_WAITING,
        )

    async def facts(self) -> dict[str, str]:
        """The ``version`` of rm-plugins in the actor, and the reward's ``label``, ``fingerprint`` and whether it ``compares`` samples."""
        facts = self._reward.facts
        compares = "" if facts.is_merged else "samples"
        return {"version": __version__, "label": facts.label, "fingerprint": self._reward.fingerprint, "compares": compares}

    async def score(self, samples: Sequence[Sample], client: str = "") -> Scores:
        """Score samples; failed rows are in `Scores.errors`.

        Args:
            samples: The samples, in any number.
            client: The caller; callers with different names take turns.

        Returns:
            The scores, in order; ``fingerprint`` in their metadata names the reward.
        """
        if not samples:
            return Scores([], metadata={"fingerprint": self._reward.fingerprint})  # type: ignore[arg-type]
        size = sum(map(characters, samples))
        done = await self._batcher.submit(samples, client=client, items=len(samples), size=size)
        scores = portable_scores(done.result)  # an error of a plug-in may be one that the caller cannot read
        return replace(scores, metadata={**done.result.metadata, "fingerprint": self._reward.fingerprint})

    def _run(self, works: Sequence[Sequence[Sample]]) -> list[Scores]:
        return self._reward.score(works, [f"call {place}" for place in range(len(works))])


def start_actor(
    spec: str | Path | Mapping[str, Any],
    *,
    name: str,
    namespace: str | None = None,
    num_cpus: float = 1,
    num_gpus: float = 0,
    max_concurrency: int = 1_000,
    **options: Any,
) -> Any:
    """Start a `RewardActor` in the cluster that this process is connected to, and wait until it has loaded the reward.

    The actor outlives this process, and Ray restarts it if it dies, as often as necessary.

    Args:
        spec: The reward's spec, read here: its files of settings are sent to the actor, and its local paths must exist there.
        name: The name by which others find the actor.
        namespace: The Ray namespace of the name; the current one if unset.
        num_cpus: The CPUs that Ray reserves for it.
        num_gpus: The GPUs that Ray reserves for it.
        max_concurrency: The most calls that it holds at a time.
        options: Further options of a Ray actor, such as ``resources`` or ``runtime_env``.

    Returns:
        The actor's handle.

    Raises:
        MissingDependencyError: Ray is not installed.
        SpecError: The spec cannot be read here, or an option is wrong.
        ProcessError: The name is taken, the actor cannot load the reward, or its node has no rm-plugins, or another version.
    """
    ray = installed_ray("start_actor")
    shipped = ShippedSpec.read(spec)
    if not isinstance(name, str) or not name:
        raise SpecError(f"must be a name by which others find the actor, not {name!r:.80}.", key="name")
    if not isinstance(max_concurrency, int) or max_concurrency < 1:  # Ray waits without end for an actor that takes no call
        raise SpecError(f"must be a positive number of calls, not {max_concurrency!r:.80}.", key="max_concurrency")
    chosen = {
        "name": name,
        "namespace": namespace,
        "num_cpus": num_cpus,
        "num_gpus": num_gpus,
        "max_concurrency": max_concurrency,
        "lifetime": "detached",
        "max_restarts": -1,
        **options,
    }
    try:
        actor = ray.remote(_actor_class(__version__)).options(**chosen).remote(dict(shipped.spec), dict(shipped.paths))
    except ray.exceptions.ActorAlreadyExistsError as error:
        raise ProcessError(
            f"An actor named {name!r} runs already. Use it, choose another name, or end it with ray.kill(ray.get_actor({name!r}))."
        ) from error
    except (TypeError, ValueError) as error:  # what Ray says of its options
        raise SpecError(f"The actor {name!r} cannot have these options: {error}.") from error
    try:
        ray.get(actor.facts.remote())
    except ray.exceptions.RayError as error:
        ray.kill(actor)
        raise ProcessError(f"The actor {name!r} could not be started. {reason_of(error)}") from error
    return actor


def _actor_class(version: str) -> type[Any]:
    """The class of the actor; it is local, so that Ray sends its code also to a node without this package, which reports that."""
    check = node_check(version)

    class Reward:
        """Holds a loaded reward."""

        def __init__(self, spec: dict[str, Any], paths: dict[str, str]) -> None:
            check()
            from rm_plugins_ray.reward_actor import RewardActor
            from rm_plugins_ray.shipped_spec import ShippedSpec

            self._actor = RewardActor(ShippedSpec(spec, paths))

        async def facts(self) -> Any:
            return await self._actor.facts()

        async def score(self, samples: Any, client: str = "") -> Any:
            return await self._actor.score(samples, client)

    return Reward
