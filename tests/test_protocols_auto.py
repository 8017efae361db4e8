"""Finding out which protocol a server speaks; protocols of plug-ins; and the check that their authors run."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, ClassVar

import pytest
from fastapi import FastAPI
from starlette.applications import Starlette

import rm_plugins as rm
from rm_plugins.errors import AnswerError, ScoringError, SpecError, UnsupportedError
from rm_plugins.protocols import (
    TEI,
    VLLM,
    Answer,
    Auto,
    Item,
    Native,
    OpenInference,
    OpenRLHF,
    Protocol,
    Request,
    Response,
    ServerFacts,
    SGLang,
    Swift,
)
from rm_plugins.registry import Registry, default_registry
from rm_plugins.spec import component
from rm_plugins.testing import check_protocol
from tests.fake_servers.judge import choice, judge
from tests.fake_servers.native import native
from tests.fake_servers.oip import oip
from tests.fake_servers.openrlhf import openrlhf
from tests.fake_servers.sglang import FakeSGLang
from tests.fake_servers.swift import swift
from tests.fake_servers.tei import FakeTEI
from tests.fake_servers.vllm import FakeVLLM
from tests.servers import Conversation

ITEMS = [Item(rm.Sample("2+2? ", "4"), "2+2? 4"), Item(rm.Sample("2+2? ", "five"), "2+2? five")]


def length(sample: rm.Sample) -> float:
    return float(len(sample.completion))


@pytest.mark.parametrize(
    ("app", "protocol", "description"),
    [
        (native(length), Native, "rm-plugins 0.1.0 with helpful (0123456789ab)"),
        (FakeVLLM("0.33.0"), VLLM, "vLLM 0.33.0 with reward"),
        (FakeSGLang(), SGLang, "SGLang"),
        (FakeTEI(), TEI, "TEI"),
        (oip(), OpenInference, "'reward_model' over the Open Inference Protocol (python)"),
        (openrlhf(), OpenRLHF, "openrlhf"),
        (swift(), Swift, "ms-swift with rm"),
    ],
)
def test_a_server_is_spoken_to_as_it_answers(
    app: Starlette, protocol: type[Protocol], description: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "rm_plugins")
    talk = Conversation(Auto(), app)
    server = talk.prepared()
    assert type(server.protocol) is protocol
    assert server.description.startswith(description)
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("rm_plugins")]
    assert ours[0].endswith(f"using the protocol {protocol.name!r}")


@pytest.mark.parametrize("app", [native(length), FakeVLLM(), FakeSGLang(), FakeTEI(), oip(), openrlhf()])
def test_the_contract_holds_for_what_was_found(app: Starlette) -> None:
    assert check_protocol(Auto(), Conversation(Auto(), app).ask, ITEMS).values


def test_the_contract_holds_for_a_server_of_conversations() -> None:
    items = [Item(rm.Sample([{"role": "user", "content": "Q"}], text)) for text in ("a", "bb", "ccc")]
    assert check_protocol(Auto(), Conversation(Auto(), swift()).ask, items).values


@pytest.mark.parametrize(
    ("app", "name"),
    [
        (native(length), "rm-plugins"),
        (FakeVLLM("0.33.0"), "vllm"),
        (FakeSGLang(), "sglang"),
        (FakeTEI(), "tei"),
        (oip(), "oip"),
        (openrlhf(), "openrlhf"),
        (swift(), "swift"),
    ],
)
def test_one_protocol_alone_knows_a_server_and_nothing_is_scored_for_that(app: Starlette, name: str) -> None:
    talks = [Conversation(candidate, app) for candidate in Auto().candidates]
    assert [talk.protocol.name for talk in talks if talk.detected()] == [name]
    assert {request.method for talk in talks for request in talk.requests} == {"GET"}


def both() -> FastAPI:
    """A server that answers as two kinds of them do."""
    app = native(length)
    app.mount("/", openrlhf())
    return app


def test_of_several_protocols_the_first_is_spoken() -> None:
    assert isinstance(Conversation(Auto(), both()).prepared().protocol, Native)
    assert isinstance(Conversation(Auto(candidates=[OpenRLHF(), Native()]), openrlhf()).prepared().protocol, OpenRLHF)


def test_candidates_keep_their_own_keys() -> None:
    auto = component("protocol", {"name": "auto", "candidates": ["rm-plugins", {"name": "openrlhf", "labels": "answer"}]})
    assert auto.spec == {"name": "auto", "candidates": [{"name": "rm-plugins"}, {"name": "openrlhf", "labels": "answer"}]}
    found = Conversation(auto, openrlhf()).prepared().protocol
    assert isinstance(found, OpenRLHF)
    assert found.labels == "answer"


def test_a_path_is_asked_for_only_once() -> None:
    talk = Conversation(Auto(candidates=[Swift(), Swift(), OpenRLHF()]), openrlhf())
    talk.prepared()
    assert [request.path for request in talk.requests] == ["/v1/models", "/openapi.json"]


def test_an_unknown_server_has_its_answers_listed() -> None:
    auto = Auto(candidates=[Native(), Swift(), OpenRLHF()])
    with pytest.raises(UnsupportedError) as caught:
        Conversation(auto, judge(lambda question: choice("Yes"))).prepared()
    assert str(caught.value) == (
        "No protocol recognizes this server by its answers to GET /v1/info (404), /v1/models (200), /openapi.json (200). Check the URL, or "
        "name the protocol with `protocol: NAME`, one of rm-plugins, swift, openrlhf."
    )


def test_a_judge_is_never_guessed() -> None:
    with pytest.raises(UnsupportedError, match="No protocol recognizes this server"):
        Conversation(Auto(), judge(lambda question: choice("Yes"))).prepared()


def test_a_server_that_asks_for_a_key_is_not_taken_for_another_one() -> None:
    app = native(length, key="secret")
    app.mount("/", openrlhf())
    with pytest.raises(UnsupportedError, match="GET /v1/info answered 401: the server requires a key"):
        Conversation(Auto(), app).prepared()


def test_a_server_that_is_not_ready_is_not_taken_for_another_one() -> None:
    with pytest.raises(ScoringError, match="GET /v1/info answered 503: the server is not ready"):
        Conversation(Auto(), native(length, status=503)).prepared()


def test_auto_itself_is_never_spoken() -> None:
    server = ServerFacts(Auto(), "")
    with pytest.raises(UnsupportedError, match="only detects"):
        Auto().request(ITEMS, server, "r")
    with pytest.raises(UnsupportedError, match="only detects"):
        Auto().answer(Response(200, b"{}"), ITEMS, server, "r")


# Protocols of plug-ins


class Plain(Protocol):
    """``POST /get_reward``, in the fewest lines."""

    name: ClassVar[str] = "plain"

    def __init__(self, *, path: str = "/get_reward", scale: float = 1.0) -> None:
        self.path = path
        self.scale = scale

    def request(self, items: Sequence[Item], server: ServerFacts, request_id: str) -> Request:
        return Request(self.path, {"query": [item.needed_text for item in items]})

    def answer(self, response: Response, items: Sequence[Item], server: ServerFacts, request_id: str) -> Answer:
        found = response.json()
        if not isinstance(found, dict) or len(found.get("rewards", ())) != len(items):
            raise AnswerError("no rewards")
        return Answer([self.checked(reward) * self.scale for reward in found["rewards"]])

    def checked(self, reward: Any) -> float:
        if not isinstance(reward, float) or reward != reward:
            raise AnswerError("no number")
        return reward


class Plugin:
    @rm.hookimpl
    def rm_register_protocols(self) -> list[type[Protocol]]:
        return [Plain]


def registry() -> Registry:
    return Registry([Plugin()])


def test_a_plug_ins_protocol_is_made_from_a_spec() -> None:
    made = component("protocol", {"name": "plain", "scale": 2.0}, registry=registry())
    assert isinstance(made, Plain)
    assert (made.scale, made.spec) == (2.0, {"name": "plain", "scale": 2.0})
    assert component("protocol", "plain", registry=registry()).spec == {"name": "plain"}
    auto = component("protocol", {"name": "auto", "candidates": [{"name": "plain", "scale": 3.0}]}, registry=registry())
    assert auto.candidates[0].scale == 3.0


def test_a_wrong_key_of_a_protocol_is_named_with_its_path() -> None:
    with pytest.raises(SpecError, match=r"protocol\.scal: unknown key 'scal' for 'plain'\. Did you mean 'scale'\?"):
        component("protocol", {"name": "plain", "scal": 2.0}, registry=registry())
    with pytest.raises(SpecError, match=r"protocol\.candidates\[1\]\.labels: .*valid string"):
        component("protocol", {"name": "auto", "candidates": ["rm-plugins", {"name": "openrlhf", "labels": 5}]})


def test_every_built_in_protocol_is_made_by_its_name_alone() -> None:
    for name, registered in default_registry().all("protocol").items():
        made = component("protocol", name)
        assert (type(made), made.spec) == (registered.cls, {"name": name})


# The check that authors run


def test_the_check_takes_a_protocol_that_keeps_the_contract() -> None:
    assert len(check_protocol(Plain(), Conversation(Plain(), openrlhf()).ask, ITEMS).values) == 2


class Trusting(Plain):
    """Takes every number."""

    def checked(self, reward: Any) -> float:
        return float(reward)


class Crashing(Plain):
    """Raises what Python does."""

    def answer(self, response: Response, items: Sequence[Item], server: ServerFacts, request_id: str) -> Answer:
        return Answer(response.json()["rewards"][: len(items)])


class Zeroing(Plain):
    """Makes a number of what is none."""

    def checked(self, reward: Any) -> float:
        return 0.0 if reward != reward else float(reward)


class Backwards(Plain):
    """Forgets the order."""

    def answer(self, response: Response, items: Sequence[Item], server: ServerFacts, request_id: str) -> Answer:
        return Answer(sorted(super().answer(response, items, server, request_id).values))  # type: ignore[type-var]


class Forgetful(Plain):
    """Loses an item."""

    def answer(self, response: Response, items: Sequence[Item], server: ServerFacts, request_id: str) -> Answer:
        return Answer(super().answer(response, items, server, request_id).values[:1])


class Filling(Plain):
    """Gives the items that are missing a score."""

    def answer(self, response: Response, items: Sequence[Item], server: ServerFacts, request_id: str) -> Answer:
        found = response.json()
        rewards = found.get("rewards", []) if isinstance(found, dict) else []
        return Answer([self.checked(reward) for reward in rewards] + [0.0] * (len(items) - len(rewards)))


@pytest.mark.parametrize(
    ("protocol", "message"),
    [
        (Trusting(), "is NaN: the protocol gave the scores"),
        (Crashing(), "the answer is null: the protocol raised TypeError"),
        (Zeroing(), "is NaN: the protocol gave the scores"),
        (Backwards(), "do not follow the order|depends on what else"),
        (Forgetful(), "1 scores for 2 items"),
        (Filling(), "the answer is null: the protocol gave the scores"),
    ],
)
def test_the_check_finds_what_breaks_the_contract(protocol: Protocol, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_protocol(protocol, Conversation(protocol, openrlhf()).ask, ITEMS)


def test_the_check_finds_a_protocol_that_cannot_go_to_another_process() -> None:
    class Local(Plain):
        pass

    with pytest.raises(Exception, match="pickle"):
        check_protocol(Local(), Conversation(Plain(), openrlhf()).ask, ITEMS)


def test_the_check_needs_two_items_and_a_server_that_scores_them() -> None:
    with pytest.raises(AssertionError, match="at least two items"):
        check_protocol(Plain(), Conversation(Plain(), openrlhf()).ask, ITEMS[:1])
    with pytest.raises(AssertionError, match="got status 404"):
        check_protocol(Plain(path="/other"), Conversation(Plain(), openrlhf()).ask, ITEMS)


def test_the_built_in_candidates_are_asked_in_one_order() -> None:
    names = [candidate.name for candidate in Auto().candidates]
    assert names == ["rm-plugins", "vllm", "sglang", "tei", "oip", "openrlhf", "swift"]
