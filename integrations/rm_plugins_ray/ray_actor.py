"""A reward in a Ray actor as a provider."""

from __future__ import annotations

import math
import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar, TypeVar

from rm_plugins.errors import ScoringError, SpecError, UnsupportedError
from rm_plugins.provider import Provider
from rm_plugins.samples import Sample
from rm_plugins.scores import Scores
from rm_plugins.version import __version__
from rm_plugins_ray.connection import connected_ray
from rm_plugins_ray.node_check import reason_of

Value = TypeVar("Value")

_PAUSE_SECONDS = 0.5
"""Between two looks for an actor that is not there or is being restarted."""


class RayActor(Provider):
    """A reward in a Ray actor, such as `rm_plugins_ray.start_actor` starts, for engines that already run Ray.

    Failed rows are named by the actor, and only they fail. If the actor dies during a call, the call is repeated with the restarted actor
    or with a new one of the same name, for `wait` seconds. `counts` counts ``calls`` and ``retries``.

    Args:
        actor: The actor's name; in Python, also a handle.
        namespace: The Ray namespace of the name; the current one if unset.
        address: The cluster, if this process is not connected to one: ``auto``, ``HOST:PORT`` or ``ray://HOST:PORT``.
        timeout: Seconds for one call of the actor.
        wait: Seconds for which a missing or dead actor is waited for.
        fingerprint: The fingerprint of the reward that must score, as the actor reports it.

    Raises:
        SpecError: `actor` is not a name or a handle, or a number of seconds is not positive.
    """

    name: ClassVar[str] = "ray-actor"
    metrics: ClassVar[tuple[str, ...]] = ("seconds",)
    keys_without_effect: ClassVar[frozenset[str]] = frozenset(("address", "timeout", "wait"))
    concurrent = True

    def __init__(
        self,
        *,
        actor: Any,
        namespace: str | None = None,
        address: str = "auto",
        timeout: float = 600.0,
        wait: float = 60.0,
        fingerprint: str | None = None,
    ) -> None:
        if not (isinstance(actor, str) and actor) and not _is_handle(actor):
            raise SpecError(f"must be the name of an actor, or a handle of a RewardActor, not {actor!r:.80}.", key="actor")
        for key, seconds in {"timeout": timeout, "wait": wait}.items():
            if not isinstance(seconds, int | float) or not 0 < seconds < math.inf:
                raise SpecError(f"must be a positive number of seconds, not {seconds!r:.80}.", key=key)
        self.actor = actor
        self.namespace = namespace
        self.address = address
        self.timeout = timeout
        self.wait = wait
        self.fingerprint = fingerprint
        self.label = actor if isinstance(actor, str) else self.name
        self._known: Any = None  # the handle whose version and fingerprint are known to be right

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_known": None}

    def score_batch(self, samples: Sequence[Sample]) -> Scores:
        """Let the actor score the samples; see `Provider.score_batch`."""
        begun = time.monotonic()
        ray = connected_ray(self.address, asked_by=f"The provider {self.called}")
        client = f"{socket.gethostname()}:{os.getpid()}"

        def call() -> Scores:
            actor = self._ready_actor(ray)
            self._counted("calls")
            scores: Scores = ray.get(actor.score.remote(list(samples), client), timeout=self.timeout)
            return scores

        scores = self._repeated(ray, call)
        self._check_fingerprint(str(scores.metadata.get("fingerprint", "")))
        return replace(scores, metadata={**scores.metadata, "seconds": time.monotonic() - begun})

    def _repeated(self, ray: Any, call: Callable[[], Value]) -> Value:
        """The result of a call, repeated while the actor is missing or dies."""
        ends = time.monotonic() + self.wait
        while True:
            try:
                return call()
            except ray.exceptions.GetTimeoutError as error:
                raise ScoringError(
                    f"The actor of the provider {self.called} did not answer within {self.timeout:g} s. If its batches take longer, "
                    "increase `timeout`."
                ) from error
            except ray.exceptions.RayTaskError as error:
                raise ScoringError(f"The actor of the provider {self.called} failed: {reason_of(error)}") from error
            except (ray.exceptions.RayError, ValueError) as error:  # it died, its node died, or no actor has the name
                self._known = None
                if time.monotonic() + _PAUSE_SECONDS > ends:
                    raise ScoringError(self._absence(error)) from error
                self._counted("retries")
                time.sleep(_PAUSE_SECONDS)

    def _absence(self, error: Exception) -> str:
        if isinstance(error, ValueError):
            space = f" in the namespace {self.namespace!r}" if self.namespace else " in the current namespace"
            return (
                f"No Ray actor is named {self.actor!r}{space} (looked for {self.wait:g} s). Start one with "
                "rm_plugins_ray.start_actor, or set `namespace` to the one that it was started in."
            )
        return (
            f"The actor of the provider {self.called} is dead, and was not restarted within {self.wait:g} s: {reason_of(error)}"
        )

    def _ready_actor(self, ray: Any) -> Any:
        """The handle, whose version and fingerprint were checked."""
        if self._known is not None:
            return self._known
        actor = ray.get_actor(self.actor, namespace=self.namespace) if isinstance(self.actor, str) else self.actor
        if not _is_handle(actor):
            raise ScoringError(f"The Ray actor {self.actor!r} is not a RewardActor: it has no methods `facts` and `score`.")
        facts: dict[str, str] = ray.get(actor.facts.remote(), timeout=self.timeout)
        if not isinstance(facts, dict) or not facts.keys() >= {"version", "fingerprint", "compares"}:
            raise ScoringError(
                f"The actor of the provider {self.called} is not a RewardActor: its method `facts` returned {facts!r:.80}. Start one with "
                "rm_plugins_ray.start_actor."
            )
        if facts["version"] != __version__:
            raise ScoringError(
                f"The actor of the provider {self.called} runs rm-plugins {facts['version']}, but this process runs {__version__}. Install "
                "the same version on every node."
            )
        if facts["compares"]:
            raise UnsupportedError(
                f"The reward in the actor of the provider {self.called} compares the samples of a group, and this process does not know "
                "which samples must be in one call. Start the actor without that part, and put the part into this spec, such as "
                "`{provider: ray-actor, actor: ..., transform: rank-in-group}`."
            )
        self._check_fingerprint(facts["fingerprint"])
        self._known = actor
        return actor

    def _check_fingerprint(self, served: str) -> None:
        if self.fingerprint not in (None, served):
            raise ScoringError(
                f"The spec of the provider {self.called} requires the reward with the fingerprint {self.fingerprint!r}, but the "
                f"actor holds {served!r}. Start that reward, or change `fingerprint` in the spec."
            )


def _is_handle(actor: object) -> bool:
    """Whether it is a handle of an actor with the methods of a `RewardActor`; a class has them too, but they cannot be called from here."""
    return all(hasattr(getattr(actor, method, None), "remote") for method in ("score", "facts"))
