"""Where a request goes: by its prompt, as long as that replica is not much busier than the others."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rm_plugins_ray.prompt_of_request import prompt_of_request

PROMPT = "Name a colour."
MESSAGES = [{"role": "user", "content": PROMPT}]
BODIES: list[Any] = [
    lambda text: {"samples": [{"prompt": PROMPT, "completion": text}]},
    lambda text: {"samples": [{"prompt": MESSAGES, "completion": text}]},
    lambda text: {"samples": [{"text": PROMPT + text}]},
    lambda text: {"samples": [{"token_ids": [*range(14), len(text)]}]},
    lambda text: {"query": [PROMPT + text], "prompts": [PROMPT]},
    lambda text: {"query": [PROMPT + text]},
    lambda text: {"query": PROMPT, "texts": [text]},
    lambda text: {"text_1": PROMPT, "text_2": text},
    lambda text: {"messages": [*MESSAGES, {"role": "assistant", "content": text}]},
    lambda text: {"input": PROMPT + text},
    lambda text: {"inputs": [[PROMPT, text]]},
    lambda text: {"inputs": [{"name": "text", "data": [PROMPT + text]}]},
]


FIELDS = st.sampled_from(["samples", "prompt", "prompts", "query", "texts", "messages", "input", "inputs", "data", "text"])
LEAVES = st.none() | st.integers() | st.text(max_size=3)
VALUES = LEAVES | st.lists(LEAVES | st.lists(LEAVES, max_size=2) | st.dictionaries(FIELDS, LEAVES, max_size=2), max_size=2)


def digest(content: Any) -> str:
    return prompt_of_request(json.dumps(content).encode(), len(PROMPT))


@pytest.mark.parametrize("body", BODIES)
def test_completions_of_a_prompt_have_one_digest(body: Any) -> None:
    assert digest(body(" Blue.")) == digest(body(" Red, perhaps.")) != ""


@settings(max_examples=20)
@given(st.dictionaries(FIELDS, VALUES, max_size=3) | VALUES)
def test_any_body_has_a_digest_or_none(content: Any) -> None:
    assert isinstance(digest(content), str)


def ranked(prompt: str, queues: dict[str, int], slack: int = 16) -> list[str]:
    """The replicas in the router's order, for queues of these lengths."""
    from rm_plugins_ray.prompt_router import PromptRouter

    router = PromptRouter.__new__(PromptRouter)
    router._replica_queue_len_cache = queues  # it has the `get` of the cache
    router.initialize_state(slack=slack)
    found = [SimpleNamespace(replica_id=ReplicaName(name)) for name in queues]
    pending = SimpleNamespace(args=[prompt], routing_context=SimpleNamespace(should_backoff=False))
    return [str(one.replica_id) for rank in asyncio.run(router.choose_replicas(found, pending)) for one in rank]


class ReplicaName(str):
    @property
    def unique_id(self) -> str:
        return str(self)


def test_a_replica_that_leaves_moves_only_its_own_prompts() -> None:
    prompts = [f"prompt {number}" for number in range(60)]
    three = {prompt: ranked(prompt, {"a": 0, "b": 0, "c": 0})[0] for prompt in prompts}
    two = {prompt: ranked(prompt, {"a": 0, "b": 0})[0] for prompt in prompts}
    assert set(three.values()) == {"a", "b", "c"}
    assert all(two[prompt] == where for prompt, where in three.items() if where != "c")


def test_a_busy_replica_is_passed_over() -> None:
    first, second, _ = ranked("a prompt", {"a": 0, "b": 0, "c": 0})
    queues = {"a": 3, "b": 3, "c": 3}
    assert ranked("a prompt", {**queues, first: 19})[0] == first
    assert ranked("a prompt", {**queues, first: 20})[0] == second
    assert ranked("", {**queues, second: 0})[0] == second
