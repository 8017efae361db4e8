"""Model servers of the Open Inference Protocol, with a model that their owner wrote."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import httpx2

from tests.peers.server import Peer


def _mlserver(python: Path, model: Path, port: int) -> Sequence[str]:
    return [str(python), "-m", "tests.peers.hosts.mlserver_runtime", str(model), str(port)]


def _kserve(python: Path, model: Path, port: int) -> Sequence[str]:
    return [str(python), "-m", "tests.peers.hosts.kserve_model", str(model), str(port)]


_READY = "/v2/models/reward_model/ready"
MLSERVER = Peer(name="MLServer", distribution="mlserver", environment="mlserver", command=_mlserver, ready=_READY)
KSERVE = Peer(name="KServe", distribution="kserve", environment="hosts", command=_kserve, ready=_READY)


def texts(client: httpx2.Client, rows: Sequence[str]) -> list[float]:
    """Its own rewards of texts as they are."""
    tensor = {"name": "sentences", "shape": [len(rows), 1], "datatype": "BYTES", "data": [*rows]}
    answer = client.post("/v2/models/reward_model/infer", json={"inputs": [tensor]}).raise_for_status().json()
    rewards: list[float] = answer["outputs"][0]["data"]
    return rewards
