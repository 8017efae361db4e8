"""vLLM's build for CPUs: a model served for scoring."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import httpx2

from tests.peers.server import Peer

_VARIABLES = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}


def _command(python: Path, model: Path, port: int) -> Sequence[str]:
    # The module and not `vllm serve`, which asks for the version of a distribution called vllm.
    module = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--port", str(port)]
    scoring = ["--host", "127.0.0.1", "--runner", "pooling", "--convert", "classify"]
    return [*module, *scoring, "--dtype", "float32", "--enforce-eager", "--gpu-memory-utilization", "0.1"]


PEER = Peer(name="vLLM", distribution="vllm-cpu", environment="vllm", command=_command, variables=_VARIABLES)
OLDER = Peer(name="vLLM", distribution="vllm-cpu", environment="vllm-older", command=_command, variables=_VARIABLES)


def texts(client: httpx2.Client, rows: Sequence[str]) -> list[float]:
    """Its own logits of texts as they are."""
    body = {"input": [*rows], "use_activation": False, "add_special_tokens": False}
    answer = client.post("/classify", json=body).raise_for_status().json()
    return [entry["probs"][0] for entry in answer["data"]]


def pairs(client: httpx2.Client, rows: Sequence[tuple[str, str]]) -> list[float]:
    """Its own logits of pairs."""
    body = {"text_1": [one for one, _ in rows], "text_2": [other for _, other in rows], "use_activation": False}
    answer = client.post("/score", json=body).raise_for_status().json()
    return [entry["score"] for entry in answer["data"]]
