"""The bodies of requests and answers of the Open Inference Protocol, and their conversion to samples and outputs.

The tensors have the names of NeMo-Aligner's `reward_model`: ``sentences``, or ``tokens`` with ``sequence_lengths``, give ``rewards``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, Field

from rm_plugins.errors import DataError
from rm_plugins.protocols import binary_tensors
from rm_plugins.samples import Sample
from rm_plugins.server.dialects.dialect import Problem, Scored, Scorer, check_count, text_sample
from rm_plugins.server.dialects.drop_in import RequestBody

_IDS = ("input_ids", "token_ids", "tokens")
_PADDING = ("attention_mask", "sequence_lengths")
_IGNORED = ("add_EOS",)  # NeMo-Aligner's server accepts and ignores it, too
_INPUTS = (
    "'sentences', or 'prompts' and 'completions', or one of 'input_ids', 'token_ids' and 'tokens', with 'attention_mask' or "
    "'sequence_lengths' if rows are padded"
)
_MOST_FP32 = float(np.finfo(np.float32).max)


class Tensor(RequestBody):
    """An input."""

    name: str
    shape: list[Annotated[int, Field(ge=1)]] = Field(
        fail_fast=True,
        min_length=1,
        max_length=2,
        description="[B] or [B, 1] for texts and lengths; [B, L] for token ids and their mask.",
    )
    datatype: str = Field(description="BYTES for texts; INT64 or INT32 for the others.")
    data: list[Any] | None = Field(None, description="Row by row, flat or nested; absent if the tensor is binary.")
    parameters: dict[str, Any] = Field(
        {}, description="`binary_data_size`: the number of bytes after the JSON that belong to this tensor."
    )


class Output(RequestBody):
    """A requested output."""

    name: str
    parameters: dict[str, Any] = Field(
        {}, description="`binary_data`: whether it is returned as bytes; `datatype`: FP32, the default, or FP64."
    )


_REWARDS = Output(name="rewards", parameters={})


class Infer(RequestBody):
    """Texts, pairs of texts, or token ids to score."""

    id: str | None = Field(None, description="Returned in the answer.")
    inputs: list[Tensor] = Field(min_length=1, fail_fast=True, description=f"{_INPUTS}.".replace("'", "`"))
    outputs: Annotated[list[Output], Field(fail_fast=True)] | None = Field(
        None, description="`rewards`, the default, and details by their names."
    )
    parameters: dict[str, Any] = Field(
        {},
        description="`add_special_tokens`: whether the tokenizer adds special tokens to `sentences`; false by default. "
        "`binary_data_output` and `datatype`: the defaults for outputs that do not set them.",
    )


class Index(RequestBody):
    """Which models to list."""

    ready: bool = Field(False, description="Only those that score.")


class Result(BaseModel):
    """An output: one number per row."""

    name: str
    shape: list[int]
    datatype: str
    data: list[float] | None = None
    parameters: dict[str, Any] | None = None


class Inferred(BaseModel):
    """The requested outputs."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[Result]


EXAMPLES: Any = {
    "sentences": {
        "summary": "Texts, as NeMo-Aligner's clients send them",
        "value": {
            "id": "42",
            "inputs": [{"name": "sentences", "shape": [2, 1], "datatype": "BYTES", "data": ["2+2?\n4", "2+2?\n5"]}],
        },
    },
    "pairs": {
        "summary": "Prompts and completions",
        "value": {
            "inputs": [
                {"name": "prompts", "shape": [1], "datatype": "BYTES", "data": ["2+2?\n"]},
                {"name": "completions", "shape": [1], "datatype": "BYTES", "data": ["4"]},
            ]
        },
    },
    "tokens": {
        "summary": "Token ids, padded to one length",
        "value": {
            "inputs": [
                {"name": "input_ids", "shape": [2, 3], "datatype": "INT64", "data": [[5, 6, 7], [5, 8, 0]]},
                {"name": "attention_mask", "shape": [2, 3], "datatype": "INT64", "data": [[1, 1, 1], [1, 1, 0]]},
            ]
        },
    },
}


def samples_of(scorer: Scorer, body: Infer, binary: memoryview) -> list[Sample]:
    """The samples of a request.

    Args:
        scorer: The scorer.
        body: The request.
        binary: The bytes after its JSON.

    Raises:
        Problem: The inputs are not those that the server takes, or there are too many.
    """
    tensors = _read(scorer, body, binary)
    match sorted(tensors):
        case ["sentences"]:
            add = body.parameters.get("add_special_tokens", False)
            if not isinstance(add, bool):
                raise Problem("invalid", "parameters.add_special_tokens must be true or false")
            return [text_sample(scorer, text, add_special_tokens=add) for text in _texts(tensors["sentences"])]
        case ["completions", "prompts"]:
            prompts, completions = _texts(tensors["prompts"]), _texts(tensors["completions"])
            _check_rows("completions", len(completions), "prompts", len(prompts))
            return [Sample(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]
    ids, padding = [name for name in tensors if name in _IDS], [name for name in tensors if name in _PADDING]
    if len(ids) != 1 or len(padding) > 1 or len(tensors) > len(ids) + len(padding):
        raise Problem("invalid", f"the inputs are {', '.join(sorted(tensors)) or 'none'}; this server takes {_INPUTS}")
    rows = _integers(tensors[ids[0]])
    for name in padding:
        rows = _without_padding(rows, ids[0], tensors[name])
    samples = []
    for number, row in enumerate(rows):
        try:
            samples.append(text_sample(scorer, row))
        except DataError as error:
            raise Problem("invalid", f"row {number} of {ids[0]}: {error}") from error
    return samples


def check_outputs(body: Infer) -> None:
    """Check the requested outputs, before anything is scored.

    Raises:
        Problem: An output is requested twice, or in an unsupported form.
    """
    names = [output.name for output in body.outputs or ()]
    if len(set(names)) < len(names):
        raise Problem("invalid", "an output is requested twice")
    for output in body.outputs or [_REWARDS]:
        refused = [name for name in output.parameters if name == "classification" or name.startswith("shared_memory")]
        if refused:
            raise Problem(
                "invalid",
                f"the output {output.name!r:.80} has the parameter {refused[0]!r:.80}, which this server does not support",
            )
        _form(body, output)


def answer_of(body: Infer, model: str, version: str, values: Sequence[float], scored: Scored) -> tuple[bytes, bytes]:
    """The JSON of an answer, and the bytes after it.

    Raises:
        Problem: A requested output does not exist, or its datatype cannot represent a value.
    """
    results: list[Result] = []
    binary: list[bytes] = []
    for output in body.outputs or [_REWARDS]:
        datatype, is_binary = _form(body, output)
        result = _result(output.name, datatype, values, scored)
        if is_binary:
            binary.append(binary_tensors.encoded(result.data or [], datatype))
            result.data, result.parameters = None, {"binary_data_size": len(binary[-1])}
        results.append(result)
    answer = Inferred(model_name=model, model_version=version, id=body.id, outputs=results)
    return json.dumps(answer.model_dump(exclude_none=True), allow_nan=False).encode(), b"".join(binary)


def _read(scorer: Scorer, body: Infer, binary: memoryview) -> dict[str, Tensor]:
    """The inputs by name; binary ones are decoded into their data.

    Raises:
        Problem: The bytes do not match the JSON, an input is repeated, or inputs are too large.
    """
    try:
        parts = binary_tensors.parts(binary, [{"name": tensor.name, "parameters": tensor.parameters} for tensor in body.inputs])
    except ValueError as error:
        raise Problem("invalid", str(error)) from error
    tensors: dict[str, Tensor] = {}
    values = 0
    for tensor, part in zip(body.inputs, parts, strict=True):
        if tensor.name in _IGNORED:
            continue
        if tensor.name in tensors:
            raise Problem("invalid", f"the input {tensor.name!r:.80} was sent twice")
        if any(name.startswith("shared_memory") for name in tensor.parameters):
            raise Problem(
                "invalid",
                f"the input {tensor.name!r:.80} is in shared memory, which this server does not support; send its data",
            )
        if (part is None) == (tensor.data is None):
            has = "neither data nor" if part is None else "both data and"
            raise Problem(
                "invalid", f"the input {tensor.name!r:.80} has {has} the parameter binary_data_size; it must have one of them"
            )
        check_count(scorer, tensor.shape[0])
        size = math.prod(tensor.shape)
        values += size
        if values > scorer.max_values:
            raise Problem(
                "too-large", f"the tensors have more than {scorer.max_values:,} elements; send fewer samples at a time"
            )
        if part is not None:
            try:
                tensor.data = binary_tensors.elements(part, tensor.datatype, size)
            except ValueError as error:
                raise Problem("invalid", f"the input {tensor.name!r:.80}: {error}") from error
        tensors[tensor.name] = tensor
    return tensors


def _without_padding(rows: Sequence[Sequence[int]], ids: str, tensor: Tensor) -> list[list[int]]:
    padding = _integers(tensor)
    _check_rows(tensor.name, len(padding), ids, len(rows))
    if tensor.name == "attention_mask":
        for number, (mask, row) in enumerate(zip(padding, rows, strict=True)):
            if len(mask) != len(row) or not set(mask) <= {0, 1}:
                raise Problem(
                    "invalid", f"row {number} of attention_mask must have {len(row)} values of 0 or 1, one for each of {ids}"
                )
        return [
            [token for token, is_token in zip(row, mask, strict=True) if is_token]
            for row, mask in zip(rows, padding, strict=True)
        ]
    for number, (length, row) in enumerate(zip(padding, rows, strict=True)):
        if len(length) != 1 or not 0 < length[0] <= len(row):
            raise Problem(
                "invalid",
                f"row {number} of sequence_lengths must be one number from 1 to {len(row)}, the length of its row in {ids}",
            )
    return [list(row[: length[0]]) for row, length in zip(rows, padding, strict=True)]


def _check_rows(name: str, rows: int, other: str, others: int) -> None:
    if rows != others:
        raise Problem("invalid", f"{name} has {rows} rows, but {other} has {others}")


def _texts(tensor: Tensor) -> list[str]:
    """The texts of a tensor of the shape [B] or [B, 1]."""
    if tensor.datatype != "BYTES" or tensor.shape[1:] not in ([], [1]):
        raise Problem(
            "invalid",
            f"{tensor.name} has the datatype {tensor.datatype} and the shape {tensor.shape}; BYTES and [B] or [B, 1] are needed",
        )
    values = _flat(tensor)
    for row, value in enumerate(values):
        if not isinstance(value, str):
            raise Problem("invalid", f"row {row} of {tensor.name} is {value!r:.80}; it must be a text")
    return values


def _integers(tensor: Tensor) -> list[list[int]]:
    """The rows of a tensor of the shape [B, L]; [B] is taken as [B, 1]."""
    if tensor.datatype not in ("INT64", "INT32"):
        raise Problem("invalid", f"{tensor.name} has the datatype {tensor.datatype}; INT64 or INT32 is needed")
    values, width = _flat(tensor), math.prod(tensor.shape[1:])
    for place, value in enumerate(values):
        if type(value) is not int:
            raise Problem(
                "invalid", f"row {place // width} of {tensor.name} contains {value!r:.80}; it must have integers only"
            )
    return [values[start : start + width] for start in range(0, len(values), width)]


def _flat(tensor: Tensor) -> list[Any]:
    data = tensor.data or []
    nested = bool(data) and all(isinstance(row, list) for row in data)
    if nested and [len(data), *{len(row) for row in data}] != tensor.shape:
        raise Problem("invalid", f"the lengths of the lists in the data of {tensor.name} do not match the shape {tensor.shape}")
    values = [value for row in data for value in row] if nested else data
    if len(values) != math.prod(tensor.shape):
        raise Problem(
            "invalid",
            f"the data of {tensor.name} has {len(values)} values; the shape {tensor.shape} needs {math.prod(tensor.shape)}",
        )
    return values


def _form(body: Infer, output: Output) -> tuple[str, bool]:
    """The datatype of an output, and whether it is returned as bytes."""
    datatype = output.parameters.get("datatype", body.parameters.get("datatype", "FP32"))
    if datatype not in ("FP32", "FP64"):
        raise Problem("invalid", f"the output {output.name!r:.80} is requested as {datatype!r:.80}; FP32 or FP64 is needed")
    is_binary = output.parameters.get("binary_data", body.parameters.get("binary_data_output", False))
    if not isinstance(is_binary, bool):
        raise Problem("invalid", "the parameters binary_data and binary_data_output must be true or false")
    return datatype, is_binary


def _result(name: str, datatype: str, values: Sequence[float], scored: Scored) -> Result:
    column = values if name == "rewards" else scored.details.get(name)
    if column is None:
        names = ", ".join(["rewards", *scored.details])
        raise Problem("invalid", f"there is no output {name!r:.200}; this server gives {names}")
    numbers = [value for value in column if value is not None]
    if len(numbers) < len(values):
        missing = f"{len(values) - len(numbers)} of {len(values)} rows (first: row {[*column].index(None)})"
        raise Problem("invalid", f"the output {name!r} is missing for {missing}")
    for row, number in enumerate(numbers):
        if datatype == "FP32" and abs(number) > _MOST_FP32:
            raise Problem(
                "invalid",
                f"the output {name!r} of row {row} is {number}, which exceeds FP32; request it with the parameter datatype: FP64",
            )
    return Result(name=name, shape=[len(values), 1], datatype=datatype, data=numbers)
