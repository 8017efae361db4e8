"""The ``rerankers`` library, by the kinds of API that can be told another address."""

from __future__ import annotations

from rerankers.models.api_rankers import APIRanker

from tests.peers.clients.talk import in_order, talk


def _ranked(provider: str, url: str, model: str, query: str, documents: list[str]) -> list[float]:
    ranking = APIRanker(model, "none", provider, url=url).rank(query, documents)
    return in_order([(result.doc_id, result.score) for result in ranking.results], len(documents))


def cohere(url: str, model: str, query: str, documents: list[str]) -> list[float]:
    """As of Cohere."""
    return _ranked("cohere", f"{url}/v1/rerank", model, query, documents)


def jina(url: str, model: str, query: str, documents: list[str]) -> list[float]:
    """As of Jina."""
    return _ranked("jina", f"{url}/v1/rerank", model, query, documents)


def tei(url: str, model: str, query: str, documents: list[str]) -> list[float]:
    """As of text-embeddings-inference."""
    return _ranked("text-embeddings-inference", f"{url}/rerank", model, query, documents)


if __name__ == "__main__":
    talk("rerankers", cohere, jina, tei)
