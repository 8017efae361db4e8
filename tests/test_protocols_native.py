"""rm-plugins' own protocol: what is sent, and what is refused of what comes back."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

import rm_plugins as rm
from rm_plugins.errors import AnswerError, DataError, ScoringError, UnsupportedError
from rm_plugins.protocols import Item, Native, Response, ServerFacts
from rm_plugins.samples import RenderedSample
from rm_plugins.testing import check_protocol
from tests.fake_servers.native import native
from tests.fake_servers.openrlhf import openrlhf
from tests.servers import Conversation

ITEMS = [
    Item(rm.Sample("2+2?", "4")),
    Item(rm.Sample("2+2?", "five")),
    Item(rm.Sample([{"role": "user", "content": "Hi"}], "Hello")),
]
FACTS = ServerFacts(Native(), "a server")


def length(sample: rm.Sample) -> float:
    return float(len(sample.completion))


def body(items: Sequence[Item], columns: Sequence[str] | None = None, facts: Mapping[str, Any] | None = None) -> Any:
    server = ServerFacts(Native(), "a server", facts=facts or {})
    found = Native(columns=columns).request(items, server, "r1").body
    return json.loads(json.dumps(found, allow_nan=False))


def changed(change: Callable[[Any], Any]) -> Response:
    found = json.loads(Conversation(Native(), native(length)).response(ITEMS).body)
    change(found)
    return Response(200, json.dumps(found).encode())


def test_the_contract_holds() -> None:
    found = check_protocol(Native(), Conversation(Native(), native(length)).ask, ITEMS)
    assert found.values == [1.0, 4.0, 1.0]


def test_the_server_says_what_it_is() -> None:
    talk = Conversation(Native(), native(length))
    assert talk.detected() == "rm-plugins 0.1.0 with helpful (0123456789ab)"
    server = talk.prepared()
    assert (server.description, server.max_items) == ("rm-plugins 0.1.0 with helpful (0123456789ab)", 4)


def test_abstentions_failures_details_and_the_fingerprint_come_back() -> None:
    rewards = {"4": 1.5, "five": None, "Hello": "no such city"}
    found = Conversation(Native(), native(lambda sample: rewards[str(completion(sample))])).answer(ITEMS)
    assert found.values == [1.5, None, None]
    assert found.errors == {2: "no such city"}
    assert found.details == {"std": [0.5, None, None]}
    assert found.fingerprint == "0123456789abcdef" * 4


def completion(sample: rm.Sample) -> str:
    return sample.completion if isinstance(sample.completion, str) else str(sample.completion[-1]["content"])


def test_all_columns_go_along_unless_they_are_listed() -> None:
    item = Item(rm.Sample("Q", "A", {"answer": 4, "source": "web", "tools": [{"name": "f"}]}))
    assert body([item])["samples"] == [
        {"prompt": "Q", "completion": "A", "columns": {"answer": 4, "source": "web", "tools": [{"name": "f"}]}}
    ]
    assert body([item], ["answer", "absent"])["samples"][0]["columns"] == {"answer": 4}
    assert body([item], [])["samples"] == [{"prompt": "Q", "completion": "A"}]


def test_columns_of_numpy_and_dates_are_sent_as_json_has_them() -> None:
    columns = {
        "integer": np.int64(3),
        "single": np.float32(0.5),
        "double": np.float64(0.25),
        "truth": np.bool_(True),
        "array": np.arange(4).reshape(2, 2),
        "day": datetime.date(2026, 1, 2),
        "moment": datetime.datetime(2026, 1, 2, 3, 4),
        "instant": np.datetime64("2026-01-02"),
        "nested": {"tuple": (1, None)},
    }
    assert body([Item(rm.Sample("Q", "A", columns))])["samples"][0]["columns"] == {
        "integer": 3,
        "single": 0.5,
        "double": 0.25,
        "truth": True,
        "array": [[0, 1], [2, 3]],
        "day": "2026-01-02",
        "moment": "2026-01-02T03:04:00",
        "instant": "2026-01-02",
        "nested": {"tuple": [1, None]},
    }


@pytest.mark.parametrize("value", [object(), b"bytes", {1: "a"}, {"a", "b"}, float("nan"), np.array([1.0, np.inf]), [object()]])
def test_a_column_without_a_form_in_json_is_named(value: object) -> None:
    item = Item(rm.Sample("Q", "A", {"answer": 4, "image": value}))
    with pytest.raises(DataError, match=r"the column 'image' holds .* which JSON cannot represent\. List the columns"):
        body([item])
    assert body([item], ["answer"])["samples"][0]["columns"] == {"answer": 4}


def test_token_ids_are_sent_where_there_are_any() -> None:
    assert body([Item(rm.Sample("Q", "A", {"x": object()}), "QA", (5, 6))])["samples"] == [{"token_ids": [5, 6]}]


def test_rendered_samples_are_sent_as_they_are() -> None:
    items = [Item(RenderedSample.of("<u>Q<a>A", add_special_tokens=False)), Item(RenderedSample.of([1, 2]))]
    assert body(items)["samples"] == [{"text": "<u>Q<a>A", "add_special_tokens": False}, {"token_ids": [1, 2]}]


@pytest.mark.parametrize("item", [Item(rm.Sample("Q", "A"), None, (5, 6)), Item(RenderedSample.of("QA"))])
def test_a_reward_that_is_no_model_is_sent_nothing_rendered(item: Item) -> None:
    with pytest.raises(DataError, match="leave `tokenizer` out"):
        body([item], facts={"rendered": False})


def test_entries_in_another_order_are_put_right() -> None:
    shuffled = changed(lambda found: found["rewards"].reverse())
    assert Native().answer(shuffled, ITEMS, FACTS, "request-1").values == [1.0, 4.0, 1.0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: found.update(id="request-2"), "the request 'request-2', not for 'request-1'; answers were mixed up"),
        (lambda found: found.pop("id"), "mixed up"),
        (lambda found: found["rewards"].pop(), "2 entries for 3 items"),
        (lambda found: found["rewards"].append({"index": 3, "reward": 1.0}), "4 entries for 3 items"),
        (lambda found: found["rewards"][0].update(index=1), "each of 0 to 2 was expected once"),
        (lambda found: found["rewards"][0].update(reward="1.0"), "'1.0'; a number was expected"),
        (lambda found: found["rewards"][0].update(reward=True), "True; a number was expected"),
        (lambda found: found["rewards"][0].update(reward=float("inf")), "inf; a score must be finite"),
        (lambda found: found["rewards"][0].pop("reward"), "no 'reward' for item 0"),
        (lambda found: found["rewards"][0].update(error="no"), "both the reward 1.0 and the error 'no'"),
        (lambda found: found["details"]["std"].pop(), r"details\['std'\] .* a list of 3 numbers or nulls"),
        (lambda found: found["details"]["std"].__setitem__(1, "x"), r"details\['std'\]\[1\] is 'x'"),
        (lambda found: found.pop("rewards"), "rewards is None"),
    ],
)
def test_an_answer_that_breaks_the_protocol_is_refused(change: Callable[[Any], Any], message: str) -> None:
    response = changed(change)
    with pytest.raises(AnswerError, match=message):
        Native().answer(response, ITEMS, FACTS, "request-1")


@pytest.mark.parametrize("answer", [b"[]", b"null", b"", b"<html>", b'{"rewards": [{"index"'])
def test_an_answer_of_another_form_is_refused(answer: bytes) -> None:
    with pytest.raises(AnswerError, match="the answer is"):
        Native().answer(Response(200, answer), ITEMS, FACTS, "request-1")


def test_a_server_that_is_none_of_ours_is_told_apart() -> None:
    talk = Conversation(Native(), openrlhf())
    assert talk.detected() is None
    with pytest.raises(UnsupportedError, match=r"answered 404 .* does not speak 'rm-plugins'.*`protocol: auto` detect it"):
        talk.prepared()


def test_a_missing_key_is_said_to_be_that() -> None:
    with pytest.raises(UnsupportedError, match=r"answered 401 \(this server asks for a key\): the server requires a key"):
        Conversation(Native(), native(length, key="secret")).prepared()


def test_a_server_that_is_loading_may_be_asked_again() -> None:
    with pytest.raises(ScoringError, match=r"answered 503 \(loading\): the server is not ready"):
        Conversation(Native(), native(length, status=503)).prepared()


def test_another_version_of_the_protocol_is_named() -> None:
    with pytest.raises(
        UnsupportedError, match="names the protocol 'rm-plugins/2'; this version of rm-plugins speaks 'rm-plugins/1'"
    ):
        Conversation(Native(), native(length, info={"protocol": "rm-plugins/2"})).prepared()


def test_a_reward_that_compares_is_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"helpful .*compares the samples of a group .*transform: rank-in-group"):
        Conversation(Native(), native(length, info={"compares": True})).prepared()


def test_a_request_that_is_too_large_is_to_be_split() -> None:
    response = Conversation(Native(), native(length)).response(ITEMS * 2)
    assert Native().failure(response, 6) == "too-large"
    assert Native().message(response) == "at most 4 samples"
