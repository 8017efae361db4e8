"""Binary tensors: what is written comes back, and bytes that are cut or lie are refused and never scored."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import rm_plugins as rm
from rm_plugins.errors import AnswerError
from rm_plugins.protocols import Item, OpenInference, Response, ServerFacts, binary_tensors

ANY_TEXT = st.text(st.characters(codec="utf-8"), max_size=20)


def texts_as_bytes(texts: Sequence[str]) -> bytes:
    return b"".join(struct.pack("<I", len(text.encode())) + text.encode() for text in texts)


@given(st.lists(ANY_TEXT, min_size=1, max_size=8))
def test_texts_come_back_as_they_were(texts: list[str]) -> None:
    assert binary_tensors.elements(memoryview(texts_as_bytes(texts)), "BYTES", len(texts)) == texts


@given(st.lists(st.integers(-(2**31), 2**31 - 1), max_size=8))
def test_numbers_come_back_as_they_were(values: list[int]) -> None:
    for datatype, kind in (("INT32", np.int32), ("INT64", np.int64), ("FP64", np.float64)):
        data = memoryview(np.array(values, kind).tobytes())
        assert binary_tensors.elements(data, datatype, len(values)) == values
    assert binary_tensors.elements(memoryview(binary_tensors.encoded(values, "FP64")), "FP64", len(values)) == values


@given(
    st.binary(max_size=64), st.sampled_from(["BYTES", "BOOL", "INT32", "INT64", "FP32", "FP64", "UINT8"]), st.integers(0, 20)
)
def test_bytes_are_so_many_elements_or_refused(data: bytes, datatype: str, count: int) -> None:
    try:
        found = binary_tensors.elements(memoryview(data), datatype, count)
    except ValueError:
        return
    assert len(found) == count
    if datatype == "BYTES":
        assert texts_as_bytes(found) == data


ITEMS = [Item(rm.Sample("", text), text) for text in ("one", "two", "three")]
LENGTH = binary_tensors.JSON_LENGTH.lower()


@given(
    st.lists(st.floats(width=32), min_size=3, max_size=3),
    st.sampled_from(["FP32", "FP64"]),
    st.integers(-4, 4),
    st.integers(-4, 4),
    st.integers(-4, 4),
)
def test_an_answer_in_bytes_is_its_numbers_or_no_answer(
    values: list[float], datatype: str, cut: int, lie: int, shift: int
) -> None:
    data = np.array(values).astype({"FP32": "<f4", "FP64": "<f8"}[datatype])
    sent = (data.tobytes() + bytes(4))[: data.nbytes + cut]
    output = {"name": "rewards", "shape": [3, 1], "datatype": datatype, "parameters": {"binary_data_size": data.nbytes + lie}}
    content = json.dumps({"outputs": [output]}).encode()
    response = Response(200, content + sent, {LENGTH: str(len(content) + shift)})
    if cut == lie == shift == 0 and np.isfinite(data).all():
        answer = OpenInference().answer(response, ITEMS, ServerFacts(OpenInference(), ""), "r")
        assert answer.values == data.tolist()
    else:
        with pytest.raises(AnswerError):
            OpenInference().answer(response, ITEMS, ServerFacts(OpenInference(), ""), "r")
