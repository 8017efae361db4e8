"""Our client asks our servers through a router of another project: the numbers of the local provider."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import rm_plugins as rm
from tests.peers import samples
from tests.peers.facts import check
from tests.peers.servers import vllm_router
from tests.servers import RewardServer, ServerProcess

WAYS: dict[str, dict[str, Any]] = {
    "samples": {"protocol": "rm-plugins"},
    "token ids, vLLM's shape": {"protocol": "vllm"},
    "token ids, /pooling": {"protocol": {"name": "vllm", "endpoint": "pooling"}},
}


@pytest.fixture(scope="module")
def router(environment: Callable[[str], Path], decoder_spec: Path) -> Iterator[ServerProcess]:
    python = environment(vllm_router.ENVIRONMENT)
    with (
        RewardServer(decoder_spec) as one,
        RewardServer(decoder_spec) as other,
        vllm_router.routing(python, [one.url, other.url]) as process,
    ):
        yield process


@pytest.mark.parametrize("compared", WAYS)
def test_scores_are_those_of_the_local_provider(
    compared: str, router: ServerProcess, decoder_path: Path, decoder: rm.Provider
) -> None:
    rows = [*samples.texts(), *samples.conversations()]
    with closing(rm.load(_spec(router, decoder_path, compared))) as remote:
        got = remote.score(rows).values
    check(
        got,
        decoder.score(rows).values,
        peer=vllm_router.NAME,
        version=vllm_router.version(),
        direction="our client, its server",
        model="decoder",
        compared=f"two of our servers behind it, {compared}",
    )


def test_many_callers_at_a_time_get_their_own_numbers(router: ServerProcess, decoder_path: Path, decoder: rm.Provider) -> None:
    rows = samples.texts()
    right = decoder.score(rows).values

    def asked(start: int) -> Any:
        with closing(rm.load({**_spec(router, decoder_path, "token ids, vLLM's shape"), "batch_size": 3})) as remote:
            return remote.score(rows[start : start + 12]).values

    with ThreadPoolExecutor(6) as pool:
        for start, answer in enumerate(pool.map(asked, range(6))):
            assert answer == pytest.approx(right[start : start + 12], abs=1e-4)


def _spec(router: ServerProcess, decoder_path: Path, compared: str) -> dict[str, Any]:
    renders = {} if compared == "samples" else {"tokenizer": str(decoder_path), "read": "last"}
    return {"provider": "remote", "url": router.url, "deadline": 300, **WAYS[compared], **renders}
