"""A server in a thread, and what is asked of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import httpx2
import pytest

import rm_plugins as rm
from rm_plugins.samples import Sample
from rm_plugins.server import Settings, create_app
from rm_plugins.server.served_reward import HostedReward
from rm_plugins.testing import FixedProvider
from rm_plugins.wire import sample_to_json
from tests.servers import serving

SAMPLES = [
    Sample("Q: What is 2 + 2?\nA:", " 4"),
    Sample("Q: What is 2 + 2?\nA:", " five, or about that"),
    Sample([{"role": "user", "content": "Name a colour."}], "Blue."),
    Sample([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why is the sea salty?"}], "Rivers."),
    Sample("", "naïve 東京 🙂"),
    Sample("Say nothing.", ""),
]


@contextmanager
def served(reward: rm.Provider | HostedReward, **chosen: Any) -> Iterator[httpx2.Client]:
    """A client of a server of the reward."""
    headers = {"Authorization": f"Bearer {chosen['api_keys'][0]}"} if "api_keys" in chosen else {}
    with (
        serving(create_app(reward, Settings(**chosen))) as url,
        httpx2.Client(base_url=url, timeout=20, headers=headers) as client,
    ):
        yield client


def lengths(sample: Sample) -> float | None:
    return None if sample.completion == "abstain" else float(len(str(sample.completion)))


def rewarded(client: httpx2.Client, samples: Sequence[Sample], **more: Any) -> dict[str, Any]:
    response = client.post("/v1/rewards", json={"samples": [sample_to_json(sample) for sample in samples], **more})
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    assert [entry["index"] for entry in found["rewards"]] == list(range(len(samples)))
    return found


def values(found: dict[str, Any]) -> list[Any]:
    return [entry["reward"] for entry in found["rewards"]]


def problem(response: httpx2.Response, status: int, cause: str) -> str:
    """The message of an error."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error["cause"] == cause
    assert error["request_id"] == response.headers["x-request-id"]
    message: str = error["message"]
    return message


def metric(client: httpx2.Client, name: str) -> float:
    """The sum of a metric over its labels."""
    lines = client.get("/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.partition("{")[0].split(" ")[0] == f"rm_plugins_{name}")


def until(condition: Callable[[], bool], *, seconds: float = 60.0) -> None:
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        if condition():
            return
        time.sleep(0.002)
    raise AssertionError("it never came to that")


@pytest.fixture(scope="module")
def simple() -> Iterator[httpx2.Client]:
    """A client of a server of completions' lengths."""
    with served(FixedProvider(scores=lengths), max_items=8, max_characters=1_000, max_body_bytes=20_000) as client:
        yield client
