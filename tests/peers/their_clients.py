"""What each client of another project can ask of our server, and what it gets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from tests.peers.environments import OWN


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way of asking, which a script in ``clients/`` has as a function.

    Args:
        name: The function.
        asks: What it is handed: ``query`` and ``documents``, whole ``texts``, ``pairs`` of texts, or ``conversations``.
        path: What the client wants behind the server's URL.
        gets: Whether scores come as logits or as their sigmoids.
        options: Further keywords.
    """

    name: str
    asks: Literal["documents", "texts", "pairs", "conversations"] = "documents"
    path: str = ""
    gets: Literal["raw", "sigmoid"] = "sigmoid"
    options: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Client:
    """A client of another project.

    Args:
        peer: Its name, as the table has it.
        script: Its module in ``clients/``.
        environment: Which file of requirements it is installed by.
        ways: How it can ask; by the first of them it meets errors, restarts and load.
        variables: Further environment variables of its process.
        wrong_model: What it raises where the model is another: the class of the error and the status that it knows of.
        empty: What it raises where there is nothing to score.
        retries: Whether it comes again by itself where the server is busy.
        sees_status: Whether it looks at an answer's status; if not, it stumbles over what is not in the answer.
    """

    peer: str
    script: str
    environment: str = "clients"
    ways: tuple[Way, ...]
    variables: Mapping[str, str] = field(default_factory=dict)
    wrong_model: str | None = None
    empty: str | None = None
    retries: bool = False
    sees_status: bool = True


CLIENTS = [
    Client(
        peer="cohere",
        script="with_cohere",
        environment=OWN,
        ways=(Way(name="rerank_v1"), Way(name="rerank_v2"), Way(name="rerank_v2", options={"max_tokens_per_doc": 4096})),
        wrong_model="NotFoundError 404",
        empty="BadRequestError 400",
    ),
    Client(
        peer="openai",
        script="with_openai",
        environment=OWN,
        ways=(
            Way(name="classify", asks="texts", gets="raw"),
            Way(name="classify_conversations", asks="conversations", gets="raw"),
            Way(name="embeddings", asks="texts", gets="raw"),
            Way(name="embeddings_base64", asks="texts", gets="raw"),
            Way(name="score", asks="pairs"),
        ),
        wrong_model="NotFoundError 404",
        empty="BadRequestError 400",
        retries=True,
    ),
    Client(
        peer="huggingface_hub",
        script="with_huggingface",
        variables={"HF_HUB_OFFLINE": "0"},  # it asks nobody but the URL; offline, not even that
        ways=(
            Way(name="predict", asks="texts", gets="raw"),
            Way(name="predict_pairs", asks="pairs", gets="raw"),
            Way(name="text_classification", asks="texts"),
            Way(name="endpoint_info", asks="texts"),
            Way(name="rerank"),
        ),
        empty="HfHubHTTPError 422",
    ),
    Client(
        peer="litellm",
        script="with_litellm",
        variables={"LITELLM_LOCAL_MODEL_COST_MAP": "True"},
        ways=(
            Way(name="hosted_vllm"),
            Way(name="huggingface"),
            Way(name="cohere"),
            Way(name="jina_ai"),
            Way(name="hosted_vllm", options={"max_tokens_per_doc": 4096}),
        ),
    ),
    Client(
        peer="infinity-client",
        script="with_infinity",
        environment="infinity",
        ways=(Way(name="rerank"),),
        sees_status=False,
    ),
    Client(
        peer="langchain",
        script="with_langchain",
        ways=(Way(name="cohere_rerank"), Way(name="jina")),
        wrong_model="NotFoundError 404",
    ),
    Client(
        peer="llama-index",
        script="with_llama_index",
        ways=(Way(name="cohere_rerank"), Way(name="tei_rerank"), Way(name="siliconflow_rerank"), Way(name="jina_rerank")),
        wrong_model="NotFoundError 404",
    ),
    Client(
        peer="haystack",
        script="with_haystack",
        ways=(Way(name="cohere_ranker"), Way(name="tei_ranker")),
        wrong_model="NotFoundError 404",
    ),
    Client(
        peer="rerankers",
        script="with_rerankers",
        ways=(Way(name="cohere"), Way(name="jina"), Way(name="tei")),
        sees_status=False,
    ),
    Client(
        peer="tritonclient",
        script="with_triton",
        environment=OWN,
        ways=(
            Way(name="binary", asks="texts", gets="raw"),
            Way(name="as_json", asks="texts", gets="raw"),
            Way(name="compressed", asks="texts", gets="raw"),
            Way(name="everything_else", asks="texts", gets="raw"),
        ),
        wrong_model="InferenceServerException 404",
        empty="InferenceServerException 400",
    ),
    Client(
        peer="kserve",
        script="with_kserve",
        environment="kserve",
        ways=(
            Way(name="binary", asks="texts", gets="raw"),
            Way(name="as_json", asks="texts", gets="raw"),
            Way(name="readiness", asks="texts", gets="raw"),
        ),
        wrong_model="HTTPStatusError 404",
        empty="HTTPStatusError 400",
    ),
    Client(
        peer="OpenRLHF",
        script="with_openrlhf",
        environment="trainers",
        ways=(Way(name="get_reward", asks="texts", gets="raw"),),
        retries=True,
    ),
    Client(
        peer="verl",
        script="with_verl",
        environment="trainers",
        ways=(Way(name="vllm", asks="texts", gets="raw"), Way(name="sglang", asks="texts", gets="raw")),
        wrong_model="ClientResponseError 404",
        retries=True,
    ),
    Client(
        peer="LightRAG",
        script="with_lightrag",
        environment="rerank",
        ways=(Way(name="cohere"), Way(name="jina")),
        wrong_model="RetryError 404",
    ),
    Client(
        peer="tei-client",
        script="with_tei_client",
        environment="rerank",
        ways=(Way(name="rerank"), Way(name="rerank_raw", gets="raw")),
        sees_status=False,
    ),
    Client(
        peer="PyTriton",
        script="with_pytriton",
        environment="hosts",
        ways=(
            Way(name="model_client", asks="texts", gets="raw"),
            Way(name="futures", asks="texts", gets="raw"),
            Way(name="asynchronous", asks="texts", gets="raw"),
        ),
        wrong_model="PyTritonClientTimeoutError None",  # it waits for the model, and gives up
    ),
]
