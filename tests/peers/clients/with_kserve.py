"""KServe's InferenceRESTClient, by the second version of its protocol."""

from __future__ import annotations

import asyncio
from functools import cache
from typing import Any

import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest
from kserve.inference_client import RESTConfig
from kserve.protocol.infer_type import RequestedOutput

from tests.peers.clients.talk import talk

_LOOP = asyncio.new_event_loop()


@cache
def _client() -> Any:
    return InferenceRESTClient(RESTConfig(protocol="v2", timeout=60, retries=3))


def _inferred(url: str, model: str, texts: list[str], *, binary: bool) -> list[float]:
    given = InferInput("sentences", [len(texts), 1], "BYTES")
    given.set_data_from_numpy(np.array(texts, dtype=object).reshape(-1, 1), binary_data=binary)
    request = InferRequest(model, [given], request_outputs=[RequestedOutput("rewards", parameters={"binary_data": binary})])
    answer = _LOOP.run_until_complete(_client().infer(url, request, model_name=model))
    return [float(value) for value in answer.outputs[0].as_numpy().reshape(-1)]


def binary(url: str, model: str, texts: list[str]) -> list[float]:
    """Binary tensors, which are the client's default."""
    return _inferred(url, model, texts, binary=True)


def as_json(url: str, model: str, texts: list[str]) -> list[float]:
    """Tensors as JSON."""
    return _inferred(url, model, texts, binary=False)


def readiness(url: str, model: str, texts: list[str]) -> list[float]:
    """Its probes, and then scores."""
    client = _client()
    for probe in (client.is_server_live(url), client.is_server_ready(url), client.is_model_ready(url, model)):
        assert _LOOP.run_until_complete(probe)
    return _inferred(url, model, texts, binary=True)


if __name__ == "__main__":
    talk("kserve", binary, as_json, readiness)
