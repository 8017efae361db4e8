"""Haystack's rankers."""

from __future__ import annotations

from typing import Any

from haystack import Document
from haystack.utils import Secret
from haystack_integrations.components.rankers.cohere import CohereRanker
from haystack_integrations.components.rankers.huggingface_api import HuggingFaceTEIRanker

from tests.peers.clients.talk import in_order, talk


def _ranked(ranker: Any, query: str, documents: list[str]) -> list[float]:
    rows = [Document(id=str(place), content=text) for place, text in enumerate(documents)]
    ranked = ranker.run(query=query, documents=rows)["documents"]
    return in_order([(int(row.id), row.score) for row in ranked], len(documents))


def cohere_ranker(url: str, model: str, query: str, documents: list[str]) -> list[float]:
    """`CohereRanker`."""
    ranker = CohereRanker(model=model, api_key=Secret.from_token("none"), api_base_url=url, top_k=max(len(documents), 1))
    return _ranked(ranker, query, documents)


def tei_ranker(url: str, model: str, query: str, documents: list[str]) -> list[float]:
    """`HuggingFaceTEIRanker`."""
    return _ranked(HuggingFaceTEIRanker(url=url, top_k=max(len(documents), 1), max_retries=1), query, documents)


if __name__ == "__main__":
    talk("haystack-ai", cohere_ranker, tei_ranker)
