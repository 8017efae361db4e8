"""The Open Inference Protocol, version 2: what clients of Triton, KServe and NeMo-Aligner's reward model server speak.

The tensors are those of NeMo-Aligner's `reward_model`: ``sentences``, or ``tokens`` with ``sequence_lengths``, give ``rewards``. Tensors
are JSON; Triton's extension for binary ones is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

from fastapi import APIRouter, Body, Depends, Request
from pydantic import BaseModel, Field

from rm_plugins import __version__
from rm_plugins.errors import DataError
from rm_plugins.samples import Sample
from rm_plugins.server.dialects.dialect import Cause, Problem, Scored, Scorer, check_count, check_model, score_all, text_sample
from rm_plugins.server.dialects.drop_in import DropIn, RequestBody

_IDS = ("input_ids", "token_ids", "tokens")
_PADDING = ("attention_mask", "sequence_lengths")
_IGNORED = ("add_EOS",)  # which NeMo-Aligner's server takes, and ignores as well
_INPUTS = (
    "'sentences'; or 'prompts' and 'completions'; or one of 'input_ids', 'token_ids' and 'tokens', with 'attention_mask' or "
    "'sequence_lengths' where rows are padded"
)
_BINARY = "this server takes and gives tensors as JSON, not as binary data: set binary_data=False for every input and output"


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
    data: list[Any] = Field(description="Row by row, flat or nested.")
    parameters: dict[str, Any] = Field({})


class Output(RequestBody):
    """An output that is asked for."""

    name: str
    parameters: dict[str, Any] = Field({})


class Infer(RequestBody):
    """Texts, pairs of texts, or token ids to score."""

    id: str | None = Field(None, description="Repeated in the answer.")
    inputs: list[Tensor] = Field(min_length=1, fail_fast=True, description=f"{_INPUTS}.".replace("'", "`"))
    outputs: Annotated[list[Output], Field(fail_fast=True)] | None = Field(
        None, description="`rewards`, which is the default, and details by their names."
    )
    parameters: dict[str, Any] = Field(
        {}, description="`add_special_tokens`: whether the tokenizer adds its own to `sentences`; false by default."
    )


class Result(BaseModel):
    """An output: one number per row."""

    name: str
    shape: list[int]
    datatype: str
    data: list[float]


class Inferred(BaseModel):
    """The outputs that were asked for."""

    model_name: str
    id: str | None = None
    outputs: list[Result]


_EXAMPLES: Any = {
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


class OpenInference(DropIn):
    """The Open Inference Protocol of Triton, KServe and NeMo-Aligner: /v2/models/MODEL/infer."""

    name: ClassVar[str] = "oip"
    advice: ClassVar[str] = f"{_BINARY}, and have tritonclient send headers={{'Content-Type': 'application/json'}}"
    statuses: ClassVar[Mapping[Cause, int]] = {"invalid": 400}

    def error_body(self, problem: Problem, request_id: str) -> Any:
        """A problem as the protocol tells it."""
        return {"error": problem.message}

    def router(self, scorer: Scorer) -> APIRouter:
        """The protocol's endpoints."""
        router = APIRouter(tags=["Open Inference Protocol"])

        @router.get("/v2", summary="This server")
        async def server() -> dict[str, Any]:
            return {"name": "rm-plugins", "version": __version__, "extensions": []}

        @router.get("/v2/health/live", summary="Whether the server answers")
        async def live() -> dict[str, bool]:
            return {"live": True}

        @router.get("/v2/health/ready", summary="Whether the server scores")
        async def ready() -> dict[str, bool]:
            _check_ready(scorer)
            return {"ready": True}

        # A model's name may be a path, and so have slashes.
        @router.get("/v2/models/{model:path}/ready", summary="Whether a model scores")
        async def model_ready(model: str) -> dict[str, Any]:
            check_model(scorer, model)
            _check_ready(scorer)
            return {"name": model, "ready": True}

        @router.get("/v2/models/{model:path}", summary="A model's tensors")
        async def metadata(model: str) -> dict[str, Any]:
            check_model(scorer, model)
            return {
                "name": model,
                "platform": "rm-plugins",
                "inputs": [{"name": "sentences", "datatype": "BYTES", "shape": [-1, 1]}],
                "outputs": [{"name": "rewards", "datatype": "FP32", "shape": [-1, 1]}],
            }

        @router.post(
            "/v2/models/{model:path}/infer",
            summary="Rewards of texts, pairs or token ids",
            dependencies=[Depends(_refuse_binary_body)],
            response_model_exclude_none=True,
        )
        async def infer(model: str, body: Annotated[Infer, Body(openapi_examples=_EXAMPLES)]) -> Inferred:
            check_model(scorer, model)
            _refuse_binary_parameters(body)
            values, scored = await score_all(scorer, _samples(scorer, body))
            names = [output.name for output in body.outputs or ()] or ["rewards"]
            return Inferred(model_name=model, id=body.id, outputs=[_result(name, values, scored) for name in names])

        return router


def _check_ready(scorer: Scorer) -> None:
    if not scorer.is_ready:
        raise Problem("unavailable", "the server is stopping")


def _refuse_binary_body(request: Request) -> None:
    if "inference-header-content-length" in request.headers:
        raise Problem("invalid", _BINARY)


def _refuse_binary_parameters(body: Infer) -> None:
    asked = [body.parameters.get("binary_data_output"), *(tensor.parameters.get("binary_data_size") for tensor in body.inputs)]
    asked += [output.parameters.get("binary_data") for output in body.outputs or ()]
    if any(asked):
        raise Problem("invalid", _BINARY)


def _samples(scorer: Scorer, body: Infer) -> list[Sample]:
    tensors = {tensor.name: tensor for tensor in body.inputs if tensor.name not in _IGNORED}
    if len(tensors) < len([tensor for tensor in body.inputs if tensor.name not in _IGNORED]):
        raise Problem("invalid", "an input is there twice")
    check_count(scorer, max((tensor.shape[0] for tensor in tensors.values()), default=0))
    match sorted(tensors):
        case ["sentences"]:
            add = body.parameters.get("add_special_tokens", False)
            if not isinstance(add, bool):
                raise Problem("invalid", "parameters.add_special_tokens is true or false")
            return [text_sample(scorer, text, add_special_tokens=add) for text in _texts(tensors["sentences"])]
        case ["completions", "prompts"]:
            prompts, completions = _texts(tensors["prompts"]), _texts(tensors["completions"])
            _check_rows("completions", len(completions), "prompts", len(prompts))
            return [Sample(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]
    ids, padding = [name for name in tensors if name in _IDS], [name for name in tensors if name in _PADDING]
    if len(ids) != 1 or len(padding) > 1 or len(tensors) > len(ids) + len(padding):
        raise Problem("invalid", f"the inputs are {', '.join(sorted(tensors)) or 'none'}; what this server takes is {_INPUTS}")
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


def _without_padding(rows: Sequence[Sequence[int]], ids: str, tensor: Tensor) -> list[list[int]]:
    padding = _integers(tensor)
    _check_rows(tensor.name, len(padding), ids, len(rows))
    if tensor.name == "attention_mask":
        for number, (mask, row) in enumerate(zip(padding, rows, strict=True)):
            if len(mask) != len(row) or not set(mask) <= {0, 1}:
                raise Problem(
                    "invalid", f"row {number} of attention_mask is not {len(row)} times 0 or 1, one for each of {ids}"
                )
        return [[token for token, kept in zip(row, mask, strict=True) if kept] for row, mask in zip(rows, padding, strict=True)]
    for number, (length, row) in enumerate(zip(padding, rows, strict=True)):
        if len(length) != 1 or not 0 < length[0] <= len(row):
            raise Problem(
                "invalid", f"row {number} of sequence_lengths is not one number from 1 to {len(row)}, the length of {ids}"
            )
    return [list(row[: length[0]]) for row, length in zip(rows, padding, strict=True)]


def _check_rows(name: str, rows: int, other: str, others: int) -> None:
    if rows != others:
        raise Problem("invalid", f"{name} has {rows} rows and {other} has {others}")


def _texts(tensor: Tensor) -> list[str]:
    """The texts of a tensor of the shape [B] or [B, 1]."""
    if tensor.datatype != "BYTES" or tensor.shape[1:] not in ([], [1]):
        raise Problem("invalid", f"{tensor.name} is of {tensor.datatype} and {tensor.shape}; BYTES and [B] or [B, 1] is right")
    values = _flat(tensor)
    for row, value in enumerate(values):
        if not isinstance(value, str):
            raise Problem("invalid", f"row {row} of {tensor.name} is {value!r:.80}; a text is right")
    return values


def _integers(tensor: Tensor) -> list[list[int]]:
    """The rows of a tensor of the shape [B, L]; [B] is taken as [B, 1]."""
    if tensor.datatype not in ("INT64", "INT32"):
        raise Problem("invalid", f"{tensor.name} is of {tensor.datatype}; INT64 or INT32 is right")
    values, width = _flat(tensor), math.prod(tensor.shape[1:])
    for place, value in enumerate(values):
        if type(value) is not int:
            raise Problem("invalid", f"row {place // width} of {tensor.name} has {value!r:.80} in it; integers are right")
    return [values[start : start + width] for start in range(0, len(values), width)]


def _flat(tensor: Tensor) -> list[Any]:
    nested = bool(tensor.data) and all(isinstance(row, list) for row in tensor.data)
    if nested and [len(tensor.data), *{len(row) for row in tensor.data}] != tensor.shape:
        raise Problem("invalid", f"the data of {tensor.name} are lists of other lengths than the shape {tensor.shape}")
    values = [value for row in tensor.data for value in row] if nested else tensor.data
    if len(values) != math.prod(tensor.shape):
        raise Problem(
            "invalid",
            f"the data of {tensor.name} are {len(values)} values; the shape {tensor.shape} needs {math.prod(tensor.shape)}",
        )
    return values


def _result(name: str, values: Sequence[float], scored: Scored) -> Result:
    column = values if name == "rewards" else scored.details.get(name)
    if column is None:
        names = ", ".join(["rewards", *scored.details])
        raise Problem("invalid", f"there is no output {name!r:.200}; this server gives {names}")
    numbers = [value for value in column if value is not None]
    if len(numbers) < len(values):
        missing = f"{len(values) - len(numbers)} of {len(values)} rows (first: row {[*column].index(None)})"
        raise Problem("invalid", f"the output {name!r} is missing for {missing}")
    return Result(name=name, shape=[len(values), 1], datatype="FP32", data=numbers)
