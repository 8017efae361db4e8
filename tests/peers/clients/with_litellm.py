"""LiteLLM's ``rerank``, by the providers that can be told another address."""

from __future__ import annotations

from typing import Any

import litellm

from tests.peers.clients.talk import in_order, talk


def _ranked(provider: str, url: str, model: str, query: str, documents: list[str], **options: Any) -> list[float]:
    ranking = litellm.rerank(
        model=f"{provider}/{model}", query=query, documents=documents, api_base=url, api_key="none", **options
    )
    return in_order([(result["index"], result["relevance_score"]) for result in ranking.results], len(documents))


def hosted_vllm(url: str, model: str, query: str, documents: list[str], **options: Any) -> list[float]:
    """As of vLLM."""
    return _ranked("hosted_vllm", url, model, query, documents, **options)


def huggingface(url: str, model: str, query: str, documents: list[str], **options: Any) -> list[float]:
    """As of text-embeddings-inference."""
    return _ranked("huggingface", url, model, query, documents, **options)


def cohere(url: str, model: str, query: str, documents: list[str], **options: Any) -> list[float]:
    """As of Cohere."""
    return _ranked("cohere", url, model, query, documents, **options)


def infinity(url: str, model: str, query: str, documents: list[str], **options: Any) -> list[float]:
    """As of Infinity."""
    return _ranked("infinity", url, model, query, documents, **options)


def jina_ai(url: str, model: str, query: str, documents: list[str], **options: Any) -> list[float]:
    """As of Jina."""
    return _ranked("jina_ai", url, model, query, documents, **options)


if __name__ == "__main__":
    talk("litellm", hosted_vllm, huggingface, cohere, infinity, jina_ai)
