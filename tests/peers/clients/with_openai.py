"""OpenAI's client, whose ``post`` sends what vLLM's pooling endpoints take, and its embeddings, which verl asks SGLang for."""

from __future__ import annotations

from functools import cache
from typing import Any

import openai

from tests.peers.clients.talk import talk


@cache
def _client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=url, api_key="none")


def classify(url: str, model: str, texts: list[str]) -> list[float]:
    """vLLM's ``/classify`` without its activation."""
    body = {"model": model, "input": texts, "use_activation": False, "add_special_tokens": False}
    answer: Any = _client(url).post("/classify", body=body, cast_to=object)
    return [entry["probs"][0] for entry in answer["data"]]


def classify_conversations(url: str, model: str, conversations: list[Any]) -> list[float]:
    """vLLM's ``/classify`` of conversations, one a request."""
    bodies = [{"model": model, "messages": messages, "use_activation": False} for messages in conversations]
    answers: list[Any] = [_client(url).post("/classify", body=body, cast_to=object) for body in bodies]
    return [answer["data"][0]["probs"][0] for answer in answers]


def embeddings(url: str, model: str, texts: list[str]) -> list[float]:
    """The last number of each embedding."""
    answer = _client(f"{url}/v1").embeddings.create(model=model, input=texts, encoding_format="float")
    return [entry.embedding[-1] for entry in answer.data]


def embeddings_base64(url: str, model: str, texts: list[str]) -> list[float]:
    """The same as the client asks by default: in base64, which it unpacks."""
    answer = _client(f"{url}/v1").embeddings.create(model=model, input=texts)
    return [entry.embedding[-1] for entry in answer.data]


def score(url: str, model: str, pairs: list[list[str]]) -> list[float]:
    """vLLM's ``/score`` of pairs."""
    body = {"model": model, "text_1": [one for one, _ in pairs], "text_2": [other for _, other in pairs]}
    answer: Any = _client(url).post("/score", body=body, cast_to=object)
    return [entry["score"] for entry in answer["data"]]


if __name__ == "__main__":
    talk("openai", classify, classify_conversations, embeddings, embeddings_base64, score)
