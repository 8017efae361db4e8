"""The endpoints of text-embeddings-inference (TEI), whose clients need nothing but another URL.

Written after TEI 1.9.3. What it truncates on the right, or refuses, our rewards truncate the way that they were trained with;
``truncate`` and ``truncation_direction`` change nothing. ``POST /rerank`` is a path of vLLM's, too:
`rm_plugins.server.dialects.vllm` has it, and calls `rerank` here for a body in TEI's form.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from fastapi import APIRouter, Body
from pydantic import BaseModel, Field

from rm_plugins import __version__
from rm_plugins.samples import Sample
from rm_plugins.server.dialects.dialect import Cause, Problem, Scorer, score_all, text_sample
from rm_plugins.server.dialects.drop_in import LABEL, DropIn, RequestBody, probability

VERSION = "1.9.3"
"""The version of TEI whose requests and answers these are."""

_ERROR_TYPES: Mapping[Cause, str] = {
    "invalid": "Validation",
    "too-large": "Validation",
    "unsupported": "Validation",
    "unauthorized": "Unauthorized",
    "forbidden": "Unauthorized",
    "not-found": "Validation",
    "overload": "Overloaded",
    "unavailable": "Unhealthy",
    "failed": "Backend",
}

_Text = Annotated[list[str], Field(min_length=1, max_length=1, fail_fast=True)]
_Pair = Annotated[list[str], Field(min_length=2, max_length=2, fail_fast=True)]


class _Options(RequestBody):
    raw_scores: bool = Field(False, description="Give the reward itself, not its sigmoid.")
    truncate: bool | None = Field(None, description="Without effect: the reward truncates as it was trained.")
    truncation_direction: Literal["Left", "Right"] = Field("Right", description="Without effect.")


class Predict(_Options):
    """Texts, or pairs of a prompt and a completion, to score."""

    inputs: str | _Text | _Pair | Annotated[list[_Text | _Pair], Field(min_length=1, fail_fast=True)] = Field(
        description='One text "a" or ["a"], ONE pair ["a", "b"], or a batch of either [["a"], ["b", "c"]].'
    )

    @property
    def is_batch(self) -> bool:
        """Whether there may be several texts or pairs, even if there is one."""
        return not isinstance(self.inputs, str) and not isinstance(self.inputs[0], str)

    @property
    def items(self) -> list[list[str]]:
        """Each text or pair by itself."""
        if isinstance(self.inputs, str):
            return [[self.inputs]]
        texts = [item for item in self.inputs if isinstance(item, str)]
        return [texts] if texts else [item for item in self.inputs if not isinstance(item, str)]


class Rerank(_Options):
    """A prompt, and its completions to rank."""

    query: str
    texts: list[str] = Field(min_length=1, fail_fast=True)
    return_text: bool = False


class Prediction(BaseModel):
    """A score and what it is the score of: the reward has one output, with one name."""

    score: float
    label: str


class Rank(BaseModel):
    """A completion's score, where the request had it, and the completion itself if it was asked for."""

    index: int
    text: str | None = None
    score: float


_EXAMPLES: Any = {
    "text": {"summary": "One text", "value": {"inputs": "2+2?\n4", "raw_scores": True}},
    "pair": {"summary": "One pair of prompt and completion", "value": {"inputs": ["2+2?\n", "4"], "raw_scores": True}},
    "batch": {"summary": "A batch of texts and pairs", "value": {"inputs": [["2+2?\n4"], ["2+2?\n", "5"]], "raw_scores": True}},
}


class TEI(DropIn):
    """text-embeddings-inference: /predict and /info; /rerank is among vLLM's."""

    name: ClassVar[str] = "tei"
    statuses: ClassVar[Mapping[Cause, int]] = {"too-large": 422, "failed": 424}  # an oversized batch fails TEI's validation

    def error_body(self, problem: Problem, request_id: str) -> Any:
        """A problem as TEI tells it."""
        return {"error": problem.message, "error_type": _ERROR_TYPES[problem.cause]}

    def router(self, scorer: Scorer) -> APIRouter:
        """TEI's endpoints."""
        router = APIRouter(tags=["TEI"])

        @router.post("/predict", summary="Scores of texts or pairs")
        async def predict(
            body: Annotated[Predict, Body(openapi_examples=_EXAMPLES)],
        ) -> list[Prediction] | list[list[Prediction]]:
            _check_size(scorer, len(body.items))
            values, _ = await score_all(scorer, [_sample(scorer, row, item) for row, item in enumerate(body.items)])
            predictions = [[Prediction(score=_score(value, body), label=LABEL)] for value in values]
            return predictions if body.is_batch else predictions[0]

        @router.get("/info", summary="What is served")
        async def info() -> dict[str, Any]:
            # Of the fields that TEI has, those are left empty of which a reward says nothing, or that stand for settings of TEI alone.
            return {
                "model_id": scorer.name,
                "model_sha": None,
                "model_dtype": None,
                "model_type": {"reranker": {"id2label": {"0": LABEL}, "label2id": {LABEL: 0}}},
                "max_concurrent_requests": None,
                "max_input_length": None,
                "max_batch_tokens": None,
                "max_batch_requests": None,
                "max_client_batch_size": scorer.max_items,
                "auto_truncate": True,
                "tokenization_workers": None,
                "version": VERSION,
                "sha": None,
                "docker_label": None,
                "server": f"rm-plugins {__version__}",
            }

        return router


async def rerank(scorer: Scorer, body: Rerank) -> list[Rank]:
    """The completions of a prompt by their scores, the best first."""
    _check_size(scorer, len(body.texts))
    values, _ = await score_all(scorer, [_pair(row, body.query, text) for row, text in enumerate(body.texts)])
    order = sorted(range(len(values)), key=lambda row: values[row])[::-1]  # of equal ones, TEI has the last first
    texts = body.texts if body.return_text else [None] * len(values)
    return [Rank(index=row, text=texts[row], score=_score(values[row], body)) for row in order]


def _check_size(scorer: Scorer, size: int) -> None:
    if size > scorer.max_items:  # in TEI's words, by which clients know to split a batch
        raise Problem("too-large", f"batch size {size} > maximum allowed batch size {scorer.max_items}")


def _sample(scorer: Scorer, row: int, item: list[str]) -> Sample:
    if len(item) == 2:
        return _pair(row, *item)
    _check_filled(row, item[0])
    return text_sample(scorer, item[0])


def _pair(row: int, prompt: str, completion: str) -> Sample:
    _check_filled(row, prompt or completion)
    return Sample(prompt, completion)


def _check_filled(row: int, text: str) -> None:
    if not text:
        raise Problem("invalid", f"`inputs` cannot be empty (item {row})")


def _score(reward: float, options: _Options) -> float:
    return reward if options.raw_scores else probability(reward)
