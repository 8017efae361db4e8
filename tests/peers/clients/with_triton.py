"""Triton's HTTP client, with binary tensors, which are its default, and without."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import tritonclient.http as triton

from tests.peers.clients.talk import talk


@cache
def _client(url: str) -> Any:
    return triton.InferenceServerClient(url.removeprefix("http://"))


def _inferred(url: str, model: str, texts: list[str], *, binary: bool, shape: list[int], **options: Any) -> list[float]:
    client = _client(url)
    given = triton.InferInput("sentences", shape, "BYTES")
    given.set_data_from_numpy(np.array(texts, dtype=object).reshape(shape), binary_data=binary)
    outputs = [triton.InferRequestedOutput("rewards", binary_data=binary)]
    return [float(value) for value in client.infer(model, [given], outputs=outputs, **options).as_numpy("rewards").reshape(-1)]


def binary(url: str, model: str, texts: list[str]) -> list[float]:
    """As the client does it by itself."""
    return _inferred(url, model, texts, binary=True, shape=[len(texts), 1])


def as_json(url: str, model: str, texts: list[str]) -> list[float]:
    """Tensors as JSON."""
    return _inferred(url, model, texts, binary=False, shape=[len(texts)])


def compressed(url: str, model: str, texts: list[str]) -> list[float]:
    """Binary tensors, compressed both ways."""
    options = {"request_compression_algorithm": "gzip", "response_compression_algorithm": "gzip"}
    return _inferred(url, model, texts, binary=True, shape=[len(texts), 1], **options)


def everything_else(url: str, model: str, texts: list[str]) -> list[float]:
    """What the client can ask of a server beside scores: readiness, metadata, configuration, statistics."""
    client = _client(url)
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready(model)
    assert client.get_server_metadata()["name"]
    metadata = client.get_model_metadata(model)
    assert {entry["name"] for entry in metadata["outputs"]} >= {"rewards"}
    assert client.get_model_config(model)["name"] == metadata["name"]
    assert client.get_inference_statistics(model)["model_stats"]
    version = metadata["versions"][0] if metadata.get("versions") else "1"
    assert client.is_model_ready(model, version)
    return _inferred(url, model, texts, binary=True, shape=[len(texts), 1], model_version=version)


if __name__ == "__main__":
    talk("tritonclient", binary, as_json, compressed, everything_else)
