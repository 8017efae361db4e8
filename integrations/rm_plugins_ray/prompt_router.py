"""Routes requests of one prompt to one replica, which scores a shared prompt once."""

from __future__ import annotations

import hashlib
from typing import Any

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica


class PromptRouter(RequestRouter):
    """Ranks replicas by a hash of the prompt and of the replica (rendezvous hashing, Thaler and Ravishankar, 1998).

    Every router ranks alike without sharing anything, and a replica that comes or goes only moves the prompts that it wins or loses. The
    first positional argument of a request is the digest of its prompt; a request without one goes to the least busy replica.
    """

    _slack = 16

    def initialize_state(self, *, slack: int = 16, **unused: Any) -> None:
        """Set how many more requests than the least busy replica the replica of a prompt may have before another one is used."""
        self._slack = slack

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """The replicas in the order in which they are tried, each in a list of its own."""
        if pending_request is None:
            return [candidate_replicas]
        pending_request.routing_context.should_backoff = True
        prompt = pending_request.args[0] if pending_request.args else ""
        queues = {one.replica_id: self.replica_queue_len_cache.get(one.replica_id) or 0 for one in candidate_replicas}
        by_queue = sorted(candidate_replicas, key=lambda one: queues[one.replica_id])
        if not prompt:
            return [by_queue] if by_queue else []
        most = min(queues.values(), default=0) + self._slack
        ranked = sorted(candidate_replicas, key=lambda one: _weight(prompt, one.replica_id.unique_id), reverse=True)
        chosen = [one for one in ranked if queues[one.replica_id] <= most]
        return [[one] for one in chosen] + [[one] for one in by_queue if one not in chosen]


def _weight(prompt: str, replica: str) -> bytes:
    return hashlib.blake2b(f"{prompt}:{replica}".encode(), digest_size=8).digest()
