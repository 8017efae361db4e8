"""Clients that give up after a few tries get their scores from a server with more to do than it takes at a time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import httpx2
import pytest

import rm_plugins as rm
from rm_plugins.providers.function import FunctionProvider
from rm_plugins.server import Settings, create_app
from tests.servers import serving

SECONDS_OF_A_SAMPLE = 0.02
WAITING, CLIENTS = 60, 300  # a second of work waits at most, and five times as much comes at once


def slow(samples: Sequence[rm.Sample]) -> list[float]:
    time.sleep(SECONDS_OF_A_SAMPLE * len(samples))
    return [float(len(str(sample.completion))) for sample in samples]


class RuleOfOpenAI:
    """Asks as OpenAI's Python client (3.57.0) does by default: twice again, after Retry-After if that is at most 120 s."""

    def __init__(self, url: str) -> None:
        limits = httpx2.Limits(max_connections=CLIENTS)
        self._client = httpx2.Client(base_url=url, timeout=60, trust_env=False, limits=limits)

    def ask(self, text: str) -> float:
        for tried in range(3):
            response = self._client.post("/v1/embeddings", json={"model": "tiny", "input": text})
            if response.status_code not in (408, 409, 429) and response.status_code < 500:
                break
            given = float(response.headers.get("Retry-After", 0))
            time.sleep(given if 0 < given <= 120 else min(0.5 * 2**tried, 8))
        response.raise_for_status()
        return float(response.json()["data"][0]["embedding"][0])

    def close(self) -> None:
        self._client.close()


class OpenAI:
    """OpenAI's Python client itself."""

    def __init__(self, url: str) -> None:
        openai = pytest.importorskip("openai", reason="openai is not installed; the rule of its client is tested without it")
        self._client: Any = openai.OpenAI(api_key="none", base_url=f"{url}/v1", timeout=60)

    def ask(self, text: str) -> float:
        answer = self._client.embeddings.create(model="tiny", input=text, encoding_format="float")
        return float(answer.data[0].embedding[0])

    def close(self) -> None:
        self._client.close()


@pytest.mark.parametrize("kind", [RuleOfOpenAI, OpenAI])
def test_who_tries_three_times_is_answered(kind: type[RuleOfOpenAI] | type[OpenAI]) -> None:
    settings = Settings(model_name="tiny", max_queue_items=WAITING)
    with (
        serving(create_app(FunctionProvider(function=slow), settings), timeout_keep_alive=60) as url,
        ThreadPoolExecutor(CLIENTS) as pool,
        closing(kind(url)) as client,
    ):
        assert client.ask("warm") == 4
        texts = ["a" * (1 + number % 50) for number in range(CLIENTS)]
        assert list(pool.map(client.ask, texts)) == [len(text) for text in texts]
        refused = httpx2.get(f"{url}/metrics", trust_env=False).text.count('cause="overload"')
        assert refused  # there was more than could wait
