"""cohere's client: ``rerank`` of its API's first and second version."""

from __future__ import annotations

from functools import cache
from typing import Any

import cohere

from tests.peers.clients.talk import in_order, talk


@cache
def _client(kind: str, url: str) -> Any:
    return getattr(cohere, kind)(api_key="none", base_url=url)


def _ranked(kind: str, url: str, model: str, query: str, documents: list[str], **options: Any) -> list[float]:
    ranking = _client(kind, url).rerank(model=model, query=query, documents=documents, **options)
    return in_order([(result.index, result.relevance_score) for result in ranking.results], len(documents))


def rerank_v1(url: str, model: str, query: str, documents: list[str], **options: Any) -> list[float]:
    """`cohere.Client.rerank`."""
    return _ranked("Client", url, model, query, documents, **options)


def rerank_v2(url: str, model: str, query: str, documents: list[str], **options: Any) -> list[float]:
    """`cohere.ClientV2.rerank`."""
    return _ranked("ClientV2", url, model, query, documents, **options)


if __name__ == "__main__":
    talk("cohere", rerank_v1, rerank_v2)
