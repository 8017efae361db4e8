"""Infinity's own client, as LangChain uses it."""

from __future__ import annotations

from typing import Any

from infinity_client import Client
from langchain_community.document_compressors import InfinityRerank

from tests.peers.clients.talk import in_order, talk


def rerank(url: str, model: str, query: str, documents: list[str]) -> list[float]:
    """`langchain_community`'s InfinityRerank."""
    compressor: Any = InfinityRerank(client=Client(base_url=url), model=model)
    ranking = compressor.rerank(documents, query, top_n=None)
    return in_order([(rank["index"], rank["relevance_score"]) for rank in ranking], len(documents))


if __name__ == "__main__":
    talk("infinity-client", rerank)
