"""PyTriton's clients, with which NeMo-Aligner asks its reward models."""

from __future__ import annotations

import asyncio
from functools import cache

import numpy as np
from numpy.typing import NDArray
from pytriton.client import AsyncioModelClient, FuturesModelClient, ModelClient

from tests.peers.clients.talk import talk


@cache
def _client(url: str, model: str) -> ModelClient:
    return ModelClient(url, model, init_timeout_s=30, inference_timeout_s=60)


def _tensor(texts: list[str]) -> NDArray[np.bytes_]:
    return np.char.encode(np.array(texts).reshape(-1, 1), "utf-8")


def model_client(url: str, model: str, texts: list[str]) -> list[float]:
    """`ModelClient`, which reads the model's configuration first."""
    rewards = _client(url, model).infer_batch(sentences=_tensor(texts))["rewards"]
    return [float(value) for value in rewards.reshape(-1)]


def futures(url: str, model: str, texts: list[str]) -> list[float]:
    """`FuturesModelClient`, as NeMo-Aligner uses it, with four texts a request."""
    with FuturesModelClient(url, model, init_timeout_s=30, inference_timeout_s=60, max_workers=4) as client:
        asked = [client.infer_batch(sentences=_tensor(texts[start : start + 4])) for start in range(0, len(texts), 4)]
        return [float(value) for future in asked for value in future.result()["rewards"].reshape(-1)]


def asynchronous(url: str, model: str, texts: list[str]) -> list[float]:
    """`AsyncioModelClient`."""

    async def ask() -> list[float]:
        async with AsyncioModelClient(url, model, init_timeout_s=30, inference_timeout_s=60) as client:
            rewards = (await client.infer_batch(sentences=_tensor(texts)))["rewards"]
            return [float(value) for value in rewards.reshape(-1)]

    return asyncio.run(ask())


if __name__ == "__main__":
    talk("nvidia-pytriton", model_client, futures, asynchronous)
