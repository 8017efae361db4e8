"""LightRAG's rerank functions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from lightrag import rerank

from tests.peers.clients.talk import in_order, talk


def _ranked(function: Callable[..., Any], url: str, model: str, query: str, documents: list[str]) -> list[float]:
    ranking = asyncio.run(function(query=query, documents=documents, api_key="none", model=model, base_url=url))
    return in_order([(entry["index"], entry["relevance_score"]) for entry in ranking], len(documents))


def cohere(url: str, model: str, query: str, documents: list[str]) -> list[float]:
    """`cohere_rerank`."""
    return _ranked(rerank.cohere_rerank, f"{url}/v2/rerank", model, query, documents)


def jina(url: str, model: str, query: str, documents: list[str]) -> list[float]:
    """`jina_rerank`, which sends ``return_documents: false``."""
    return _ranked(rerank.jina_rerank, f"{url}/v1/rerank", model, query, documents)


if __name__ == "__main__":
    talk("lightrag-hku", cohere, jina)
