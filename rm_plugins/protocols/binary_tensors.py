"""Tensors as bytes behind a JSON header: the binary tensor data extension of the Open Inference Protocol, which Triton, KServe and their
clients use by default.

Elements stand row by row, little-endian. A text (``BYTES``) is its length, as four bytes, and its UTF-8. Tensors stand in the order in
which the JSON names them, each as long as its parameter ``binary_data_size`` says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

JSON_LENGTH = "Inference-Header-Content-Length"
"""The header with the length of the JSON; without it, the whole body is JSON."""

_LENGTH_BYTES = 4
_NUMPY = {"BOOL": "?", "INT32": "<i4", "INT64": "<i8", "FP32": "<f4", "FP64": "<f8"}


def split(body: bytes, json_length: str | None) -> tuple[bytes, memoryview]:
    """The JSON of a body, and the bytes behind it.

    Args:
        body: The body.
        json_length: What the header `JSON_LENGTH` says; None where there is none.

    Raises:
        ValueError: It is no length, or the body is shorter.

    >>> json, binary = split(b'{}\\x01\\x02', "2")
    >>> json, bytes(binary)
    (b'{}', b'\\x01\\x02')
    """
    if json_length is None:
        return body, memoryview(b"")
    if not (json_length.isascii() and json_length.isdecimal()) or len(json_length) > 18:
        raise ValueError(f"{JSON_LENGTH} is {json_length!r:.80}; a number of bytes is right")
    length = int(json_length)
    if length > len(body):
        raise ValueError(f"{JSON_LENGTH} is {length}, and the body has {len(body)} bytes")
    return body[:length], memoryview(body)[length:]


def parts(binary: memoryview, tensors: Sequence[Mapping[str, Any]]) -> list[memoryview | None]:
    """The bytes of each tensor, in order; None for one that is JSON.

    Args:
        binary: What stands behind the JSON.
        tensors: What the JSON says of them: `name` and `parameters`.

    Raises:
        ValueError: A size is no number, or the sizes are not those of the bytes that there are.
    """
    found: list[memoryview | None] = []
    start = 0
    for tensor in tensors:
        parameters = tensor.get("parameters")
        size = parameters.get("binary_data_size") if isinstance(parameters, Mapping) else None
        if size is None:
            found.append(None)
            continue
        if type(size) is not int or size < 0:
            raise ValueError(f"binary_data_size of {tensor.get('name')!r:.80} is {size!r:.80}; a number of bytes is right")
        if size > len(binary) - start:
            raise ValueError(
                f"binary_data_size of {tensor.get('name')!r:.80} is {size}, and {len(binary) - start} bytes are left behind the JSON"
            )
        found.append(binary[start : start + size])
        start += size
    if start < len(binary):
        raise ValueError(f"{len(binary) - start} bytes behind the JSON belong to no tensor")
    return found


def elements(data: memoryview, datatype: str, count: int) -> list[Any]:
    """The elements of a tensor: texts, integers, numbers or truth values.

    Args:
        data: Its bytes.
        datatype: One of BYTES, BOOL, INT32, INT64, FP32 and FP64.
        count: How many there must be.

    Raises:
        ValueError: It is of another datatype, the bytes are not those of so many elements, or a text is not UTF-8.

    >>> elements(memoryview(b'\\x02\\0\\0\\0hi\\0\\0\\0\\0'), "BYTES", 2)
    ['hi', '']
    """
    if datatype == "BYTES":
        return _texts(data, count)
    if datatype not in _NUMPY:
        raise ValueError(f"{datatype} cannot be read here; {', '.join(['BYTES', *_NUMPY])} can")
    kind = np.dtype(_NUMPY[datatype])
    if len(data) != count * kind.itemsize:
        raise ValueError(f"{count} elements of {datatype} are {count * kind.itemsize} bytes, and there are {len(data)}")
    values: list[Any] = np.frombuffer(data, kind).tolist()
    return values


def encoded(values: Sequence[float], datatype: str) -> bytes:
    """Numbers as the bytes of a tensor of FP32 or FP64.

    >>> encoded([1.0, -0.5], "FP32").hex()
    '0000803f000000bf'
    """
    return np.asarray(values, np.float64).astype(_NUMPY[datatype]).tobytes()


def _texts(data: memoryview, count: int) -> list[str]:
    texts: list[str] = []
    start = 0
    for row in range(count):
        begin = start + _LENGTH_BYTES
        length = int.from_bytes(data[start:begin], "little")
        if begin + length > len(data):
            raise ValueError(f"the bytes end within text {row} of {count}")
        start = begin + length
        try:
            texts.append(str(data[begin:start], "utf-8"))
        except UnicodeDecodeError as error:
            raise ValueError(f"text {row} is no UTF-8: {error.reason} at byte {error.start}") from None
    if start < len(data):
        raise ValueError(f"{len(data) - start} bytes follow the last of {count} texts")
    return texts
