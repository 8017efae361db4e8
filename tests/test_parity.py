"""One reward is the same number here and through a server, in the same order, whichever protocol it is asked by."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rm_plugins as rm
from rm_plugins.server import Settings, create_app
from tests.conftest import MakeFolder
from tests.servers import serving

SAMPLES = 256
WORDS = (
    *("the", "sea", "is", "salty", "because", "rivers", "carry", "dissolved", "minerals", "into", "it"),
    *("question", "what", "two", "and", "answer", "four", "ünïcode"),
)

RENDERED: dict[str, Any] = {
    "rm-plugins": "rm-plugins",
    "vllm classify": "vllm",
    "vllm pooling": {"name": "vllm", "endpoint": "pooling"},
    "tei predict": "tei",
}
WITHOUT_SPECIAL_TOKENS: dict[str, Any] = {"openrlhf": "openrlhf", "oip": {"name": "oip", "model": "tiny"}}
"""The client must write these down in the text, which it does for what a chat template has rendered."""
OF_PAIRS: dict[str, Any] = {
    "vllm score": {"name": "vllm", "endpoint": "score"},
    "tei rerank": {"name": "tei", "endpoint": "rerank"},
}


def sentences(source: random.Random) -> str:
    return " ".join(source.choices(WORDS, k=source.randrange(1, 12))) + source.choice(("", ".", "?\n", " "))


def conversations() -> list[rm.Sample]:
    """Several completions for each prompt, long and short."""
    source = random.Random(0)
    prompts = [[{"role": "user", "content": sentences(source)}] for _ in range(SAMPLES // 4)]
    return [rm.Sample(prompt, [{"role": "assistant", "content": sentences(source)}]) for prompt in prompts for _ in range(4)]


def texts() -> list[rm.Sample]:
    source = random.Random(1)
    prompts = [sentences(source) for _ in range(SAMPLES // 4)]
    return [rm.Sample(prompt, sentences(source)) for prompt in prompts for _ in range(4)]


class Served:
    """A reward, what it gives for samples by itself, and where it is served."""

    def __init__(self, folder: Path, samples: list[rm.Sample], url: str) -> None:
        self.folder = folder
        self.samples = samples
        self.url = url
        self.expected = rm.load(folder).score(samples).values


@pytest.fixture(scope="module")
def kept() -> Iterator[tuple[ExitStack, dict[str, Served]]]:
    with ExitStack() as stack:
        yield stack, {}


@pytest.fixture
def served(
    request: pytest.FixtureRequest,
    kept: tuple[ExitStack, dict[str, Served]],
    tiny_decoder: MakeFolder,
    tiny_encoder: MakeFolder,
) -> Served:
    """The served reward that a test names, made for the first test that does."""
    stack, found = kept
    kind: str = request.param
    if kind not in found:
        folder, samples = (tiny_decoder(), conversations()) if kind == "decoder" else (tiny_encoder(), texts())
        url = stack.enter_context(serving(create_app(rm.load(folder), Settings(model_name="tiny"))))
        found[kind] = Served(folder, samples, url)
    return found[kind]


def check(served: Served, protocol: Any, **settings: Any) -> None:
    remote = rm.load({"provider": "remote", "url": served.url, "protocol": protocol, **settings})
    try:
        found = remote.score(served.samples).values
    finally:
        remote.close()
    assert len(np.unique(served.expected.round(4))) > SAMPLES // 2  # so that another order would show
    np.testing.assert_allclose(found, served.expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("served", ["decoder", "encoder"], indirect=True)
def test_samples_are_rendered_by_the_server_as_here(served: Served) -> None:
    check(served, "rm-plugins")


@pytest.mark.parametrize("served", ["decoder", "encoder"], indirect=True)
@pytest.mark.parametrize("protocol", RENDERED)
def test_what_the_client_renders_is_scored_as_here(served: Served, protocol: str) -> None:
    check(served, RENDERED[protocol], tokenizer=str(served.folder))


@pytest.mark.parametrize("served", ["decoder", "encoder"], indirect=True)
@pytest.mark.parametrize("protocol", WITHOUT_SPECIAL_TOKENS)
def test_texts_that_the_server_adds_no_special_tokens_to_are_scored_as_here(served: Served, protocol: str) -> None:
    check(served, WITHOUT_SPECIAL_TOKENS[protocol], tokenizer=str(served.folder))


@pytest.mark.parametrize("served", ["encoder"], indirect=True)
@pytest.mark.parametrize("protocol", OF_PAIRS)
def test_pairs_are_put_together_by_the_server_as_here(served: Served, protocol: str) -> None:
    check(served, OF_PAIRS[protocol])
