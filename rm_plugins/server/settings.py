"""What can be set of the server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Settings:
    """How a reward is served.

    Args:
        model_name: What requests, answers and paths call the reward. If empty it is its label, and requests may name what it was
            loaded from as well, such as ``/models/rm`` or ``owner/rm``.
        api_keys: Who may score; everybody where there is none. Each is a client of its own in the queue.
        allowed_hosts: What requests may call this server (the ``Host`` header, without a port) beside the names and addresses of this
            very machine; ``*`` for everything.
        allowed_origins: The origins whose pages may use this server, such as ``https://rewards.example.com``, beside its own page.
        max_batch_tokens: About how many tokens of waiting requests are scored together; by default 16 micro-batches of the model.
        eos_texts: What ends the texts of a policy whose trainer sends them with their special tokens (``/get_reward``), for rewards that
            are not of models alone. Where nothing is set, what looks like a special token is taken for one.
        max_items: Most samples of a request.
        max_characters: Most characters of a sample.
        max_body_bytes: Most bytes of a request's body.
        max_body_values: Most values (numbers, texts, true, false, null) in a body; a list or an object counts as eight.
        max_held_bytes: Most bytes of all bodies that are read or answered at a time; what comes then is told to retry later.
        max_head_bytes: Most bytes of a request's line and headers, and of what frames its body.
        max_connections: Most connections.
        max_client_connections: Most connections of one address.
        head_seconds: Seconds in which the head of a request must come.
        body_seconds: Seconds in which a body must come, and most seconds in which a client does not read its answer.
        max_queue_items: Most samples that wait; what comes then is told to retry later.
        max_queue_characters: Most characters that wait.
        threads: Batches that run at once, where the reward waits for others rather than computes.
        max_score_seconds: Most seconds for a batch, where the reward has a process of its own (``rm-plugins serve``); then that process is
            ended and started again, and the requests of the batch fail.
        drain_seconds: Seconds in which a stopping server finishes what it has accepted.
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
    drain_seconds: float = 60.0
