"""What our client asks of each server of another project, and what it must get."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import httpx2

from tests.peers.server import Peer
from tests.peers.servers import infinity, open_inference, openrlhf, swift, vllm

Rows: TypeAlias = Literal["texts", "texts that end with EOS", "pairs"]
"""Texts as they are, texts that end with EOS, or pairs of texts."""


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way in which our client is set.

    Args:
        compared: What it is, for the table.
        spec: The keys of its spec beside the URL and the tokenizer.
        samples: Which of the samples are scored.
        read: Which token the decoder is read at, here and there.
        has_tokenizer: Whether the model's tokenizer renders the samples here.
        tolerance: The largest difference from the local provider.
    """

    compared: str
    spec: Mapping[str, Any] = field(default_factory=dict)
    samples: Literal["all", "texts", "conversations"] = "all"
    read: Literal["last", "before-padding"] = "before-padding"
    has_tokenizer: bool = True
    tolerance: float = 1e-4


@dataclass(frozen=True, kw_only=True)
class Own:
    """How it is asked by hand, for its own numbers, which must be those of transformers.

    Args:
        rows: What it is asked for.
        ask: Has them scored.
    """

    rows: Rows
    ask: Callable[[httpx2.Client, Any], Sequence[float]]


@dataclass(frozen=True, kw_only=True)
class Served:
    """A model on a server.

    Args:
        peer: The server.
        model: The model.
        ways: How our client asks it.
        own: How it is asked by hand.
        refused: Settings with which the client refuses to send the samples, as another number would come back, and why: a part of the
            message.
        wrong_model: Settings of a client that asks for a model that is not there, and a part of the message.
        fails_at_empty: Whether a text of no tokens must be an error.
        keeps_its_port: Whether it listens where it is told to; else it takes the next port while the last server's is still closing.
    """

    peer: Peer
    model: Literal["decoder", "cross-encoder"]
    ways: tuple[Way, ...] = ()
    own: Own | None = None
    refused: tuple[tuple[Way, str], ...] = ()
    wrong_model: tuple[Mapping[str, Any], str] | None = None
    fails_at_empty: bool = True
    keeps_its_port: bool = True


BOTH_READS = (
    Way(compared="read before padding"),
    Way(compared="read at the last token", read="last"),
)
_POOLING = {"protocol": {"name": "vllm", "endpoint": "pooling"}}
_SCORE = {"protocol": {"name": "vllm", "endpoint": "score"}}
_CLOSED_PAIRS = (
    Way(compared="pairs at /score, no tokenizer here", spec={**_SCORE, "pair": True}, samples="texts", has_tokenizer=False),
    Way(compared="pairs", samples="texts"),
)
_OIP = {"protocol": {"name": "oip", "reads": "before-padding"}}

SERVED = [
    Served(
        peer=vllm.PEER,
        model="decoder",
        ways=(
            *BOTH_READS,
            Way(compared="read before padding, /pooling", spec=_POOLING),
            Way(compared="texts at /score, no tokenizer here", spec=_SCORE, samples="texts", has_tokenizer=False),
        ),
        own=Own(rows="texts that end with EOS", ask=vllm.texts),
        wrong_model=({"protocol": {"name": "vllm", "model": "another"}}, "another"),
    ),
    Served(
        peer=vllm.PEER,
        model="cross-encoder",
        ways=_CLOSED_PAIRS,
        own=Own(rows="pairs", ask=vllm.pairs),
        fails_at_empty=False,
    ),
    Served(peer=vllm.OLDER, model="cross-encoder", ways=_CLOSED_PAIRS, fails_at_empty=False),
    Served(
        peer=openrlhf.PEER,
        model="decoder",
        ways=tuple(replace(way, spec={"protocol": {"name": "openrlhf", "reads": "last"}}) for way in BOTH_READS),
        own=Own(rows="texts that end with EOS", ask=openrlhf.texts),
    ),
    Served(
        peer=openrlhf.LITSERVE,
        model="decoder",
        ways=BOTH_READS[:1],
        own=Own(rows="texts", ask=openrlhf.texts),
        refused=((BOTH_READS[1], "reads: last"),),
    ),
    Served(
        peer=openrlhf.BENTOML,
        model="decoder",
        ways=tuple(replace(way, spec={"protocol": "openrlhf"}) for way in BOTH_READS[:1]),
        own=Own(rows="texts", ask=openrlhf.texts),
        refused=((replace(BOTH_READS[1], spec={"protocol": "openrlhf"}), "reads: last"),),
    ),
    Served(
        peer=open_inference.MLSERVER,
        model="decoder",
        ways=BOTH_READS[:1],
        own=Own(rows="texts", ask=open_inference.texts),
        refused=((BOTH_READS[1], "read: last"),),
        wrong_model=({"protocol": {"name": "oip", "model": "another"}}, "reward_model"),
    ),
    Served(
        peer=open_inference.KSERVE,
        model="decoder",
        ways=BOTH_READS[:1],
        own=Own(rows="texts", ask=open_inference.texts),
        refused=((BOTH_READS[1], "read: last"),),
        wrong_model=({"protocol": {"name": "oip", "model": "another"}}, "reward_model"),
    ),
    Served(
        peer=open_inference.PYTRITON,
        model="decoder",
        ways=BOTH_READS[:1],
        own=Own(rows="texts", ask=open_inference.texts),
        refused=((BOTH_READS[1], "read: last"),),
        wrong_model=({"protocol": {"name": "oip", "model": "another"}}, "another"),
    ),
    Served(
        peer=swift.PEER,
        model="decoder",
        ways=(
            Way(compared="conversations that it renders itself", samples="conversations", has_tokenizer=False),
            Way(compared="conversations, tokenizer here", samples="conversations"),
        ),
        wrong_model=({"protocol": {"name": "swift", "model": "another"}}, "another"),
        fails_at_empty=False,
        keeps_its_port=False,
    ),
    Served(peer=infinity.PEER, model="cross-encoder", own=Own(rows="pairs", ask=infinity.pairs)),
]
