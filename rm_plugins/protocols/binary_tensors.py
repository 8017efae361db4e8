"""Tensors as bytes after a JSON header: the binary tensor data extension of the Open Inference Protocol, which Triton, KServe and their
clients use by default.

Elements are stored row by row, little-endian. A text (``BYTES``) is stored as its length in four bytes and its UTF-8. Tensors follow in
the order in which the JSON names them; the parameter ``binary_data_size`` gives the length of each.
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
    """Split a body into its JSON and the bytes after it.

    Args:
        body: The body.
        json_length: The value of the header `JSON_LENGTH`; None if it is absent.

    Raises:
        ValueError: The value is not a length, or the body is shorter.

    >>> json, binary = split(b'{}\\x01\\x02', "2")
    >>> json, bytes(binary)
    (b'{}', b'\\x01\\x02')
    """
    if json_length is None:
        return body, memoryview(b"")
    if not (json_length.isascii() and json_length.isdecimal()) or len(json_length) > 18:
        raise ValueError(f"{JSON_LENGTH} is {json_length!r:.80}; it must be a number of bytes")
    length = int(json_length)
    if length > len(body):
        raise ValueError(f"{JSON_LENGTH} is {length}, but the body has only {len(body)} bytes")
    return body[:length], memoryview(body)[length:]


def parts(binary: memoryview, tensors: Sequence[Mapping[str, Any]]) -> list[memoryview | None]:
    """The bytes of each tensor, in order; None for a tensor whose data is JSON.

    Args:
        binary: The bytes after the JSON.
        tensors: The tensors in the JSON, with `name` and `parameters`.

    Raises:
        ValueError: A size is not a number, or the sizes do not match the bytes.
    """
    pieces: list[memoryview | None] = []
    start = 0
    for tensor in tensors:
        parameters = tensor.get("parameters")
        size = parameters.get("binary_data_size") if isinstance(parameters, Mapping) else None
        if size is None:
            pieces.append(None)
            continue
        if type(size) is not int or size < 0:
            raise ValueError(f"binary_data_size of {tensor.get('name')!r:.80} is {size!r:.80}; it must be a number of bytes")
        if size > len(binary) - start:
            raise ValueError(
                f"binary_data_size of {tensor.get('name')!r:.80} is {size}, but only {len(binary) - start} bytes are left after the JSON"
            )
        pieces.append(binary[start : start + size])
        start += size
    if start < len(binary):
        raise ValueError(f"{len(binary) - start} bytes after the JSON do not belong to any tensor")
    return pieces


def elements(data: memoryview, datatype: str, count: int) -> list[Any]:
    """The elements of a tensor: texts, integers, numbers or truth values.

    Args:
        data: Its bytes.
        datatype: One of BYTES, BOOL, INT32, INT64, FP32 and FP64.
        count: The expected number of elements.

    Raises:
        ValueError: The datatype is not supported, the number of bytes does not match, or a text is not UTF-8.

    >>> elements(memoryview(b'\\x02\\0\\0\\0hi\\0\\0\\0\\0'), "BYTES", 2)
    ['hi', '']
    """
    if datatype == "BYTES":
        return _texts(data, count)
    if datatype not in _NUMPY:
        raise ValueError(f"the datatype {datatype} is not supported; supported are {', '.join(['BYTES', *_NUMPY])}")
    kind = np.dtype(_NUMPY[datatype])
    if len(data) != count * kind.itemsize:
        raise ValueError(f"{count} elements of {datatype} need {count * kind.itemsize} bytes; got {len(data)}")
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
            raise ValueError(f"text {row} is not valid UTF-8: {error.reason} at byte {error.start}") from None
    if start < len(data):
        raise ValueError(f"{len(data) - start} bytes remain after the last of {count} texts")
    return texts
