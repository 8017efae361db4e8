"""LangChain's document compressors."""

from __future__ import annotations

from functools import cache
from typing import Any

import cohere
from langchain_cohere import CohereRerank
from langchain_community.document_compressors import JinaRerank, jina_rerank

from tests.peers.clients.talk import in_order, talk


@cache
def _cohere(url: str, model: str) -> Any:
    return CohereRerank(client=cohere.ClientV2(api_key="none", base_url=url), model=model)


def cohere_rerank(url: str, model: str, query: str, documents: list[str]) -> list[float]:
    """`langchain_cohere.CohereRerank`, which always sends ``max_tokens_per_doc``."""
    ranking = _cohere(url, model).rerank(documents, query, top_n=None)
    return in_order([(rank["index"], rank["relevance_score"]) for rank in ranking], len(documents))


def jina(url: str, model: str, query: str, documents: list[str]) -> list[float]:
    """`langchain_community`'s JinaRerank; its address is a constant of its module."""
    jina_rerank.JINA_API_URL = f"{url}/v1/rerank"
    ranking = JinaRerank(jina_api_key="none", model=model).rerank(documents, query, top_n=None)
    return in_order([(rank["index"], rank["relevance_score"]) for rank in ranking], len(documents))


if __name__ == "__main__":
    talk("langchain-cohere", cohere_rerank, jina)
