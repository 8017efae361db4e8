"""OpenRLHF's reward server, and one with its wire that an owner wrote with LitServe."""

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


PEER = Peer(name="OpenRLHF serve_rm", distribution="openrlhf", environment="openrlhf", command=_serve_rm, ready="/openapi.json")
LITSERVE = Peer(name="LitServe", distribution="litserve", environment="hosts", command=_litserve)


def texts(client: httpx2.Client, rows: Sequence[str]) -> list[float]:
    """Its own rewards of texts as they are."""
    rewards: list[float] = client.post("/get_reward", json={"query": [*rows]}).raise_for_status().json()["rewards"]
    return rewards
