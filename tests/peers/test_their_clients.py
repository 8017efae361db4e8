"""Clients of other projects ask our server: the same numbers, order and errors as where they come from; only the URL differs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
from numpy.typing import NDArray

import rm_plugins as rm
from tests.peers import samples
from tests.peers.client import ClientFailed, PeerClient
from tests.peers.environments import missing
from tests.peers.facts import TOLERANCE, check
from tests.peers.originals import Original, sigmoid
from tests.peers.their_clients import CLIENTS, Client, Way
from tests.servers import RewardServer

WAYS = [
    pytest.param(client, way, id=f"{client.script}-{way.name}-{number}")
    for client in CLIENTS
    for number, way in enumerate(client.ways)
]
PAIR_WAYS = [each for each in WAYS if each.id and each.values[1].asks in ("documents", "pairs")]  # type: ignore[union-attr]
EACH = pytest.mark.parametrize("client", CLIENTS, ids=[client.script for client in CLIENTS])
FEW = ("four", "five is not right", "no")
SLOW = "tests.peers.slow_reward:reward"
Talking: TypeAlias = Callable[[Client], PeerClient]


@pytest.fixture(scope="session")
def slow_server(asked_for: None) -> Iterator[str]:
    """A server of a reward that takes 50 ms a sample, at which no more than 16 samples wait."""
    with RewardServer(SLOW, "--max-queue", "16") as server:
        yield server.url


@pytest.fixture(scope="session")
def served_decoder(decoder_spec: Path) -> Iterator[str]:
    with RewardServer(decoder_spec) as server:
        yield server.url


@pytest.fixture(scope="session")
def served_cross_encoder(cross_encoder_path: Path) -> Iterator[str]:
    with RewardServer(cross_encoder_path) as server:
        yield server.url


@pytest.fixture(scope="session")
def talking(environment: Callable[[str], Path]) -> Iterator[Talking]:
    """The one process of a client that all tests of it ask."""
    running: dict[str, PeerClient] = {}
    with ExitStack() as stack:

        def to(client: Client) -> PeerClient:
            if client.script not in running:
                running[client.script] = stack.enter_context(
                    PeerClient(client.script, environment(client.environment), **client.variables)
                )
            return running[client.script]

        yield to


@pytest.mark.parametrize(("client", "way"), WAYS)
def test_a_decoder_s_scores_are_the_local_provider_s(
    client: Client, way: Way, talking: Talking, served_decoder: str, decoder_spec: Path, decoder: rm.Provider
) -> None:
    peer = talking(client)
    rows = {"conversations": samples.conversations(), "texts": [*samples.texts(), *samples.conversations()]}
    asked = rows.get(way.asks, samples.texts())
    texts = [decoder.render(sample) for sample in asked] if way.asks == "texts" else []
    got = scores(peer, way, served_decoder, str(decoder_spec), asked, texts)
    check(got, activated(way, decoder.score(asked).values), **fact(client, peer, way, "decoder"))


@pytest.mark.parametrize(("client", "way"), PAIR_WAYS)
def test_a_cross_encoder_reads_pairs_as_the_original_does(
    client: Client,
    way: Way,
    talking: Talking,
    served_cross_encoder: str,
    cross_encoder_path: Path,
    original_cross_encoder: Original,
) -> None:
    peer = talking(client)
    got = scores(peer, way, served_cross_encoder, str(cross_encoder_path), samples.texts())
    right = original_cross_encoder.pairs([(str(sample.prompt), str(sample.completion)) for sample in samples.texts()])
    check(got, activated(way, right), **fact(client, peer, way, "cross-encoder"))


@EACH
def test_another_model_is_an_error_that_says_so(client: Client, talking: Talking, served_decoder: str) -> None:
    if client.wrong_model is None:
        pytest.skip("the client sends no model")
    with pytest.raises(ClientFailed) as failed:
        few_scores(talking(client), client.ways[0], served_decoder, "another")
    assert failed.value.what == client.wrong_model


@EACH
def test_nothing_to_score_is_an_error(client: Client, talking: Talking, served_decoder: str, decoder_spec: Path) -> None:
    if client.empty is None:
        pytest.skip("the client does not send it")
    with pytest.raises(ClientFailed) as failed:
        few_scores(talking(client), client.ways[0], served_decoder, str(decoder_spec), ())
    assert failed.value.what == client.empty


def test_clients_go_on_after_a_restart(talking: Talking, decoder_spec: Path) -> None:
    peers = {client.script: (talking(client), client.ways[0]) for client in CLIENTS if not missing(client.environment)}
    if not peers:
        pytest.skip("no client is installed")

    def asked(name: str) -> list[float] | ClientFailed:
        peer, way = peers[name]
        try:
            return few_scores(peer, way, server.url, str(decoder_spec))
        except ClientFailed as error:
            return error

    with RewardServer(decoder_spec) as server, ThreadPoolExecutor(len(peers)) as pool:
        before = dict(zip(peers, pool.map(asked, peers), strict=True))
        server.stop()
        meanwhile = dict(zip(peers, pool.map(asked, peers), strict=True))
        server.start()
        after = dict(zip(peers, pool.map(asked, peers), strict=True))
    assert {name: answer for name, answer in before.items() if isinstance(answer, ClientFailed)} == {}
    assert {name: answer for name, answer in meanwhile.items() if not isinstance(answer, ClientFailed)} == {}
    # Not the same bits: which clients' texts share a batch depends on when they arrive.
    assert after == {name: pytest.approx(answer, abs=TOLERANCE) for name, answer in before.items()}


@EACH
def test_a_busy_server_costs_time_or_an_error_but_never_a_number(
    client: Client, environment: Callable[[str], Path], slow_server: str
) -> None:
    way, texts = client.ways[0], [f"{'four ' * number}times" for number in range(1, 13)]

    def twice(peer: PeerClient) -> list[list[float] | ClientFailed]:
        answers: list[list[float] | ClientFailed] = []
        for _ in range(2):
            try:
                answers.append(few_scores(peer, way, slow_server, SLOW, texts))
            except ClientFailed as error:
                answers.append(error)
        return answers

    with ExitStack() as stack:
        python = environment(client.environment)
        peers = [stack.enter_context(PeerClient(client.script, python, **client.variables)) for _ in range(3)]
        pool = stack.enter_context(ThreadPoolExecutor(len(peers)))
        answers = [answer for some in pool.map(twice, peers) for answer in some]
    errors = [answer for answer in answers if isinstance(answer, ClientFailed)]
    right = activated(way, np.array([len(text) / 100 for text in texts]))
    for answer in answers:
        assert isinstance(answer, ClientFailed) or answer == pytest.approx(right)
    assert {error.status for error in errors} <= ({429, 503} if client.sees_status else {None}), errors
    assert len(errors) < len(answers), errors
    assert not (client.retries and errors), errors


def scores(
    peer: PeerClient, way: Way, url: str, model: str, rows: Sequence[rm.Sample], texts: Sequence[str] = ()
) -> list[float]:
    """What the client gets for samples, in the form in which it sends them."""
    if way.asks == "documents":
        return [
            score
            for query, some in samples.groups()
            for score in peer.ask(way.name, **where(way, url, model), query=query, documents=some)
        ]
    given: dict[str, Any] = {
        "texts": texts,
        "pairs": [[sample.prompt, sample.completion] for sample in rows],
        "conversations": [samples.messages(sample) for sample in rows],
    }
    return peer.ask(way.name, **where(way, url, model), **{way.asks: given[way.asks]})


def few_scores(peer: PeerClient, way: Way, url: str, model: str, texts: Sequence[str] = FEW) -> list[float]:
    """What the client gets for a few short texts, in the form in which it sends them."""
    given: dict[str, dict[str, Any]] = {
        "documents": {"query": "2+2?", "documents": texts},
        "texts": {"texts": texts},
        "pairs": {"pairs": [["2+2?", text] for text in texts]},
        "conversations": {"conversations": [[{"role": "user", "content": text}] for text in texts]},
    }
    return peer.ask(way.name, **where(way, url, model), **given[way.asks])


def where(way: Way, url: str, model: str) -> dict[str, Any]:
    return {"url": f"{url}{way.path}", "model": model, **way.options}


def activated(way: Way, values: NDArray[np.float64]) -> NDArray[np.float64]:
    return sigmoid(values) if way.gets == "sigmoid" else values


def fact(client: Client, peer: PeerClient, way: Way, model: str) -> dict[str, Any]:
    compared = " ".join([way.name, *way.options])
    return {
        "peer": client.peer,
        "version": peer.version,
        "direction": "its client, our server",
        "model": model,
        "compared": compared,
    }
