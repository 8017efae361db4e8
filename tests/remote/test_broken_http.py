"""Whatever a connection brings, a text gets its own score or none: each fault of HTTP with each protocol."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest

import rm_plugins as rm
from rm_plugins.protocols import TEI, VLLM, Native, OpenAIJudge, OpenInference, OpenRLHF, Protocol, SGLang, Swift
from rm_plugins.providers.remote import Remote
from tests.broken_http import BROKEN_HTTP, HARMLESS_HTTP, BrokenHTTP
from tests.fake_servers.judge import choice, judge
from tests.fake_servers.oip import oip
from tests.fake_servers.openrlhf import openrlhf, reward_of
from tests.fake_servers.sglang import FakeSGLang
from tests.fake_servers.swift import swift
from tests.fake_servers.tei import FakeTEI
from tests.fake_servers.vllm import FakeVLLM
from tests.fault_proxy import Scorer
from tests.servers import serving

SAMPLES = [rm.Sample("Q: ", f"{number} is a text of its own {number**3}") for number in range(16)]


def _graded(question: str) -> Any:
    return choice(("Yes", {"Yes": 0.5 + reward_of(question) / 20, "No": 0.4 - reward_of(question) / 20}))


SPOKEN: dict[str, tuple[Callable[[], Protocol], Callable[[], Any]]] = {
    "rm-plugins": (Native, Scorer),
    "vllm": (VLLM, FakeVLLM),
    "vllm-score": (lambda: VLLM(endpoint="score"), FakeVLLM),
    "sglang": (SGLang, FakeSGLang),
    "tei": (TEI, FakeTEI),
    "tei-rerank": (lambda: TEI(endpoint="rerank"), FakeTEI),
    "openrlhf": (OpenRLHF, openrlhf),
    "oip": (OpenInference, oip),
    "swift": (Swift, swift),
    "openai-judge": (OpenAIJudge, lambda: judge(_graded)),
}
WITHOUT_IDS = ("sglang", "tei", "tei-rerank", "openrlhf", "swift", "openai-judge")
"""Of these, nothing tells an answer that the peer itself has given to the wrong connection."""


@cache
def right_scores(spoken: str) -> list[float]:
    protocol, server = SPOKEN[spoken]
    with serving(server(), lifespan="off") as url:
        provider = Remote(url=url, protocol=protocol())
        values: list[float] = provider.score(SAMPLES).values.tolist()
        provider.close()
    assert len(set(values)) == len(SAMPLES), "each text has a score of its own"
    return values


def scored_through(spoken: str, fault: str, share: float, **settings: Any) -> tuple[Any, BrokenHTTP]:
    protocol, server = SPOKEN[spoken]
    with (
        serving(server(), lifespan="off") as target,
        BrokenHTTP(urlsplit(target).port or 0, fault, share=share) as proxy,
    ):
        provider = Remote(
            url=proxy.url, protocol=protocol(), **{"batch_size": 2, "concurrency": 2, "tries": 4, "timeout": 5.0, **settings}
        )
        scores = provider.score(SAMPLES, on_error="abstain")
        provider.close()
    assert proxy.happened[fault] > 0
    return scores, proxy


def check_own_or_none(scores: Any, right: list[float]) -> None:
    for row, value in enumerate(scores.values.tolist()):
        assert value == right[row] or (np.isnan(value) and str(scores.errors[row])), (row, value, right[row])


@pytest.mark.parametrize("fault", HARMLESS_HTTP)
@pytest.mark.parametrize("spoken", SPOKEN)
def test_what_is_harmless_costs_no_score(spoken: str, fault: str) -> None:
    scores, _ = scored_through(spoken, fault, 1.0)
    assert scores.values.tolist() == right_scores(spoken)


@pytest.mark.parametrize("fault", BROKEN_HTTP)
@pytest.mark.parametrize("spoken", SPOKEN)
def test_what_is_broken_now_and_then_gives_no_wrong_score(spoken: str, fault: str) -> None:
    if fault == "swapped" and spoken in WITHOUT_IDS:
        pytest.skip("two answers that the peer exchanges between two connections look right in every way")
    scores, _ = scored_through(spoken, fault, 0.3)
    check_own_or_none(scores, right_scores(spoken))
    assert np.isfinite(scores.values).sum() >= len(SAMPLES) // 2


@pytest.mark.parametrize("fault", sorted(set(BROKEN_HTTP) - {"anothers-in-place"}))
@pytest.mark.parametrize("spoken", ["rm-plugins", "vllm", "openrlhf", "tei"])
def test_what_is_always_broken_gives_no_wrong_score(spoken: str, fault: str) -> None:
    if fault == "swapped" and spoken in WITHOUT_IDS:
        pytest.skip("two answers that the peer exchanges between two connections look right in every way")
    scores, _ = scored_through(spoken, fault, 1.0, tries=2)
    check_own_or_none(scores, right_scores(spoken))
