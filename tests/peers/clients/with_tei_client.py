"""tei-client, a client of text-embeddings-inference."""

from __future__ import annotations

from functools import cache

from tei_client import HttpClient

from tests.peers.clients.talk import in_order, talk


@cache
def _client(url: str) -> HttpClient:
    return HttpClient(url, timeout=60)


def rerank(url: str, model: str, query: str, documents: list[str]) -> list[float]:
    """``/rerank`` with the sigmoid, after ``/info``."""
    ranks = _client(url).rerank(query, documents, return_text=True).ranks
    assert [rank.text for rank in ranks] == [documents[rank.index] for rank in ranks]
    return in_order([(rank.index, rank.score) for rank in ranks], len(documents))


def rerank_raw(url: str, model: str, query: str, documents: list[str]) -> list[float]:
    """``/rerank`` without the sigmoid."""
    ranks = _client(url).rerank(query, documents, raw_scores=True).ranks
    return in_order([(rank.index, rank.score) for rank in ranks], len(documents))


def tokens(url: str, model: str, query: str, documents: list[str]) -> list[float]:
    """Scores, after each document went through ``/tokenize`` and ``/decode``."""
    client = _client(url)
    for document, tokenized in zip(documents, client.tokenize(documents, add_special_tokens=False), strict=True):
        assert "".join(client.decode([tokenized.get_ids()])).split() == document.split()
    return rerank(url, model, query, documents)


if __name__ == "__main__":
    talk("tei-client", rerank, rerank_raw)
