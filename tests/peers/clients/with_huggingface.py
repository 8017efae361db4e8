"""huggingface_hub's InferenceClient, as it asks text-embeddings-inference and the endpoints that run it."""

from __future__ import annotations

from functools import cache
from typing import Any, cast

from huggingface_hub import InferenceClient
from huggingface_hub.utils import get_session, hf_raise_for_status  # type: ignore[attr-defined]

from tests.peers.clients.talk import in_order, talk


@cache
def _client(url: str) -> InferenceClient:
    return InferenceClient(model=url, provider="hf-inference", token="none")


def _posted(url: str, body: Any) -> Any:
    response = get_session().post(url, json=body)
    hf_raise_for_status(response)
    return response.json()


def text_classification(url: str, model: str, texts: list[str]) -> list[float]:
    """One text after another, at the URL itself. For one text, TEI answers with a list in which this client sees a text's first class."""
    return [cast("Any", _client(url).text_classification(text)).score for text in texts]


def predict(url: str, model: str, texts: list[str]) -> list[float]:
    """A batch for TEI's ``/predict``, through the client's session."""
    answer = _posted(f"{url}/predict", {"inputs": [[text] for text in texts], "raw_scores": True, "truncate": True})
    return [row[0]["score"] for row in answer]


def predict_pairs(url: str, model: str, pairs: list[list[str]]) -> list[float]:
    """Pairs for TEI's ``/predict``."""
    answer = _posted(f"{url}/predict", {"inputs": pairs, "raw_scores": True, "truncate": True})
    return [row[0]["score"] for row in answer]


def rerank(url: str, model: str, query: str, documents: list[str]) -> list[float]:
    """TEI's ``/rerank``."""
    answer = _posted(f"{url}/rerank", {"query": query, "texts": documents, "raw_scores": False, "truncate": True})
    return in_order([(rank["index"], rank["score"]) for rank in answer], len(documents))


def endpoint_info(url: str, model: str, texts: list[str]) -> list[float]:
    """What the client reads of a server before it asks: TEI's ``/info`` and ``/health``."""
    assert _client(url).get_endpoint_info(model=url)["model_id"] and _client(url).health_check(model=url)
    return text_classification(url, model, texts)


if __name__ == "__main__":
    talk("huggingface_hub", text_classification, predict, predict_pairs, rerank, endpoint_info)
