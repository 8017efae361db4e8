"""Clients of other projects that are light enough to be installed everywhere, against a served reward; `tests.peers` has the others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

import rm_plugins as rm
from tests.drop_ins import decoder, served
from tests.peers.client import ClientFailed, PeerClient
from tests.peers.environments import OWN, missing, python
from tests.peers.originals import sigmoid
from tests.peers.samples import messages
from tests.peers.their_clients import CLIENTS, Client, Way

OURS = [client for client in CLIENTS if client.environment == OWN]
SAMPLES = [rm.Sample("What is two and two?\n", text) for text in ("four", "five, I think", "Stars twinkle at night.", "4")]
CONVERSATIONS = [
    rm.Sample([{"role": "user", "content": "2+2?"}], [{"role": "assistant", "content": text}]) for text in ("4", "no")
]


@pytest.fixture(scope="module")
def reward(tmp_path_factory: pytest.TempPathFactory) -> rm.Provider:
    if reason := missing(OWN):
        pytest.skip(reason)
    return decoder(tmp_path_factory.mktemp("decoder"), adds_bos=False)


@pytest.fixture(scope="module")
def url(reward: rm.Provider) -> Iterator[str]:
    with served(reward) as client:
        yield str(client.base_url).rstrip("/")


@pytest.fixture(scope="module")
def peers(reward: rm.Provider) -> Iterator[dict[str, PeerClient]]:
    with ExitStack() as stack:
        yield {client.script: stack.enter_context(PeerClient(client.script, python(OWN))) for client in OURS}


@pytest.mark.parametrize(
    ("client", "way"),
    [
        pytest.param(client, way, id=f"{client.script}-{way.name}-{row}")
        for client in OURS
        for row, way in enumerate(client.ways)
    ],
)
def test_a_real_client_gets_the_reward_itself(
    client: Client, way: Way, reward: rm.Provider, url: str, peers: dict[str, PeerClient]
) -> None:
    rows = CONVERSATIONS if way.asks == "conversations" else SAMPLES
    given: dict[str, dict[str, Any]] = {
        "documents": {"query": rows[0].prompt, "documents": [sample.completion for sample in rows]},
        "pairs": {"pairs": [[sample.prompt, sample.completion] for sample in rows]},
        "texts": {"texts": [reward.render(sample) for sample in rows]} if way.asks == "texts" else {},
        "conversations": {"conversations": [messages(sample) for sample in rows]},
    }
    got = peers[client.script].ask(way.name, url=f"{url}{way.path}", model="tiny", **way.options, **given[way.asks])
    right = reward.score(rows).values
    assert got == pytest.approx(sigmoid(right) if way.gets == "sigmoid" else right, abs=1e-5)


@pytest.mark.parametrize("client", OURS, ids=[client.script for client in OURS])
def test_a_real_client_raises_its_own_error_for_another_model(client: Client, url: str, peers: dict[str, PeerClient]) -> None:
    way = client.ways[0]
    given: dict[str, Any] = {"query": "a", "documents": ["b"]} if way.asks == "documents" else {"texts": ["b"]}
    with pytest.raises(ClientFailed) as failed:
        peers[client.script].ask(way.name, url=f"{url}{way.path}", model="another", **given)
    assert failed.value.what == client.wrong_model
