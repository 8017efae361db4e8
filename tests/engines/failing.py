"""Rewards that fail or abstain on purpose, for processes of their own too."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from typing import Any

calls: list[int] = []
"""The sizes of the batches so far."""
_lock = threading.Lock()


def by_text(completions: Sequence[Any], **columns: Any) -> list[float | None]:
    """A completion is its own score; ``none`` abstains, and ``error`` raises."""
    with _lock:
        calls.append(len(completions))
    time.sleep(0.001)
    texts = [text if isinstance(text, str) else text[-1]["content"] for text in completions]
    if "error" in texts:
        raise RuntimeError("no reward for 'error'")
    return [None if text == "none" else float(text) for text in texts]


def abstains(completions: Sequence[Any], **columns: Any) -> list[None]:
    """No sample has a score."""
    return [None] * len(completions)


def labels(completions: Sequence[Any], label: Sequence[Any]) -> list[float]:
    """The label of each sample."""
    return [float(text) for text in label]


def process(completions: Sequence[Any], **columns: Any) -> list[float]:
    """The process that scores."""
    return [float(os.getpid())] * len(completions)


def threads(completions: Sequence[Any], **columns: Any) -> list[float]:
    """The threads that torch computes with in this process."""
    import torch

    return [float(torch.get_num_threads())] * len(completions)


def prompt_length(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
    """The length of the prompt's text, which differs if the prompt is lost or rendered."""
    return [
        float(len(prompt if isinstance(prompt, str) else "".join(turn["content"] for turn in prompt))) for prompt in prompts
    ]
