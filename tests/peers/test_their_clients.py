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
from tests.peers.facts import check
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
Talking: TypeAlias = Callable[[Client], PeerClient]


@pytest.fixture(scope="session")
def served_decoder(decoder_path: Path) -> Iterator[str]:
    with RewardServer(decoder_path) as server:
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
                running[client.script] = stack.enter_context(PeerClient(client.script, environment(client.environment)))
            return running[client.script]

        yield to


@pytest.mark.parametrize(("client", "way"), WAYS)
def test_a_decoder_s_scores_are_the_local_provider_s(
    client: Client, way: Way, talking: Talking, served_decoder: str, decoder_path: Path, decoder: rm.Provider
) -> None:
    peer = talking(client)
    rows = {"conversations": samples.conversations(), "texts": [*samples.texts(), *samples.conversations()]}
    asked = rows.get(way.asks, samples.texts())
    texts = [decoder.render(sample) for sample in asked] if way.asks == "texts" else []
    got = scores(peer, way, served_decoder, str(decoder_path), asked, texts)
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
def test_nothing_to_score_is_an_error(client: Client, talking: Talking, served_decoder: str, decoder_path: Path) -> None:
    if client.empty is None:
        pytest.skip("the client does not send it")
    with pytest.raises(ClientFailed) as failed:
        few_scores(talking(client), client.ways[0], served_decoder, str(decoder_path), ())
    assert failed.value.what == client.empty


@EACH
def test_a_client_goes_on_after_a_restart(client: Client, environment: Callable[[str], Path], decoder_path: Path) -> None:
    way, model = client.ways[0], str(decoder_path)
    with RewardServer(decoder_path) as server, PeerClient(client.script, environment(client.environment)) as peer:
        before = few_scores(peer, way, server.url, model)
        server.stop()
        with pytest.raises(ClientFailed):
            few_scores(peer, way, server.url, model)
        server.start()
        assert few_scores(peer, way, server.url, model) == before


@EACH
def test_a_busy_server_costs_time_or_an_error_but_never_a_number(client: Client, environment: Callable[[str], Path]) -> None:
    way, count, spec = client.ways[0], 6, "tests.peers.slow_reward:reward"

    def several(peer: PeerClient, url: str) -> list[list[float] | ClientFailed]:
        answers: list[list[float] | ClientFailed] = []
        for _ in range(5):
            try:
                answers.append(few_scores(peer, way, url, spec))
            except ClientFailed as error:
                answers.append(error)
        return answers

    with ExitStack() as stack:
        server = stack.enter_context(RewardServer(spec, "--max-queue", "12"))
        peers = [stack.enter_context(PeerClient(client.script, environment(client.environment))) for _ in range(count)]
        pool = stack.enter_context(ThreadPoolExecutor(count))
        answers = [answer for some in pool.map(lambda peer: several(peer, server.url), peers) for answer in some]
    errors = [answer for answer in answers if isinstance(answer, ClientFailed)]
    right = activated(way, np.array([len(text) / 100 for text in FEW]))
    for answer in answers:
        assert isinstance(answer, ClientFailed) or answer == pytest.approx(right)
    assert {error.status for error in errors} <= {429, 503}, errors
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
