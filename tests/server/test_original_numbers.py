"""Whose number each endpoint of another server gives, by kind of model: the table in docs/serving.md, measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import rm_plugins as rm
from rm_plugins.providers.function import FunctionProvider
from tests.conftest import MakeFolder
from tests.drop_ins import served

PAGE = Path(__file__).parents[2] / "docs" / "serving.md"
QUERY = "Is the sea salty?"
DOCUMENTS = ["Yes, it is.", "Four is a colour.", "", "The sea is blue <|end|>"]
TEXTS = ["Is the sea salty? Yes.<|end|>", "Four is a colour.<|end|>"]
CHAT = [{"role": "user", "content": QUERY}, {"role": "assistant", "content": "Yes, it is."}]
PAIRS = [(QUERY, document) for document in DOCUMENTS]


@dataclass
class Kind:
    """A served reward, and what another server computes with its model: from token ids as a batch of one, a number; or nothing."""

    reward: rm.Provider
    tokenizer: Any = None
    run: Callable[[dict[str, torch.Tensor]], float] | None = None

    def texts(self, texts: Sequence[str], *, add_special_tokens: bool = True) -> list[float] | None:
        return self._numbers([[text] for text in texts], add_special_tokens=add_special_tokens)

    def pairs(self, *, in_a_batch: bool = False) -> list[float] | None:
        """Of two texts in one call, which leaves an empty second one out, as vLLM does; or as a batch, which does not, as TEI."""
        if not in_a_batch or self.run is None:
            return self._numbers(PAIRS)
        return [self.run(self.tokenizer([one], [other], return_tensors="pt")) for one, other in PAIRS]

    def chat(self) -> list[float] | None:
        if self.tokenizer is None or not self.tokenizer.chat_template:
            return None
        return self.texts([self.tokenizer.apply_chat_template(CHAT, tokenize=False)], add_special_tokens=False)

    def token_ids(self) -> list[list[int]]:
        return self.tokenizer(TEXTS)["input_ids"] if self.tokenizer else [[5, 6], [7]]

    def rewards(self, samples: Sequence[rm.Sample]) -> list[float]:
        return [float(value) for value in self.reward.score(samples).values]

    def _numbers(self, rows: Sequence[Sequence[str]], **settings: Any) -> list[float] | None:
        if self.run is None:
            return None
        return [self.run(self.tokenizer(*row, return_tensors="pt", **settings)) for row in rows]


@pytest.fixture(scope="module")
def kinds(tiny_encoder: MakeFolder, tiny_decoder: MakeFolder) -> dict[str, Kind]:
    encoder, decoder = tiny_encoder(pairs=True), tiny_decoder(pad="<|end|>")

    def of_encoder(pair: bool) -> Kind:
        model = AutoModelForSequenceClassification.from_pretrained(encoder, dtype=torch.float32).eval()
        return Kind(
            rm.load(encoder, pair=pair),
            AutoTokenizer.from_pretrained(encoder),
            lambda inputs: float(model(**inputs).logits[0, 0].item()),
        )

    def of_decoder(read: str, *, pair: bool = False) -> Kind:
        model = AutoModelForSequenceClassification.from_pretrained(decoder, dtype=torch.float32).eval()

        def last(inputs: dict[str, torch.Tensor]) -> float:  # as vLLM and OpenRLHF read it
            return float(model.score(model.model(inputs["input_ids"]).last_hidden_state[0, -1]).item())

        return Kind(rm.load(decoder, read=read, pair=pair), AutoTokenizer.from_pretrained(decoder), last)

    return {
        "cross-encoder, `pair: true`": of_encoder(True),
        "encoder, `pair: false`": of_encoder(False),
        "decoder, `pair: true`, `read: last`": of_decoder("last", pair=True),
        "decoder, `read: last`": of_decoder("last"),
        "decoder, `read: before-padding`": of_decoder("before-padding"),
        "anything else": Kind(FunctionProvider(function=of_length)),
    }


def of_length(samples: Sequence[rm.Sample]) -> list[float]:
    return [len(sample.completion_text) / 7 - len(str(sample.prompt)) / 90 for sample in samples]


@pytest.fixture(scope="module")
def clients(kinds: dict[str, Kind]) -> Iterator[dict[str, httpx2.Client]]:
    with ExitStack() as stack:
        yield {name: stack.enter_context(served(kind.reward)) for name, kind in kinds.items()}


Answered = tuple[list[float] | None, list[float] | None, list[rm.Sample]]
"""What the endpoint answered, None where it refused; what the original computes; and the samples that the reward is of otherwise."""
SENT_TEXTS = [rm.Sample("", text) for text in TEXTS]
SENT_PAIRS = [rm.Sample(*pair) for pair in PAIRS]


def answered(client: httpx2.Client, path: str, body: dict[str, Any], read: Callable[[Any], list[float]]) -> list[float] | None:
    """The numbers of an answer, which are those of the same request for the sigmoid, too; None where it is refused."""
    response = client.post(path, json={**body, "use_activation": False, "raw_scores": True})
    if response.status_code in (400, 422):
        return None
    assert response.status_code == 200, response.text
    numbers = read(response.json())
    if path not in ("/v1/embeddings", "/get_reward"):  # which know no other
        squashed = read(client.post(path, json=body).json())
        assert squashed == pytest.approx([1 / (1 + math.exp(-number)) for number in numbers])
    return numbers


def rows(name: str, *inner: Any) -> Callable[[Any], list[float]]:
    def read(found: Any) -> list[float]:
        numbers = []
        for entry in found["data"]:
            value = entry[name]
            for key in inner:
                value = value[key]
            numbers.append(value)
        return numbers

    return read


def by_index(name: str) -> Callable[[Any], list[float]]:
    def read(found: Any) -> list[float]:
        entries = found["results"] if isinstance(found, dict) else found
        numbers = [entry[name] for entry in entries]
        assert numbers == sorted(numbers, reverse=True)
        return [entry[name] for entry in sorted(entries, key=lambda entry: entry["index"])]

    return read


def first_score(found: Any) -> list[float]:
    return [entries[0]["score"] for entries in found]


REQUESTS: dict[str, Callable[[httpx2.Client, Kind], Sequence[Answered]]] = {
    "`/classify`, `/pooling`, `/v1/embeddings`: text": lambda client, kind: [
        (answered(client, path, {"input": TEXTS}, read), kind.texts(TEXTS), SENT_TEXTS)
        for path, read in (
            ("/classify", rows("probs", 0)),
            ("/pooling", rows("data", 0)),
            ("/v1/embeddings", rows("embedding", 0)),
        )
    ],
    "`/classify`, `/pooling`, `/v1/embeddings`: token ids": lambda client, kind: [
        (answered(client, path, {"input": kind.token_ids()}, read), kind.texts(TEXTS), SENT_TEXTS)
        for path, read in (
            ("/classify", rows("probs", 0)),
            ("/pooling", rows("data", 0)),
            ("/v1/embeddings", rows("embedding", 0)),
        )
    ],
    "`/classify`, `/pooling`: conversation": lambda client, kind: [
        (answered(client, path, {"messages": CHAT}, read), kind.chat(), [rm.Sample(CHAT[:1], CHAT[1:])])
        for path, read in (("/classify", rows("probs", 0)), ("/pooling", rows("data", 0)))
    ],
    "`/score`, `/rerank` of vLLM": lambda client, kind: [
        (answered(client, "/score", {"queries": QUERY, "documents": DOCUMENTS}, rows("score")), kind.pairs(), SENT_PAIRS),
        (
            answered(client, "/rerank", {"query": QUERY, "documents": DOCUMENTS}, by_index("relevance_score")),
            kind.pairs(),
            SENT_PAIRS,
        ),
    ],
    "`/predict`: text": lambda client, kind: [
        (answered(client, path, {"inputs": [[text] for text in TEXTS]}, first_score), kind.texts(TEXTS), SENT_TEXTS)
        for path in ("/predict", "/")
    ],
    "`/predict`: pairs; `/rerank` of TEI": lambda client, kind: [
        (
            answered(client, "/predict", {"inputs": [[*pair] for pair in PAIRS]}, first_score),
            kind.pairs(in_a_batch=True),
            SENT_PAIRS,
        ),
        (
            answered(client, "/rerank", {"query": QUERY, "texts": DOCUMENTS}, by_index("score")),
            kind.pairs(in_a_batch=True),
            SENT_PAIRS,
        ),
    ],
    "`/get_reward`": lambda client, kind: [
        (
            answered(client, "/get_reward", {"query": TEXTS, "prompts": ["", ""]}, lambda found: list(found["rewards"])),
            kind.texts(TEXTS, add_special_tokens=False),
            [rm.Sample("", text.removesuffix("<|end|>")) for text in TEXTS],
        )
    ],
}


def whose(found: Answered, kind: Kind) -> str:
    """``same`` for the number of the original, ``reward`` for the reward's own, where that is another one."""
    numbers, original, samples = found
    if numbers is None:
        return "refused"
    if original is not None and numbers == pytest.approx(original, abs=1e-4):
        return "same"
    if original is not None:
        assert max(abs(one - other) for one, other in zip(numbers, original, strict=True)) > 1e-2
    if numbers == pytest.approx(kind.rewards(samples), abs=1e-4):
        return "reward"
    return "another"


def documented() -> dict[str, dict[str, str]]:
    """The table of the page: by request and kind, whose number it is."""
    lines = PAGE.read_text().splitlines()
    start = next(row for row, line in enumerate(lines) if line.startswith("| request |"))
    table = [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in takewhile(lambda line: line.startswith("|"), lines[start:])
    ]
    return {cells[0]: dict(zip(table[0][1:], cells[1:], strict=True)) for cells in table[2:]}


@pytest.mark.parametrize("request_name", REQUESTS)
def test_the_table_says_whose_number_each_endpoint_gives(
    request_name: str, kinds: dict[str, Kind], clients: dict[str, httpx2.Client]
) -> None:
    measured = {}
    for name, kind in kinds.items():
        found = {whose(answer, kind) for answer in REQUESTS[request_name](clients[name], kind)}
        assert len(found) == 1, (request_name, name, found)
        measured[name] = found.pop()
    assert documented()[request_name] == measured


def test_the_table_has_no_further_rows() -> None:
    assert [*documented()] == [*REQUESTS]


def test_an_encoder_of_which_nothing_tells_how_it_takes_pairs_refuses_them(tiny_encoder: MakeFolder) -> None:
    with served(rm.load(tiny_encoder(pairs=True))) as client:
        for path, body in (
            ("/score", {"queries": QUERY, "documents": DOCUMENTS}),
            ("/rerank", {"query": QUERY, "documents": DOCUMENTS}),
            ("/rerank", {"query": QUERY, "texts": DOCUMENTS}),
            ("/predict", {"inputs": [QUERY, DOCUMENTS[0]]}),
            ("/v1/rewards", {"samples": [{"prompt": QUERY, "completion": "Yes."}]}),
        ):
            response = client.post(path, json=body)
            assert response.status_code in (400, 422)
            assert "Set `pair: true` or `pair: false` in the spec that is served" in response.text
        assert client.post("/classify", json={"input": TEXTS}).status_code == 200
        assert client.get("/v1/info").json()["pair"] is None


def test_the_server_says_which_token_is_read(kinds: dict[str, Kind], clients: dict[str, httpx2.Client]) -> None:
    expected = [{"": None}, {"": None}, {"": "last"}, {"": "last"}, {"": "before-padding"}, {}]
    for client, reads in zip(clients.values(), expected, strict=True):
        assert client.get("/v1/info").json()["reads"] == client.get("/info").json()["reads"] == reads
    assert [client.get("/v1/info").json()["pair"] for client in clients.values()] == [True, False, True, False, False, False]
