"""What each client of another project can ask of our server, and what it gets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


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
        ways: How it can ask.
        wrong_model: What it raises where the model is another: the class of the error and the status that it knows of.
        empty: What it raises where there is nothing to score.
        retries: Whether it comes again by itself where the server is busy.
    """

    peer: str
    script: str
    environment: str = "clients"
    ways: tuple[Way, ...]
    wrong_model: str | None = None
    empty: str | None = None
    retries: bool = False


CLIENTS = [
    Client(
        peer="cohere",
        script="with_cohere",
        ways=(Way(name="rerank_v1"), Way(name="rerank_v2"), Way(name="rerank_v2", options={"max_tokens_per_doc": 4096})),
        wrong_model="NotFoundError 404",
        empty="BadRequestError 400",
    ),
]
