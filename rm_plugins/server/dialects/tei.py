"""The endpoints of text-embeddings-inference (TEI); its clients only need another URL.

Compatible with TEI 1.9.3, from its source. A text that is too long is truncated as in the reward's training (TEI cuts off its end), or
refused if the request asks for another truncation. vLLM also has the paths ``POST /rerank`` and ``POST /tokenize``:
`rm_plugins.server.dialects.vllm` defines them, and calls `rerank` and `tokenize` of this module for a body in TEI's form.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from fastapi import APIRouter, Body
from pydantic import BaseModel, Discriminator, Field, Tag

from rm_plugins import __version__
from rm_plugins.samples import Sample
from rm_plugins.server.dialects.dialect import NO_ACTIVATION, Cause, Problem, Scorer, Token, score_all, text_sample
from rm_plugins.server.dialects.drop_in import DropIn, RequestBody, cuts_at, probability

VERSION = "1.9.3"
"""The version of TEI with which requests and answers are compatible."""

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
_Ids = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, fail_fast=True)]


class _Parameters(RequestBody):
    """The parameters that huggingface_hub's ``text_classification`` sends with the text."""

    function_to_apply: Literal["none", "sigmoid"] | None = None


class _Options(RequestBody):
    raw_scores: bool = Field(False, description="Return the reward itself, not its sigmoid.")
    truncate: bool | None = Field(
        None,
        description="False refuses texts that are too long for the model; otherwise they are truncated as in the reward's training.",
    )
    truncation_direction: Literal["Left", "left", "Right", "right"] | None = Field(
        None, description="A text that is too long for the model is refused if the reward truncates on the other side."
    )

    @property
    def is_raw(self) -> bool:
        """Whether the reward itself is requested."""
        return self.raw_scores


class Predict(_Options):
    """Texts, or pairs of a prompt and a completion, to score."""

    parameters: _Parameters | None = Field(
        None, description="`function_to_apply: none` means `raw_scores`; TEI itself ignores it."
    )

    inputs: str | _Text | _Pair | Annotated[list[_Text | _Pair], Field(min_length=1, fail_fast=True)] = Field(
        description='One text "a" or ["a"], ONE pair ["a", "b"], or a batch of either [["a"], ["b", "c"]].'
    )

    @property
    def is_raw(self) -> bool:
        """Whether the reward itself is requested, by either field."""
        return self.raw_scores or (self.parameters is not None and self.parameters.function_to_apply == "none")

    @property
    def is_batch(self) -> bool:
        """Whether the inputs are a batch, even of one text or pair."""
        return not isinstance(self.inputs, str) and not isinstance(self.inputs[0], str)

    @property
    def items(self) -> list[list[str]]:
        """The texts and pairs, as lists of one or two texts."""
        if isinstance(self.inputs, str):
            return [[self.inputs]]
        texts = [item for item in self.inputs if isinstance(item, str)]
        return [texts] if texts else [item for item in self.inputs if not isinstance(item, str)]


class Rerank(_Options):
    """A prompt, and its completions to rank."""

    query: str
    texts: list[str] = Field(min_length=1, fail_fast=True)
    return_text: bool = False


class Tokenize(RequestBody):
    """Texts to tokenize."""

    inputs: str | Annotated[list[str], Field(min_length=1, fail_fast=True)]
    add_special_tokens: bool = True
    prompt_name: None = Field(None, description="Not supported, because the reward has no named prompts.")


class SimpleToken(BaseModel):
    """A token and its first and last byte in the text; null for a token that the tokenizer added."""

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


class Decode(RequestBody):
    """Token ids to write as text."""

    ids: _Ids | Annotated[list[_Ids], Field(min_length=1, fail_fast=True)]
    skip_special_tokens: bool = True


def is_for_tei(body: Any) -> bool:
    """Whether a body is in TEI's form rather than vLLM's, at a path that both have."""
    if not isinstance(body, Mapping):
        return False
    return any(name in body for name in ("texts", "inputs")) and not any(name in body for name in ("documents", "prompt"))


OR_VLLM = Discriminator(lambda body: "tei" if is_for_tei(body) else "vllm")
"""Distinguishes TEI's bodies from vLLM's."""

AnyBody: TypeAlias = Annotated[
    Annotated[Predict, Tag("predict")] | Annotated[Rerank, Tag("rerank")],
    Discriminator(lambda body: "rerank" if isinstance(body, Mapping) and "texts" in body else "predict"),
]


class Prediction(BaseModel):
    """A score and its label; the reward has one output, so there is one label."""

    score: float
    label: str


class Rank(BaseModel):
    """A completion's score and position in the request, and the completion itself if it was requested."""

    index: int
    text: str | None = None
    score: float


_EXAMPLES: Any = {
    "text": {"summary": "One text", "value": {"inputs": "2+2?\n4", "raw_scores": True}},
    "pair": {"summary": "One pair of prompt and completion", "value": {"inputs": ["2+2?\n", "4"], "raw_scores": True}},
    "batch": {"summary": "A batch of texts and pairs", "value": {"inputs": [["2+2?\n4"], ["2+2?\n", "5"]], "raw_scores": True}},
}
RANKS: Any = {"tei": {"summary": "In TEI's form", "value": {"query": "2+2?\n", "texts": ["4", "5"], "raw_scores": True}}}
TOKENS: Any = {"tei": {"summary": "In TEI's form", "value": {"inputs": ["2+2?", "4"]}}}
_IDS: Any = {"ids": {"summary": "Token ids", "value": {"ids": [[5, 6, 7], [5]]}}}


class TEI(DropIn):
    """text-embeddings-inference: /predict, /decode and /info; the dialect of vLLM has /rerank and /tokenize."""

    name: ClassVar[str] = "tei"
    statuses: ClassVar[Mapping[Cause, int]] = {"too-large": 422, "failed": 424}  # an oversized batch fails TEI's validation

    def error_body(self, problem: Problem, request_id: str) -> Any:
        """The error body of TEI."""
        return {"error": problem.message, "error_type": _ERROR_TYPES[problem.cause]}

    def router(self, scorer: Scorer) -> APIRouter:
        """TEI's endpoints."""
        router = APIRouter(tags=["TEI"])

        @router.post("/predict", summary="Scores of texts or pairs")
        async def predict(
            body: Annotated[Predict, Body(openapi_examples=_EXAMPLES)],
        ) -> list[Prediction] | list[list[Prediction]]:
            _check_size(scorer, len(body.items))
            values = await _scored(scorer, body, [_sample(scorer, row, item) for row, item in enumerate(body.items)])
            predictions = [[Prediction(score=_score(value, body), label=scorer.output.label)] for value in values]
            return predictions if body.is_batch else predictions[0]

        # At this path, TEI serves /rerank for a reranker and /predict for a classifier; a model with one output is either.
        @router.post("/", summary="The same as /predict or /rerank, depending on the body", response_model_exclude_none=True)
        async def either(
            body: Annotated[AnyBody, Body(openapi_examples=_EXAMPLES | RANKS)],
        ) -> list[Prediction] | list[list[Prediction]] | list[Rank]:
            return await rerank(scorer, body) if isinstance(body, Rerank) else await predict(body)

        @router.post("/decode", summary="The texts of token ids")
        async def decode(body: Annotated[Decode, Body(openapi_examples=_IDS)]) -> list[str]:
            rows = [ids for ids in body.ids if isinstance(ids, list)] or [
                [token for token in body.ids if isinstance(token, int)]
            ]
            _check_size(scorer, len(rows))
            return await scorer.detokenize(rows, skip_special_tokens=body.skip_special_tokens)

        @router.get("/info", summary="What is served")
        async def info() -> dict[str, Any]:
            # Fields of TEI that do not apply to a reward, or that are settings of TEI only, are null.
            return {
                "model_id": scorer.name,
                "model_sha": None,
                "model_dtype": "float32",  # the type of the answers, because a client requires a text here
                "model_type": {"reranker": {"id2label": {"0": scorer.output.label}, "label2id": {scorer.output.label: 0}}},
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
                "reads": scorer.info["reads"],
                "pair": scorer.info["pair"],
            }

        return router


async def rerank(scorer: Scorer, body: Rerank) -> list[Rank]:
    """The completions of a prompt by their scores, the best first."""
    _check_size(scorer, len(body.texts))
    values = await _scored(scorer, body, [_pair(row, body.query, text) for row, text in enumerate(body.texts)])
    order = sorted(range(len(values)), key=lambda row: values[row])[::-1]  # TEI puts the last of equal scores first
    texts = body.texts if body.return_text else [None] * len(values)
    return [Rank(index=row, text=texts[row], score=_score(values[row], body)) for row in order]


async def tokenize(scorer: Scorer, body: Tokenize) -> list[list[SimpleToken]]:
    """The tokens of texts, and their positions in bytes."""
    texts = [body.inputs] if isinstance(body.inputs, str) else body.inputs
    _check_size(scorer, len(texts))
    rows = await scorer.tokenize(texts, add_special_tokens=body.add_special_tokens)
    return [_simple_tokens(text, tokens) for text, tokens in zip(texts, rows, strict=True)]


def _simple_tokens(text: str, tokens: Sequence[Token]) -> list[SimpleToken]:
    before = [0]  # bytes before each character
    for character in text:
        before.append(before[-1] + len(character.encode()))
    return [
        SimpleToken(id=token.id, text=token.name, special=True, start=None, stop=None)
        if token.is_special
        else SimpleToken(
            id=token.id, text=text[token.start : token.stop], special=False, start=before[token.start], stop=before[token.stop]
        )
        for token in tokens
    ]


async def _scored(scorer: Scorer, body: _Options, samples: Sequence[Sample]) -> list[float]:
    if not (scorer.output.is_only or body.is_raw):
        raise Problem("invalid", f"`raw_scores`: {NO_ACTIVATION['softmax']}; send true")
    values, scored = await score_all(scorer, samples)
    if scored.metadata.get("truncated", 0):
        side = cuts_at(scorer, samples)
        if body.truncate is False:
            raise Problem(
                "invalid", "`inputs` are too long for the model, and truncate is false; shorten them or set it to true"
            )
        if body.truncation_direction not in (None, side, side.capitalize()):
            raise Problem(
                "invalid",
                f"`inputs` are too long for the model, and the reward truncates on the {side}; leave truncation_direction out",
            )
    return values


def _check_size(scorer: Scorer, size: int) -> None:
    if size > scorer.max_items:  # TEI's message, by which clients know to split a batch
        raise Problem("too-large", f"batch size {size} > maximum allowed batch size {scorer.max_items} (--max-items)")


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
    return reward if options.is_raw else probability(reward)
