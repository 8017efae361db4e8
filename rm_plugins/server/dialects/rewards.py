"""The server's own endpoints: rewards with details, abstentions and errors, and information about the reward."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from rm_plugins.errors import DataError
from rm_plugins.samples import Sample
from rm_plugins.server.dialects.dialect import Dialect, Problem, Scorer, check_count
from rm_plugins.wire import sample_from_json

_MESSAGES = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {
            "role": {"enum": ["assistant", "developer", "function", "system", "tool", "user"]},
            "content": {"type": "string"},
        },
        "required": ["role"],
    },
}
_TEXT_OR_MESSAGES = {"oneOf": [{"type": "string"}, _MESSAGES]}
_SAMPLE = {
    "oneOf": [
        {
            "title": "Prompt and completion",
            "description": "Both are text, or both are messages; the reward renders them. `columns` are other columns of a dataset row.",
            "type": "object",
            "properties": {"prompt": _TEXT_OR_MESSAGES, "completion": _TEXT_OR_MESSAGES, "columns": {"type": "object"}},
            "required": ["prompt", "completion"],
            "additionalProperties": False,
        },
        {
            "title": "Text",
            "description": "A text that the model scores unchanged.",
            "type": "object",
            "properties": {"text": {"type": "string"}, "add_special_tokens": {"type": "boolean", "default": True}},
            "required": ["text"],
            "additionalProperties": False,
        },
        {
            "title": "Token ids",
            "description": "The input of the model.",
            "type": "object",
            "properties": {"token_ids": {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}},
            "required": ["token_ids"],
            "additionalProperties": False,
        },
    ]
}
_TWO_SAMPLES: list[Any] = [
    {"prompt": "Q: What is 2 + 2?\nA:", "completion": " 4"},
    {"prompt": [{"role": "user", "content": "Name a colour."}], "completion": [{"role": "assistant", "content": "Blue."}]},
]
_FINGERPRINT = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"

AnySample = Annotated[Any, WithJsonSchema(_SAMPLE)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class RewardsRequest(_Strict):
    """Samples to score."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"id": "step-7", "samples": _TWO_SAMPLES}]})

    id: str | None = Field(None, description="Any text; it is returned in the answer.", max_length=1_000)
    samples: list[AnySample] = Field(
        fail_fast=True, description="The samples to score, at most `max_items` (see GET /v1/info)."
    )
    details: bool = Field(True, description="Whether the answer includes the details of the rewards.")


class Reward(BaseModel):
    """The reward of one sample."""

    index: int = Field(description="The position of the sample in the request, from 0.")
    reward: float | None = Field(description="Null if the reward abstained or failed.")
    error: str | None = Field(None, description="Why the reward failed; absent if it did not.")


class Usage(BaseModel):
    """The size of a request."""

    samples: int
    tokens: int = Field(description="Tokens of all samples after truncation; 0 if no model scored.")
    truncated: int = Field(description="Samples that were too long for the model and lost the beginning of their prompt.")


class RewardsAnswer(BaseModel):
    """The rewards of a request, in the order of its samples."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "step-7",
                    "model": "my-reward",
                    "fingerprint": _FINGERPRINT,
                    "manifests": {"": _FINGERPRINT},
                    "rewards": [{"index": 0, "reward": 1.25}, {"index": 1, "reward": None}],
                    "details": {"std": [0.1, None]},
                    "usage": {"samples": 2, "tokens": 31, "truncated": 0},
                }
            ]
        }
    )

    id: str | None
    model: str
    fingerprint: str = Field(description="Changes with the weights, the rendering and the spec of the reward.")
    manifests: dict[str, str] = Field(description="The SHA-256 of each model's reward manifest, by path in the spec.")
    rewards: list[Reward]
    details: dict[str, list[float | None]] = Field(description="Named extras, one per sample, such as members' scores.")
    usage: Usage


class Info(BaseModel):
    """The served reward and its limits."""

    protocol: str = Field(examples=["rm-plugins/1"])
    server: str = Field(examples=["rm-plugins 0.1.0"])
    model: str
    fingerprint: str
    manifests: dict[str, str]
    max_items: int
    rendered: bool = Field(description="Whether rendered texts and token ids are accepted; only models can score them.")
    compares: bool = Field(
        description="Whether a score depends on the other samples of its group in the request, as a rank does."
    )
    reads: dict[str, Literal["last", "before-padding"] | None] = Field(
        description="The token of a text that the head of each model reads, by path in the spec: the very last one, or the last one that "
        "is not padding; null for an encoder. Set by `read` in the spec."
    )
    pair: bool | None = Field(
        description="Whether the models encode prompt and completion as a pair, like cross-encoders; null if this is unknown for a model, "
        "which then scores no prompts with completions. Set by `pair` in the spec."
    )
    templates: bool = Field(description="Whether all models render conversations with a chat template.")
    max_length: int | None = Field(
        description="The most tokens that every model takes; longer texts are truncated as in its training."
    )
    spec: dict[str, Any] | None


class RenderRequest(_Strict):
    """Samples to render."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"samples": _TWO_SAMPLES[:1]}]})

    samples: list[AnySample] = Field(fail_fast=True)


class Rendering(BaseModel):
    """The input of a model for a sample."""

    model: str
    path: str = Field(description="The path of the model in the spec.")
    text: str
    tokens: list[str]
    token_ids: list[int]
    truncated: bool


class RenderAnswer(BaseModel):
    """The renderings of each sample; models with equal renderings are listed once."""

    renderings: list[list[Rendering]]


class ReloadAnswer(BaseModel):
    """The current reward, and whether it has changed."""

    fingerprint: str
    changed: bool


class Native(Dialect):
    """The server's own dialect: /v1/rewards, with details, abstentions and errors."""

    name: ClassVar[str] = "rm-plugins"
    samples_field: ClassVar[str] = "samples"

    def router(self, scorer: Scorer) -> APIRouter:
        """The endpoints of ``rm-plugins/1``."""
        router = APIRouter(tags=["rm-plugins"])

        @router.post("/v1/rewards", response_model=RewardsAnswer, response_model_exclude_none=False)
        async def rewards(body: RewardsRequest) -> Response:
            """Score samples. An invalid sample gets an error at its position, and the others are scored."""
            samples, errors = _samples(scorer, body.samples)
            if errors and not samples:
                raise _problem(errors)
            scored = await scorer.score([*samples.values()])
            rows = [*samples]
            errors |= {rows[place]: message for place, message in scored.errors.items()}
            values = dict(zip(rows, scored.values, strict=True))
            entries: list[dict[str, Any]] = [{"index": row, "reward": values.get(row)} for row in range(len(body.samples))]
            for row, message in errors.items():
                entries[row]["error"] = message
            details = {name: dict(zip(rows, column, strict=True)) for name, column in scored.details.items()}
            return _json(
                {
                    "id": body.id,
                    "model": scorer.name,
                    "fingerprint": scored.fingerprint,
                    "manifests": scored.metadata["manifests"],
                    "rewards": entries,
                    "details": {
                        name: [column.get(row) for row in range(len(entries))]
                        for name, column in details.items()
                        if body.details
                    },
                    "usage": {
                        "samples": len(entries),
                        "tokens": scored.metadata["tokens"],
                        "truncated": scored.metadata["truncated"],
                    },
                }
            )

        @router.get("/v1/info", response_model=Info)
        async def info() -> Response:
            """The served reward, and the requests that it accepts."""
            return _json(scorer.info)

        @router.post("/v1/render", response_model=RenderAnswer)
        async def render(body: RenderRequest) -> Response:
            """The texts and tokens that the models of the reward get; empty if the reward has no model."""
            samples, errors = _samples(scorer, body.samples)
            if errors:
                raise _problem(errors)
            return _json({"renderings": await scorer.render([*samples.values()])})

        @router.post("/v1/reload", response_model=ReloadAnswer)
        async def reload(request: Request) -> Response:
            """Reload the spec, and score with it from the next batch on. If it cannot be loaded, nothing changes."""
            if not request.state.may_operate:
                raise Problem(
                    "forbidden",
                    "a server without keys reloads only on requests from this machine with the header X-RM-Plugins: reload, or on SIGHUP",
                )
            changed = await scorer.reload()
            return _json({"fingerprint": scorer.fingerprint, "changed": changed})

        return router


def _samples(scorer: Scorer, values: Sequence[Any]) -> tuple[dict[int, Sample], dict[int, str]]:
    """The samples by row, and the errors of invalid samples by row."""
    check_count(scorer, len(values))
    samples: dict[int, Sample] = {}
    errors: dict[int, str] = {}
    for row, value in enumerate(values):
        try:
            samples[row] = sample_from_json(value)
        except DataError as error:
            errors[row] = str(error)
    return samples, errors


def _problem(errors: Mapping[int, str]) -> Problem:
    row, message = next(iter(errors.items()))
    return Problem("invalid", f"body.samples[{row}]: {message}")


def _json(content: Any) -> Response:
    return Response(json.dumps(content, allow_nan=False, default=str).encode(), media_type="application/json")
