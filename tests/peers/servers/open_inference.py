"""Model servers of the Open Inference Protocol, with a model that their owner wrote."""

from __future__ import annotations

import sysconfig
from collections.abc import Sequence
from pathlib import Path

import httpx2

from tests.peers.server import Peer

LARGEST_BATCH = 64
"""Of PyTriton's model: fewer than the samples, so that they do not fit into one request."""


def _mlserver(python: Path, model: Path, port: int) -> Sequence[str]:
    return [str(python), "-m", "tests.peers.hosts.mlserver_runtime", str(model), str(port)]


def _kserve(python: Path, model: Path, port: int) -> Sequence[str]:
    return [str(python), "-m", "tests.peers.hosts.kserve_model", str(model), str(port)]


def _pytriton(python: Path, model: Path, port: int) -> Sequence[str]:
    return [str(python), "-m", "tests.peers.hosts.pytriton_app", str(model), str(port), str(LARGEST_BATCH)]


_READY = "/v2/models/reward_model/ready"
MLSERVER = Peer(name="MLServer", distribution="mlserver", environment="mlserver", command=_mlserver, ready=_READY)
KSERVE = Peer(name="KServe", distribution="kserve", environment="hosts", command=_kserve, ready=_READY)
PYTRITON = Peer(
    name="PyTriton",
    distribution="nvidia-pytriton",
    environment="hosts",
    command=_pytriton,
    ready=_READY,
    # Triton embeds Python, and must find this interpreter's library before another of the same minor version.
    variables={"LD_LIBRARY_PATH": sysconfig.get_config_var("LIBDIR")},
)


def texts(client: httpx2.Client, rows: Sequence[str]) -> list[float]:
    """Its own rewards of texts as they are, in requests of no more than PyTriton's batch."""
    rewards: list[float] = []
    for start in range(0, len(rows), LARGEST_BATCH):
        some = [*rows[start : start + LARGEST_BATCH]]
        tensor = {"name": "sentences", "shape": [len(some), 1], "datatype": "BYTES", "data": some}
        answer = client.post("/v2/models/reward_model/infer", json={"inputs": [tensor]}).raise_for_status().json()
        rewards += answer["outputs"][0]["data"]
    return rewards
