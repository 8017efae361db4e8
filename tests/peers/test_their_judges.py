"""Our client asks a language model on another project's server to judge; there is no local provider to compare with."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx2
import pytest

import rm_plugins as rm
from tests.peers.facts import check
from tests.peers.servers import llama_cpp
from tests.servers import ServerProcess

RUBRIC = "{prompt} {completion} Right? Answer Yes or No."
"""A short one: the machine may take seconds for each."""

SUMS = [rm.Sample(f"{one}+{one}=", f"{answer}") for one, answer in ((1, 2), (2, 5), (3, 6), (4, 1))]


@pytest.fixture(scope="module")
def server(environment: Callable[[str], Path]) -> Iterator[ServerProcess]:
    model = llama_cpp.model_path(environment(llama_cpp.PEER.environment))
    with llama_cpp.PEER.serving(model) as process:
        yield process


def test_a_judge_s_grades_are_made_of_its_own_log_probabilities(server: ServerProcess) -> None:
    protocol = {"name": "openai-judge", "rubric": RUBRIC, "min_label_mass": 0.01, "max_tokens": 1}
    with closing(rm.load({"provider": "remote", "url": server.url, "protocol": protocol, "concurrency": 1})) as judge:
        got = judge.score(SUMS).values
    by_hand = [_share_of_yes(server.url, f"{sample.prompt} {sample.completion} Right? Answer Yes or No.") for sample in SUMS]
    check(
        got,
        by_hand,
        peer=llama_cpp.PEER.name,
        version=llama_cpp.PEER.version,
        direction="our client, its server",
        model="judge",
        compared="the share of Yes, from its log-probabilities",
    )


def test_a_judge_is_never_found_by_itself(server: ServerProcess) -> None:
    with (
        closing(rm.load({"provider": "remote", "url": server.url})) as remote,
        pytest.raises(rm.RmPluginsError, match="protocol"),
    ):
        remote.score(SUMS[:1])


def _share_of_yes(url: str, question: str) -> float:
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": question}],
        **{"max_tokens": 1, "temperature": 0, "logprobs": True, "top_logprobs": 20},
    }
    answer = httpx2.post(f"{url}/v1/chat/completions", json=body, timeout=120, trust_env=False).raise_for_status().json()
    mass = {"yes": 0.0, "no": 0.0}
    for entry in answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]:
        word = re.sub(r"\W", "", entry["token"]).lower()
        if word in mass:
            mass[word] += math.exp(entry["logprob"])
    return mass["yes"] / (mass["yes"] + mass["no"])
