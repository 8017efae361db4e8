"""The server's own endpoints: rewards with their details, abstentions and errors, and what the reward is."""

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
            "description": "Both are text, or both messages; the reward renders them. Columns are the others of a dataset's row.",
            "type": "object",
            "properties": {"prompt": _TEXT_OR_MESSAGES, "completion": _TEXT_OR_MESSAGES, "columns": {"type": "object"}},
            "required": ["prompt", "completion"],
            "additionalProperties": False,
        },
        {
            "title": "Text",
            "description": "A text that the model scores as it is.",
            "type": "object",
            "properties": {"text": {"type": "string"}, "add_special_tokens": {"type": "boolean", "default": True}},
            "required": ["text"],
            "additionalProperties": False,
        },
        {
            "title": "Token ids",
            "description": "What the model is given.",
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

    id: str | None = Field(None, description="Any text; the answer has it too.", max_length=1_000)
    samples: list[AnySample] = Field(fail_fast=True, description="What is scored; at most `max_items` of GET /v1/info.")
    details: bool = Field(True, description="Whether the answer has the details of the rewards.")


class Reward(BaseModel):
    """The reward of one sample."""

    index: int = Field(description="The sample's place in the request, from 0.")
    reward: float | None = Field(description="Null where the reward abstained and where it failed.")
    error: str | None = Field(None, description="Why there is no reward, where it failed; absent otherwise.")


class Usage(BaseModel):
    """What a request took."""

    samples: int
    tokens: int = Field(description="Of all samples, after truncation; 0 where no model scored.")
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
    fingerprint: str = Field(description="Changes with the weights, the rendering and the spec of what scored.")
    manifests: dict[str, str] = Field(description="By path in the spec, the SHA-256 of a model's reward manifest.")
    rewards: list[Reward]
    details: dict[str, list[float | None]] = Field(description="Named extras, one per sample, such as members' scores.")
    usage: Usage


class Info(BaseModel):
    """What is served."""

    protocol: str = Field(examples=["rm-plugins/1"])
    server: str = Field(examples=["rm-plugins 0.1.0"])
    model: str
    fingerprint: str
    manifests: dict[str, str]
    max_items: int
    rendered: bool = Field(description="Whether texts and token ids are taken, which only models can score.")
    reads: dict[str, Literal["last", "before-padding"] | None] = Field(
        description="By path in the spec, which token of a text the head of a model reads: its very last, or the last that is not padding; "
        "null for an encoder. Set by `read` in the spec."
    )
    pair: bool | None = Field(
        description="Whether the models encode prompt and completion as a pair, as cross-encoders do; null where it is not known of one, "
        "which then scores none. Set by `pair` in the spec."
    )
    templates: bool = Field(description="Whether all models render conversations with a chat template.")
    max_length: int | None = Field(
        description="Most tokens that every model takes; longer texts are truncated as it was trained."
    )
    spec: dict[str, Any] | None


class RenderRequest(_Strict):
    """Samples to render."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"samples": _TWO_SAMPLES[:1]}]})

    samples: list[AnySample] = Field(fail_fast=True)


class Rendering(BaseModel):
    """What a model is given for a sample."""

    model: str
    path: str = Field(description="In the spec.")
    text: str
    tokens: list[str]
    token_ids: list[int]
    truncated: bool


class RenderAnswer(BaseModel):
    """For each sample, what each model makes of it; models that make the same are named once."""

    renderings: list[list[Rendering]]


class ReloadAnswer(BaseModel):
    """Whether another reward scores now."""

    fingerprint: str
    changed: bool


class Native(Dialect):
    """The server's own: /v1/rewards, with details, abstentions and errors."""

    name: ClassVar[str] = "rm-plugins"
    samples_field: ClassVar[str] = "samples"

    def router(self, scorer: Scorer) -> APIRouter:
        """The endpoints of ``rm-plugins/1``."""
        router = APIRouter(tags=["rm-plugins"])

        @router.post("/v1/rewards", response_model=RewardsAnswer, response_model_exclude_none=False)
        async def rewards(body: RewardsRequest) -> Response:
            """Score samples. What is wrong with one of them is said in its place, and the others are scored."""
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
            """What is served, and what it takes."""
            return _json(scorer.info)

        @router.post("/v1/render", response_model=RenderAnswer)
        async def render(body: RenderRequest) -> Response:
            """The texts and tokens that the models of the reward are given; none where nothing renders."""
            samples, errors = _samples(scorer, body.samples)
            if errors:
                raise _problem(errors)
            return _json({"renderings": await scorer.render([*samples.values()])})

        @router.post("/v1/reload", response_model=ReloadAnswer)
        async def reload(request: Request) -> Response:
            """Load the spec again, and score with it from the next batch on. Where it cannot be loaded, nothing changes."""
            if not request.state.may_operate:
                raise Problem(
                    "forbidden",
                    "without a key, only this machine may ask for it, with the header X-RM-Plugins: reload; or send the process SIGHUP",
                )
            changed = await scorer.reload()
            return _json({"fingerprint": scorer.fingerprint, "changed": changed})

        return router


def _samples(scorer: Scorer, values: Sequence[Any]) -> tuple[dict[int, Sample], dict[int, str]]:
    """The samples by row, and what is wrong with those that are none."""
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
