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
        max_batch_tokens: About how many tokens of waiting requests are scored together; by default 16 micro-batches of the model.
        max_items: Most samples of a request.
        max_characters: Most characters of a sample.
        max_body_bytes: Most bytes of a request's body.
        max_queue_items: Most samples that wait; what comes then is told to retry later.
        max_queue_characters: Most characters that wait.
        threads: Batches that run at once, where the reward waits for others rather than computes.
        drain_seconds: Seconds in which a stopping server finishes what it has accepted.
    """

    model_name: str = ""
    api_keys: Sequence[str] = field(default=(), repr=False)
    max_batch_tokens: int | None = None
    max_items: int = 256
    max_characters: int = 1_000_000
    max_body_bytes: int = 16 * 2**20
    max_queue_items: int = 4_096
    max_queue_characters: int = 32_000_000
    threads: int = 8
    drain_seconds: float = 60.0
