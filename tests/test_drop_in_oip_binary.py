"""Binary tensors of the Open Inference Protocol, bodies without a type, and compressed ones: whole, or refused."""

from __future__ import annotations

import gzip
import json
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import httpx2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import rm_plugins as rm
from rm_plugins.protocols import binary_tensors
from rm_plugins.providers.function import FunctionProvider
from tests.drop_ins import decoder, served, text_rewards

TEXTS = ["What is two and two?\nIt is four.", "", "Blau, wie das Meer 🌊."]
MOST = 50_000


def lengths(samples: Sequence[rm.Sample]) -> list[float]:
    return [len(str(sample.completion)) + 0.1 for sample in samples]


@pytest.fixture(scope="module")
def client() -> Iterator[httpx2.Client]:
    with served(FunctionProvider(function=lengths), max_body_bytes=MOST, max_body_values=1000) as client:
        yield client


def texts_as_bytes(texts: Sequence[str]) -> bytes:
    return b"".join(struct.pack("<I", len(text.encode())) + text.encode() for text in texts)


def sentences(binary: bytes, shape: Sequence[int], **changes: Any) -> tuple[dict[str, Any], bytes]:
    tensor = {"name": "sentences", "shape": list(shape), "datatype": "BYTES", "parameters": {"binary_data_size": len(binary)}}
    return {**tensor, **changes}, binary


def post(client: httpx2.Client, *inputs: tuple[dict[str, Any], bytes], **more: Any) -> httpx2.Response:
    """Sends tensors and what stands behind the JSON as tritonclient does, with no Content-Type."""
    changes = {name: more.pop(name) for name in ("headers", "pack", "behind") if name in more}
    content = json.dumps({"inputs": [tensor for tensor, _ in inputs], **more}).encode()
    headers = {"Inference-Header-Content-Length": str(len(content)), **changes.get("headers", {})}
    content += b"".join(data for _, data in inputs) + changes.get("behind", b"")
    return client.post("/v2/models/tiny/infer", content=changes.get("pack", bytes)(content), headers=headers)


def outputs_of(response: httpx2.Response) -> list[tuple[str, Any]]:
    """The outputs of an answer, read as numpy reads them."""
    assert response.status_code == 200, response.text
    length = response.headers.get("inference-header-content-length")
    answer = json.loads(response.content if length is None else response.content[: int(length)])
    found, start = [], int(length or 0)
    for output in answer["outputs"]:
        size = output.get("parameters", {}).get("binary_data_size")
        data = output.get("data")
        if size is not None:
            kind = {"FP32": "<f4", "FP64": "<f8"}[output["datatype"]]
            data = np.frombuffer(response.content[start : start + size], kind).tolist()
            start += size
        assert output["shape"] == [len(data), 1]
        found.append((output["datatype"], data))
    assert length is None or start == len(response.content)
    return found


def test_binary_texts_have_the_rewards_of_texts(tmp_path: Any) -> None:
    reward = decoder(tmp_path)
    with served(reward) as client:
        response = post(client, sentences(texts_as_bytes(TEXTS), [3, 1]))
        assert response.headers["content-type"] == "application/json"
        assert outputs_of(response) == [("FP32", pytest.approx(text_rewards(reward, TEXTS, add_special_tokens=False)))]


def test_binary_token_ids_are_those_of_json(tmp_path: Any) -> None:
    reward = decoder(tmp_path)
    ids, mask = np.array([[25, 40, 61], [90, 12, 99]]), np.array([[1, 1, 1], [1, 1, 0]], np.int32)
    with served(reward) as client:
        tensors = [
            ({"name": "add_EOS", "shape": [2, 1], "datatype": "BOOL", "parameters": {"binary_data_size": 2}}, b"\0\1"),
            (
                {"name": "input_ids", "shape": [2, 3], "datatype": "INT64", "parameters": {"binary_data_size": 48}},
                ids.tobytes(),
            ),
            (
                {"name": "attention_mask", "shape": [2, 3], "datatype": "INT32", "parameters": {"binary_data_size": 24}},
                mask.tobytes(),
            ),
        ]
        expected = [("FP32", pytest.approx(text_rewards(reward, [[25, 40, 61], [90, 12]])))]
        assert outputs_of(post(client, *tensors)) == expected
        tensors[1] = ({"name": "input_ids", "shape": [2, 3], "datatype": "INT64", "data": ids.tolist()}, b"")
        assert outputs_of(post(client, *tensors)) == expected  # JSON among binary ones


@pytest.mark.parametrize(
    ("asked", "datatype", "is_binary"),
    [
        ({}, "FP32", False),
        ({"parameters": {"binary_data_output": True}}, "FP32", True),
        ({"parameters": {"binary_data_output": True, "datatype": "FP64"}}, "FP64", True),
        ({"outputs": [{"name": "rewards", "parameters": {"binary_data": True}}]}, "FP32", True),
        (
            {
                "outputs": [{"name": "rewards", "parameters": {"binary_data": False}}],
                "parameters": {"binary_data_output": True},
            },
            "FP32",
            False,
        ),
    ],
)
def test_outputs_are_binary_where_that_is_asked_for(
    client: httpx2.Client, asked: dict[str, Any], datatype: str, is_binary: bool
) -> None:
    response = post(client, sentences(texts_as_bytes(TEXTS), [3]), **asked)
    assert ("inference-header-content-length" in response.headers) == is_binary
    assert response.headers["content-type"] == ("application/octet-stream" if is_binary else "application/json")
    exact = [len(text) + 0.1 for text in TEXTS]
    values = [float(np.float32(value)) for value in exact] if is_binary and datatype == "FP32" else exact
    assert outputs_of(response) == [(datatype, values)]


@pytest.mark.parametrize(
    ("tensor", "told"),
    [
        (sentences(texts_as_bytes(TEXTS)[:-1], [3]), "end within text 2 of 3"),
        (sentences(texts_as_bytes(TEXTS)[:2], [3]), "end within text 0 of 3"),
        (sentences(texts_as_bytes(TEXTS), [2]), "remain after the last of 2 texts"),
        (sentences(texts_as_bytes(TEXTS), [4]), "end within text 3 of 4"),
        (sentences(struct.pack("<I", 2**32 - 1) + b"x", [1]), "end within text 0"),
        (sentences(struct.pack("<I", 2) + b"\xff\xfe", [1]), "text 0 is not valid UTF-8"),
        (sentences(struct.pack("<I", 3) + b"\xed\xa0\xbd", [1]), "text 0 is not valid UTF-8"),  # half of a surrogate pair
        (sentences(b"", [1]), "end within text 0"),
        (sentences(texts_as_bytes(TEXTS), [3], data=TEXTS), "both data and"),
        (sentences(b"", [3], parameters={}), "neither data nor"),
        (sentences(texts_as_bytes(TEXTS), [3], parameters={}), "do not belong to any tensor"),
        (sentences(texts_as_bytes(TEXTS), [3], parameters={"binary_data_size": 3}), "do not belong to any tensor"),
        (sentences(texts_as_bytes(TEXTS), [3], parameters={"binary_data_size": 10**30}), "are left after the JSON"),
        (sentences(texts_as_bytes(TEXTS), [3], parameters={"binary_data_size": -1}), "it must be a number of bytes"),
        (sentences(texts_as_bytes(TEXTS), [3], parameters={"binary_data_size": "70"}), "it must be a number of bytes"),
        (sentences(texts_as_bytes(TEXTS), [3], datatype="FP16"), "FP16 is not supported"),
        (sentences(bytes(11), [1, 3], name="input_ids", datatype="INT32"), "need 12 bytes; got 11"),
        (sentences(bytes(16), [1, 3], name="input_ids", datatype="INT32"), "need 12 bytes; got 16"),
        (sentences(bytes(12), [1, 3], name="input_ids", datatype="FP32"), "INT64 or INT32 is needed"),
        (sentences(bytes(4004), [1, 1001], name="input_ids", datatype="INT32"), "more than 1,000 elements"),
    ],
)
def test_binary_tensors_that_are_not_what_they_say_are_refused(
    client: httpx2.Client, tensor: tuple[dict[str, Any], bytes], told: str
) -> None:
    response = post(client, tensor)
    assert response.status_code == (413 if "more than" in told else 400)
    assert told in response.json()["error"]


@pytest.mark.parametrize("length", ["-1", "", "0x10", "1e3", "9" * 30, "²", "100000"])
def test_a_length_of_the_json_that_is_none_is_refused(client: httpx2.Client, length: str) -> None:
    headers = [(b"Inference-Header-Content-Length", length.encode())]
    response = client.post("/v2/models/tiny/infer", content=b"{}\0\0", headers=headers)
    assert response.status_code == 400
    assert "Inference-Header-Content-Length" in response.json()["error"]


# What may be sent at all


@pytest.mark.parametrize("headers", [{}, {"Content-Type": "application/octet-stream"}, {"Content-Type": "application/json"}])
def test_a_body_needs_no_type(client: httpx2.Client, headers: dict[str, str]) -> None:
    assert outputs_of(post(client, sentences(texts_as_bytes(["four"]), [1]), headers=headers)) == [("FP32", [4.1])]


@pytest.mark.parametrize("headers", [{"Sec-Fetch-Site": "none"}, {"Sec-Fetch-Mode": "no-cors"}, {"Origin": "own"}])
def test_a_browser_must_say_that_a_body_is_json(client: httpx2.Client, headers: dict[str, str]) -> None:
    if headers.get("Origin") == "own":
        headers = {"Origin": str(client.base_url).rstrip("/")}
    assert post(client, sentences(texts_as_bytes(["four"]), [1]), headers=headers).status_code == 415
    content = json.dumps({"inputs": [{"name": "sentences", "shape": [1], "datatype": "BYTES", "data": ["four"]}]})
    typed = client.post("/v2/models/tiny/infer", content=content, headers={**headers, "Content-Type": "application/json"})
    assert typed.status_code == 200


@pytest.mark.parametrize("headers", [{"Origin": "https://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}])
def test_a_page_of_another_site_can_send_nothing(client: httpx2.Client, headers: dict[str, str]) -> None:
    assert post(client, sentences(texts_as_bytes(["four"]), [1]), headers=headers).status_code == 403


@pytest.mark.parametrize("path", ["/v1/rewards", "/classify", "/v2/rerank", "/get_reward", "/predict"])
@pytest.mark.parametrize("headers", [{}, {"Content-Type": "application/octet-stream"}])
def test_no_other_path_takes_a_body_without_a_type(client: httpx2.Client, path: str, headers: dict[str, str]) -> None:
    assert client.post(path, content=b"{}", headers=headers).status_code == 415
    packed = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    assert client.post(path, content=gzip.compress(b"{}"), headers=packed).status_code == 415


@pytest.mark.parametrize(("coding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress), ("GZIP", gzip.compress)])
def test_bodies_may_be_compressed(client: httpx2.Client, coding: str, pack: Callable[[bytes], bytes]) -> None:
    texts = [f"a text of {number}" for number in range(200)]
    response = post(
        client,
        sentences(texts_as_bytes(texts), [200]),
        pack=pack,
        headers={"Content-Encoding": coding, "Accept-Encoding": coding},
    )
    assert response.headers["content-encoding"] == coding.lower()
    assert outputs_of(response) == [("FP32", [len(text) + 0.1 for text in texts])]


@pytest.mark.parametrize("accepted", ["", "identity", "br", "gzip;q=0", "*"])
def test_answers_are_compressed_only_where_that_is_wanted(client: httpx2.Client, accepted: str) -> None:
    response = post(client, sentences(texts_as_bytes(["a"] * 200), [200]), headers={"Accept-Encoding": accepted})
    assert "content-encoding" not in response.headers
    assert outputs_of(response) == [("FP32", [1.1] * 200)]


def repacked(pack: Callable[[bytes], bytes], change: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    return lambda content: change(pack(content))


@pytest.mark.parametrize(
    ("coding", "pack", "status"),
    [
        ("gzip", repacked(gzip.compress, lambda packed: packed[:-5]), 400),
        ("gzip", repacked(gzip.compress, lambda packed: packed[:12]), 400),
        ("gzip", repacked(gzip.compress, lambda packed: packed + b"more"), 400),
        ("gzip", repacked(gzip.compress, lambda packed: packed + packed), 400),
        ("gzip", repacked(gzip.compress, lambda packed: packed[:-8] + bytes(8)), 400),  # its checksum
        ("gzip", zlib.compress, 400),
        ("deflate", gzip.compress, 400),
        ("deflate", bytes, 400),
        ("gzip", lambda content: gzip.compress(content + b" " * MOST), 413),
        ("deflate", lambda content: zlib.compress(b" " * 50_000_000), 413),
        ("gzip", lambda content: gzip.compress(gzip.compress(content)), 422),  # what is unpacked is no JSON
        ("gzip, gzip", lambda content: gzip.compress(gzip.compress(content)), 415),
        ("br", bytes, 415),
    ],
)
def test_compressed_bodies_that_are_damaged_or_too_long_are_refused(
    client: httpx2.Client, coding: str, pack: Callable[[bytes], bytes], status: int
) -> None:
    response = post(client, sentences(texts_as_bytes(TEXTS), [3]), pack=pack, headers={"Content-Encoding": coding})
    assert response.status_code == status
    assert isinstance(response.json()["error"], str)


# Properties

ANY_TEXT = st.text(st.characters(codec="utf-8"), max_size=20)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_whatever_is_wrong_with_a_request_is_refused_and_nothing_else_is_scored(
    client: httpx2.Client, data: st.DataObject
) -> None:
    texts = data.draw(st.lists(ANY_TEXT, min_size=1, max_size=5))
    content = texts_as_bytes(texts)
    cut = data.draw(st.integers(0, len(content)))
    sent = data.draw(st.sampled_from([content, content[:cut], content[:cut] + b"\xff" + content[cut + 1 :], content + b"\0"]))
    said = data.draw(st.sampled_from([len(sent), len(content), cut, 0, len(sent) + 1]))
    count = data.draw(st.sampled_from([len(texts), len(texts) + 1, 1]))
    tensor, _ = sentences(sent, [count], parameters={"binary_data_size": said})
    response = post(client, (tensor, sent), id="7")
    if sent == content and said == len(content) and count == len(texts):
        assert outputs_of(response) == [("FP32", [len(text) + 0.1 for text in texts])]
    elif response.status_code == 200:  # another text, as whole as the first
        ((_, values),) = outputs_of(response)
        assert len(values) == count
        assert values == [len(text) + 0.1 for text in binary_tensors.elements(memoryview(sent), "BYTES", count)]
    else:
        assert response.status_code == 400
        assert isinstance(response.json()["error"], str)
