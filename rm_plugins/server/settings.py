"""The settings of the server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class Settings:
    """How a reward is served.

    Args:
        model_name: The reward's name in requests, answers and paths. If empty, it is the label of the reward, and requests may also use
            the path or id it was loaded from, such as ``/models/rm`` or ``owner/rm``.
        api_keys: The accepted keys; without keys, every client may score. Each key is a separate client in the queue.
        allowed_hosts: Names by which requests may call this server (the ``Host`` header, without a port), in addition to the names and
            addresses of this machine; ``*`` accepts all.
        allowed_origins: Origins of pages that may use this server, such as ``https://rewards.example.com``, in addition to its own page.
        max_batch_tokens: The approximate number of tokens of waiting requests that are scored together; by default 16 micro-batches of the
            model.
        eos_texts: The texts of a policy's EOS tokens, for rewards that do not consist of models only and trainers that send texts with
            special tokens (``/get_reward``). By default, texts that look like special tokens are removed.
        max_items: The most samples of a request.
        max_characters: The most characters of a sample.
        max_body_bytes: The most bytes of a request's body.
        max_body_values: The most values (numbers, texts, true, false, null) in a body; a list or an object counts as eight.
        max_held_bytes: The most bytes of all bodies that are being read or answered; at the limit, clients are told to retry later.
        max_head_bytes: The most bytes of a request's line and headers, and of the framing of its body.
        max_connections: The most connections.
        max_client_connections: The most connections of one address.
        head_seconds: The time limit for receiving the head of a request, in seconds.
        body_seconds: The time limit for receiving a body, and for a client to read its answer, in seconds.
        max_queue_items: The most samples that wait; at the limit, clients are told to retry later.
        max_queue_characters: The most characters that wait.
        threads: The batches scored concurrently, if the reward waits for I/O instead of computing.
        max_score_seconds: The time limit of a batch in seconds, if the reward has its own process (``rm-plugins serve``). At the limit, the
            process is restarted, and the requests of the batch fail.
        max_load_seconds: The time limit for loading the reward in seconds, if it has its own process. At the limit, a reload fails, and the
            previous reward stays in use.
        drain_seconds: The time for a stopping server to finish accepted requests, in seconds.
    """

    model_name: str = ""
    api_keys: Sequence[str] = field(default=(), repr=False)
    allowed_hosts: Sequence[str] = ()
    allowed_origins: Sequence[str] = ()
    max_batch_tokens: int | None = None
    eos_texts: Sequence[str] | None = None
    max_items: int = 1_024
    max_characters: int = 1_000_000
    max_body_bytes: int = 16 * 2**20
    max_body_values: int = 1_000_000
    max_held_bytes: int = 64 * 2**20
    max_head_bytes: int = 32 * 2**10
    max_connections: int = 1_024
    max_client_connections: int = 256
    head_seconds: float = 10.0
    body_seconds: float = 60.0
    max_queue_items: int = 4_096
    max_queue_characters: int = 32_000_000
    threads: int = 8
    max_score_seconds: float = 600.0
    max_load_seconds: float = 3_600.0
    drain_seconds: float = 60.0

    def for_replicas(self, number: int) -> Settings:
        """The settings of a server with so many replicas: it holds as much as so many servers."""
        limits = ("max_connections", "max_client_connections", "max_held_bytes", "max_queue_items", "max_queue_characters")
        changes: dict[str, Any] = {name: number * getattr(self, name) for name in limits}
        return replace(self, **changes)
