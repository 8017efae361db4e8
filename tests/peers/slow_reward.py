"""A reward that takes its time, for tests of what clients do when a server is busy."""

from __future__ import annotations

import time
from collections.abc import Sequence


def reward(prompts: Sequence[str], completions: Sequence[str], **columns: object) -> list[float]:
    """The completion's length in hundreds of characters, 50 ms a sample."""
    time.sleep(0.05 * len(completions))
    return [len(completion) / 100 for completion in completions]
