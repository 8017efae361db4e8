"""OpenRLHF's reward server, and two with its wire that their owners wrote with LitServe and BentoML."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import httpx2

from tests.peers.server import Peer


def _serve_rm(python: Path, model: Path, port: int) -> Sequence[str]:
    module = [str(python), "-m", "tests.peers.hosts.openrlhf_serve_rm", "--in-float32"]
    return [
        *(*module, "--reward.model_name_or_path", str(model), "--ds.attn_implementation", "eager"),
        *("--host", "127.0.0.1", "--port", str(port)),
    ]


def _litserve(python: Path, model: Path, port: int) -> Sequence[str]:
    return [str(python), "-m", "tests.peers.hosts.litserve_app", str(model), str(port)]


def _bentoml(python: Path, model: Path, port: int) -> Sequence[str]:
    return [str(python), "-m", "tests.peers.hosts.bentoml_service", str(model), str(port)]


PEER = Peer(name="OpenRLHF serve_rm", distribution="openrlhf", environment="openrlhf", command=_serve_rm, ready="/openapi.json")
LITSERVE = Peer(name="LitServe", distribution="litserve", environment="hosts", command=_litserve)
BENTOML = Peer(
    name="BentoML",
    distribution="bentoml",
    environment="hosts",
    command=_bentoml,
    ready="/readyz",
    variables={"BENTOML_DO_NOT_TRACK": "1"},
)


def texts(client: httpx2.Client, rows: Sequence[str]) -> list[float]:
    """Its own rewards of texts as they are."""
    rewards: list[float] = client.post("/get_reward", json={"query": [*rows]}).raise_for_status().json()["rewards"]
    return rewards
