"""Infinity, which ranks; no protocol of ours asks it, so it is only compared with the original."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import httpx2

from tests.peers.server import Peer


def _command(python: Path, model: Path, port: int) -> Sequence[str]:
    engine = ["--engine", "torch", "--device", "cpu", "--dtype", "float32", "--no-bettertransformer", "--no-compile"]
    command = [str(python.with_name("infinity_emb")), "v2", "--model-id", str(model), "--host", "127.0.0.1"]
    return [*command, "--port", str(port), "--no-model-warmup", *engine]


PEER = Peer(
    name="Infinity",
    distribution="infinity-emb",
    environment="infinity-server",
    command=_command,
    variables={"INFINITY_ANONYMOUS_USAGE_STATS": "0", "DO_NOT_TRACK": "1"},
)


def pairs(client: httpx2.Client, rows: Sequence[tuple[str, str]]) -> list[float]:
    """Its own logits of pairs: those of a query are one request."""
    scores = []
    for query, some in groupby(rows, key=lambda row: row[0]):
        body = {"query": query, "documents": [document for _, document in some], "raw_scores": True}
        results = client.post("/rerank", json=body).raise_for_status().json()["results"]
        scores += [result["relevance_score"] for result in sorted(results, key=lambda result: result["index"])]
    return scores
