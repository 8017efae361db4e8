"""Triton's own client gets the reward's numbers with nothing changed but the address; seen with tritonclient 2.73."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest

import rm_plugins as rm
from rm_plugins.providers.function import FunctionProvider
from rm_plugins.server import Settings, create_app
from tests.drop_ins import decoder, text_rewards
from tests.servers import serving

http = pytest.importorskip("tritonclient.http", reason="tritonclient[http] is not installed", exc_type=ImportError)
triton = pytest.importorskip("tritonclient.utils", reason="tritonclient[http] is not installed", exc_type=ImportError)

TEXTS = [f"Question {number}: is blue 🟦 a colour?\nIt is{' very much' * (number % 7)} one." for number in range(64)]


@pytest.fixture(scope="module")
def reward(tmp_path_factory: pytest.TempPathFactory) -> rm.Provider:
    return decoder(tmp_path_factory.mktemp("decoder"))


@pytest.fixture(scope="module")
def address(reward: rm.Provider) -> Iterator[str]:
    with serving(create_app(reward, Settings(model_name="tiny", max_body_bytes=200_000))) as url:
        yield urlsplit(url).netloc


@pytest.fixture
def client(address: str) -> Iterator[Any]:
    with http.InferenceServerClient(address) as client:
        yield client


def sentences(texts: Sequence[str], *, binary: bool = True, module: Any = http) -> list[Any]:
    tensor = module.InferInput("sentences", [len(texts), 1], "BYTES")
    return [tensor.set_data_from_numpy(np.array(texts, dtype=object).reshape(-1, 1), binary_data=binary)]


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("coding", [None, "gzip", "deflate"])
@pytest.mark.parametrize("datatype", ["FP32", "FP64"])
def test_its_defaults_give_the_rewards(
    client: Any, reward: rm.Provider, binary: bool, coding: str | None, datatype: str
) -> None:
    expected = text_rewards(reward, TEXTS, add_special_tokens=False)
    for outputs in (None, [http.InferRequestedOutput("rewards")], [http.InferRequestedOutput("rewards", binary_data=False)]):
        result = client.infer(
            "tiny",
            sentences(TEXTS, binary=binary),
            outputs=outputs,
            request_id="42",
            request_compression_algorithm=coding,
            response_compression_algorithm=coding,
            parameters=None if datatype == "FP32" else {"datatype": datatype},
        )
        found = result.as_numpy("rewards")
        assert (found.dtype, found.shape) == ({"FP32": np.float32, "FP64": np.float64}[datatype], (len(TEXTS), 1))
        assert found[:, 0] == pytest.approx(expected, abs=1e-6)
        assert result.get_response()["id"] == "42"


def test_the_other_ways_to_ask_give_the_same(client: Any, reward: rm.Provider, address: str) -> None:
    expected = pytest.approx(text_rewards(reward, TEXTS, add_special_tokens=False), abs=1e-6)
    assert client.async_infer("tiny", sentences(TEXTS)).get_result().as_numpy("rewards")[:, 0] == expected
    assert client.infer("tiny", sentences(TEXTS), model_version="1").as_numpy("rewards")[:, 0] == expected
    module = pytest.importorskip("tritonclient.http.aio", reason="aiohttp is not installed", exc_type=ImportError)

    async def asked() -> Any:
        async with module.InferenceServerClient(address) as client:
            return (await client.infer("tiny", sentences(TEXTS, module=module))).as_numpy("rewards")[:, 0]

    assert asyncio.run(asked()) == expected


def test_it_is_told_what_there_is(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert [client.is_model_ready(*model) for model in (("tiny",), ("tiny", "1"), ("other",), ("tiny", "2"))] == [1, 1, 0, 0]
    assert client.get_server_metadata()["name"] == "rm-plugins"
    assert client.get_model_metadata("tiny", "1")["inputs"][0]["datatype"] == "BYTES"
    assert client.get_model_config("tiny")["output"][0]["data_type"] == "TYPE_FP32"
    assert [model["name"] for model in client.get_model_repository_index()] == ["tiny"]
    assert client.get_inference_statistics()["model_stats"][0]["version"] == "1"


@pytest.mark.parametrize(
    ("ask", "status", "told"),
    [
        (lambda client: client.infer("other", sentences(TEXTS)), "404", "this server has 'tiny'"),
        (lambda client: client.infer("tiny", sentences(TEXTS), model_version="2"), "404", "it has '1'"),
        (lambda client: client.get_model_metadata("other"), "404", "this server has 'tiny'"),
        (lambda client: client.infer("tiny", sentences(["a"] * 1025)), "413", "at most 1024"),
        (lambda client: client.infer("tiny", sentences(["a" * 200_000])), "413", "longer than"),
        (lambda client: client.get_system_shared_memory_status(), "404", ""),
        (lambda client: client.load_model("tiny"), "404", ""),
    ],
)
def test_it_can_read_every_error(client: Any, ask: Any, status: str, told: str) -> None:
    with pytest.raises(triton.InferenceServerException) as caught:
        ask(client)
    assert caught.value.status() == status
    assert told in caught.value.message()
    assert "while decoding" not in caught.value.message()


def test_a_failure_is_no_number() -> None:
    def failing(samples: Sequence[rm.Sample]) -> list[float | None]:
        return [None for _ in samples]

    with (
        serving(create_app(FunctionProvider(function=failing), Settings(model_name="tiny", api_keys=["open sesame"]))) as url,
        http.InferenceServerClient(urlsplit(url).netloc) as client,
    ):
        with pytest.raises(triton.InferenceServerException, match=r"\[401\] this server requires a key"):
            client.infer("tiny", sentences(["a"]))
        with pytest.raises(triton.InferenceServerException, match=r"\[400\] the reward abstained on item 0"):
            client.infer("tiny", sentences(["a"]), headers={"Authorization": "Bearer open sesame"})
