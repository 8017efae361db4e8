"""A served reward, for the tests of the endpoints that stand in for other servers."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2

import rm_plugins as rm
from rm_plugins.providers.function import FunctionProvider
from rm_plugins.samples import RenderedSample
from rm_plugins.server import Settings, create_app
from tests.conftest import make_tokenizer
from tests.servers import serving
from tests.test_scoring_engine import make_model


def decoder(folder: Path, **tokenizer_settings: Any) -> rm.Provider:
    """A tiny sequence classifier of real parts; its tokenizer begins every text with ``<|bos|>``."""
    tokenizer = make_tokenizer(**{"adds_bos": True, **tokenizer_settings})
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    make_model("qwen2", vocab_size=len(tokenizer), **special).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return rm.load(folder)


@contextmanager
def served(reward: rm.Provider, **settings: Any) -> Iterator[httpx2.Client]:
    """A client of a server of the reward."""
    with (
        serving(create_app(reward, Settings(model_name="tiny", **settings))) as url,
        httpx2.Client(base_url=url, timeout=30) as client,
    ):
        yield client


def text_rewards(reward: rm.Provider, texts: Sequence[str | Sequence[int]], *, add_special_tokens: bool = True) -> list[float]:
    """What the reward says by itself of texts or token ids that are scored as they are."""
    return rewards(reward, [RenderedSample.of(text, add_special_tokens=add_special_tokens) for text in texts])


def rewards(reward: rm.Provider, samples: Sequence[rm.Sample]) -> list[float]:
    """What the reward says by itself."""
    return [float(value) for value in reward.score(samples).values]


@contextmanager
def overloaded() -> Iterator[httpx2.Client]:
    """A client of a server that has a sample at work, another one that waits, and no room for more."""
    begun, goes_on = threading.Event(), threading.Event()

    def slow(samples: Sequence[rm.Sample]) -> list[float]:
        begun.set()
        goes_on.wait(10)
        return [0.0] * len(samples)

    with served(FunctionProvider(function=slow), max_queue_items=1) as client, ThreadPoolExecutor(2) as pool:
        body = {"samples": [{"prompt": "", "completion": "a"}]}
        try:
            pool.submit(client.post, "/v1/rewards", json=body)
            begun.wait(10)
            pool.submit(client.post, "/v1/rewards", json=body)
            while "queue_items 1.0" not in client.get("/metrics").text:
                time.sleep(0.01)
            yield client
        finally:
            goes_on.set()
