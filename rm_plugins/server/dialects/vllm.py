"""The endpoints of vLLM's pooling models; its clients only need another URL.

Compatible with vLLM 0.32.0 and 0.33.0, from their source. As in vLLM, a score is the sigmoid of the reward unless ``use_activation`` is
false or the model's configuration has ``problem_type: regression``. Requests for anything that would change the reward, such as another
template, are refused. A text that is too long is truncated as in the reward's training; vLLM refuses it unless ``truncate_prompt_tokens``
is set. ``POST /v1/embeddings`` is for clients of SGLang's reward models, which read the reward there.
"""

from __future__ import annotations

import base64
import struct
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from http import HTTPStatus
from typing import Annotated, Any, ClassVar, TypeVar

from fastapi import APIRouter, Body, Depends, Request, Response
from fastapi.responses import JSONResponse

from rm_plugins import __version__
from rm_plugins.samples import RenderedSample, Sample
from rm_plugins.server.dialects import tei
from rm_plugins.server.dialects import vllm_bodies as bodies
from rm_plugins.server.dialects.dialect import (
    NO_ACTIVATION,
    STATUS,
    Cause,
    Problem,
    Scored,
    Scorer,
    check_count,
    check_model,
    score_all,
    text_sample,
)
from rm_plugins.server.dialects.drop_in import DropIn, cuts_at, probability

_Entry = TypeVar("_Entry")

VERSION = "0.33.0"
"""The version of vLLM with which requests and answers are compatible; clients choose field names by it."""

_ERROR_TYPES: Mapping[Cause, str] = {
    "invalid": "BadRequestError",
    "not-found": "NotFoundError",
    "overload": "ServiceUnavailableError",
    "unavailable": "ServiceUnavailableError",
    "failed": "InternalServerError",
}
_BYTE_ORDERS = {"native": "=", "little": "<", "big": ">"}


_INPUTS: Any = {
    "texts": {
        "summary": "Texts that already have their special tokens",
        "value": {
            "input": ["<|user|>2+2?<|assistant|>4", "<|user|>2+2?<|assistant|>5"],
            "use_activation": False,
            "add_special_tokens": False,
        },
    },
    "tokens": {"summary": "Token ids", "value": {"input": [[5, 6, 7], [5, 8]], "use_activation": False}},
    "chat": {
        "summary": "A conversation",
        "value": {
            "messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}],
            "use_activation": False,
        },
    },
}
_TEXTS: Any = {
    name: {"summary": _INPUTS[name]["summary"], "value": {"input": _INPUTS[name]["value"]["input"]}}
    for name in ("texts", "tokens")
}
_PAIRS: Any = {
    "many": {
        "summary": "Completions of a prompt",
        "value": {"queries": "2+2?\n", "documents": ["4", "5"], "use_activation": False},
    },
    "pairs": {"summary": "Pairs", "value": {"text_1": ["2+2?\n", "3+3?\n"], "text_2": ["4", "6"], "use_activation": False}},
}
_RANKS: Any = {"best": {"summary": "The best one", "value": {"query": "2+2?\n", "documents": ["4", "5"], "top_n": 1}}}
_TEXT: Any = {
    "text": {"summary": "A text", "value": {"prompt": "2+2?", "return_token_strs": True}},
    "chat": {
        "summary": "A conversation",
        "value": {"messages": [{"role": "user", "content": "2+2?"}], "add_generation_prompt": False},
    },
}
_IDS: Any = {"ids": {"summary": "Token ids", "value": {"tokens": [5, 6, 7]}}}


class VLLM(DropIn):
    """vLLM's pooling models: /classify, /pooling, /score, /rerank and /tokenize."""

    name: ClassVar[str] = "vllm"
    statuses: ClassVar[Mapping[Cause, int]] = {
        "invalid": 400,
        "overload": 503,
    }  # vLLM never answers 429, and some of its clients fail on it

    def error_body(self, problem: Problem, request_id: str) -> Any:
        """The error body of vLLM."""
        if problem.cause == "unauthorized":
            return {"error": "Unauthorized"}
        kind = _ERROR_TYPES.get(problem.cause) or HTTPStatus(problem.status).phrase
        return {"error": {"message": problem.message, "type": kind, "param": None, "code": problem.status}}

    def router(self, scorer: Scorer) -> APIRouter:
        """vLLM's endpoints."""
        router = APIRouter(tags=["vLLM"])
        started = int(time.time())

        @router.post("/classify", summary="Scores of texts, token ids or a conversation")
        async def classify(
            request: Request, body: Annotated[bodies.Classify, Body(openapi_examples=_INPUTS)]
        ) -> bodies.Answer[bodies.Classified]:
            values, scored = await _scores(scorer, body, _inputs(scorer, body))
            data = [bodies.Classified(index=row, label=scorer.output.label, probs=[value]) for row, value in enumerate(values)]
            return _answer("classify", scorer, request, body, scored, data)

        @router.post("/pooling", summary="The same as vectors of one number")
        async def pooling(
            request: Request, body: Annotated[bodies.Pooling, Body(openapi_examples=_INPUTS)]
        ) -> bodies.Answer[bodies.Pooled]:
            values, scored = await _scores(scorer, body, _inputs(scorer, body))
            data = [bodies.Pooled(index=row, data=_vector(value, body)) for row, value in enumerate(values)]
            return _answer("pooling", scorer, request, body, scored, data)

        @router.post("/score", summary="Scores of prompts and completions")
        @router.post("/v1/score", summary="Scores of prompts and completions")
        async def score(
            request: Request, body: Annotated[bodies.Score, Body(openapi_examples=_PAIRS)]
        ) -> bodies.Answer[bodies.ScoredPair]:
            samples = await _pairs(scorer, body, *body.sides)
            values, scored = await _scores(scorer, body, samples)
            data = [bodies.ScoredPair(index=row, score=value) for row, value in enumerate(values)]
            return _answer("score", scorer, request, body, scored, data)

        async def ranking(request: Request, body: bodies.Rerank) -> bodies.Ranking:
            documents = body.texts
            samples = await _pairs(scorer, body, body.query, documents)
            rewards, scored = await _rewards(scorer, body, samples)
            # Sorted by the rewards, because all sigmoids of rewards above 37 are 1.
            order = sorted(range(len(rewards)), key=lambda row: rewards[row], reverse=True)[: body.top_n or None]
            scores = _activated(scorer, body, rewards)
            results = [
                bodies.Ranked(index=row, document=bodies.Document(text=documents[row]), relevance_score=scores[row])
                for row in order
            ]
            usage = bodies.RankUsage(prompt_tokens=_tokens(scored), total_tokens=_tokens(scored))
            return bodies.Ranking(id=_id("score", scorer, request, body), model=scorer.name, results=results, usage=usage)

        @router.post("/v1/rerank", summary="Completions of a prompt, the best first")
        @router.post("/v2/rerank", summary="Completions of a prompt, the best first")
        async def rerank(request: Request, body: Annotated[bodies.Rerank, Body(openapi_examples=_RANKS)]) -> bodies.Ranking:
            return await ranking(request, body)

        async def rerank_either(
            request: Request, body: Annotated[bodies.EitherRerank, Body(openapi_examples=_RANKS | tei.RANKS)]
        ) -> bodies.Ranking | Response:
            if isinstance(body, bodies.Rerank):
                return await ranking(request, body)
            return JSONResponse([rank.model_dump(exclude_none=True) for rank in await tei.rerank(scorer, body)])

        async def tokenize_either(
            body: Annotated[bodies.EitherTokenize, Body(openapi_examples=_TEXT | tei.TOKENS)],
        ) -> bodies.Tokens | list[list[tei.SimpleToken]]:
            if isinstance(body, tei.Tokenize):
                return await tei.tokenize(scorer, body)
            _check_model(scorer, body.model)
            if isinstance(body, bodies.TokenizeChat):
                ids, names = await _tokens_of_chat(scorer, body)
            else:
                (tokens,) = await scorer.tokenize([body.prompt], add_special_tokens=body.add_special_tokens)
                ids, names = [token.id for token in tokens], [token.name for token in tokens]
            return bodies.Tokens(
                count=len(ids),
                max_model_len=scorer.info["max_length"],
                tokens=ids,
                token_strs=names if body.return_token_strs else None,
            )

        either: dict[str, Any] = {
            "methods": ["POST"],
            "tags": ["TEI"],
            "responses": {status: {"description": "An error of vLLM or of TEI."} for status in {*STATUS.values(), 400, 424}},
            "dependencies": [Depends(_choose_error_form)],
        }
        router.add_api_route(
            "/rerank",
            rerank_either,
            summary="Completions of a prompt, the best first, in vLLM's or TEI's form",
            response_model=bodies.Ranking | list[tei.Rank],
            **either,
        )
        router.add_api_route(
            "/tokenize", tokenize_either, summary="The tokens of a text in vLLM's form, or of texts in TEI's form", **either
        )

        @router.post("/detokenize", summary="The text of token ids")
        async def detokenize(body: Annotated[bodies.Detokenize, Body(openapi_examples=_IDS)]) -> bodies.Detokenized:
            _check_model(scorer, body.model)
            (text,) = await scorer.detokenize([body.tokens], skip_special_tokens=False)
            return bodies.Detokenized(prompt=text)

        @router.post("/v1/embeddings", summary="Rewards, in SGLang's form")
        async def embeddings(body: Annotated[bodies.Embeddings, Body(openapi_examples=_TEXTS)]) -> bodies.EmbeddingsAnswer:
            _check_model(scorer, body.model)
            rewards, scored = await score_all(scorer, _rows(scorer, body.input))
            data = [
                bodies.Embedded(index=row, embedding=[reward] if body.encoding_format == "float" else _packed(reward, "little"))
                for row, reward in enumerate(rewards)
            ]
            usage = bodies.RankUsage(prompt_tokens=_tokens(scored), total_tokens=_tokens(scored))
            return bodies.EmbeddingsAnswer(data=data, model=scorer.name, usage=usage)

        @router.get("/load", summary="The number of requests that wait or are being scored")
        async def load() -> bodies.Load:
            return bodies.Load(server_load=scorer.load)

        @router.get("/version", summary="The version of vLLM with which requests are compatible")
        async def version() -> dict[str, str]:
            return {"version": VERSION, "server": f"rm-plugins {__version__}"}

        @router.get("/v1/models", summary="The served model")
        async def models() -> bodies.ModelList:
            known = {"created": started, "root": scorer.names[-1], "max_model_len": scorer.info["max_length"]}
            return bodies.ModelList(data=[bodies.ModelCard(id=name, **known) for name in scorer.names])

        return router


async def _choose_error_form(request: Request) -> None:
    """Answer errors in TEI's form if the request is in TEI's form."""
    with suppress(ValueError):
        if tei.is_for_tei(await request.json()):
            request.state.dialect = tei.TEI()


async def _scores(scorer: Scorer, body: bodies.Options, samples: list[Sample]) -> tuple[list[float], Scored]:
    """The requested scores, raw or activated, and everything else that is known about them."""
    rewards, scored = await _rewards(scorer, body, samples)
    return _activated(scorer, body, rewards), scored


async def _rewards(scorer: Scorer, body: bodies.Options, samples: list[Sample]) -> tuple[list[float], Scored]:
    """The rewards of samples, and everything else that is known about them.

    Raises:
        Problem: The request asks for another truncation than the reward's own.
    """
    _check_model(scorer, body.model)
    if body.truncate_prompt_tokens is not None and body.truncate_prompt_tokens >= 0:
        _refuse_cut("truncate_prompt_tokens", body.truncate_prompt_tokens, await scorer.lengths(samples))
    rewards, scored = await score_all(scorer, samples)
    side = cuts_at(scorer, samples)
    if body.truncation_side not in (None, side) and scored.metadata.get("truncated", 0):
        raise Problem("invalid", f"truncation_side: a text is too long for the model, and the reward truncates on the {side}")
    return rewards, scored


async def _refuse_cut_pairs(scorer: Scorer, body: bodies.Score | bodies.Rerank, samples: list[Sample]) -> None:
    """Refuse pairs that vLLM would truncate by the request's limits, which differs from the truncation in the reward's training."""
    for name, limit, texts in (
        ("max_tokens_per_query", body.max_tokens_per_query, [sample.prompt for sample in samples]),
        ("max_tokens_per_doc", body.max_tokens_per_doc, [sample.completion for sample in samples]),
    ):
        if limit:
            parts = [RenderedSample.of(str(text), add_special_tokens=False) for text in texts]
            _refuse_cut(name, limit, await scorer.lengths(parts))


def _refuse_cut(name: str, limit: int, lengths: Sequence[int]) -> None:
    for row, length in enumerate(lengths):
        if length > limit:
            raise Problem(
                "invalid",
                f"{name}: item {row} has {length} tokens, more than {limit}; shorten it, or leave {name} out: a text that is too long for "
                "the model is truncated as in the reward's training",
            )


def _activated(scorer: Scorer, body: bodies.Options, rewards: list[float]) -> list[float]:
    """The numbers that vLLM would return for the rewards, depending on the request and on the model's configuration."""
    if body.is_raw or scorer.output.activation == "identity":
        return rewards
    if scorer.output.activation != "sigmoid":
        raise Problem("invalid", f"use_activation: {NO_ACTIVATION[scorer.output.activation]}; send false")
    return [probability(reward) for reward in rewards]


async def _tokens_of_chat(scorer: Scorer, body: bodies.TokenizeChat) -> tuple[list[int], list[str]]:
    (renderings,) = await scorer.render([_conversation(scorer, body)])
    if len(renderings) != 1:
        raise Problem(
            "invalid", f"the reward has {len(renderings)} models with different tokens; POST /v1/render returns those of each"
        )
    if renderings[0]["truncated"]:
        raise Problem("invalid", "the conversation is too long for the model and would be truncated; shorten it")
    return renderings[0]["token_ids"], renderings[0]["tokens"]


def _check_model(scorer: Scorer, model: str | None) -> None:
    if model:
        check_model(scorer, model)


def _inputs(scorer: Scorer, body: bodies.Completions | bodies.Chat) -> list[Sample]:
    if isinstance(body, bodies.Chat):
        return [_conversation(scorer, body)]
    return _rows(scorer, body.input, add_special_tokens=body.add_special_tokens)


def _conversation(scorer: Scorer, body: bodies.Chat | bodies.TokenizeChat) -> Sample:
    settings = dict(body.chat_template_kwargs or {})
    if body.add_generation_prompt:
        if not scorer.info["templates"]:
            raise Problem("invalid", "add_generation_prompt: a model of this reward has no chat template; send false")
        settings["add_generation_prompt"] = True
    messages = [_message(message) for message in body.messages]
    return Sample(messages[:-1], messages[-1:], {"chat_template_kwargs": settings} if settings else {})


def _rows(scorer: Scorer, given: bodies.Input, *, add_special_tokens: bool = True) -> list[Sample]:
    rows: Sequence[Any] = [given] if isinstance(given, str) or isinstance(given[0], int) else given
    check_count(scorer, len(rows))
    return [text_sample(scorer, row, add_special_tokens=add_special_tokens) for row in rows]


def _message(message: bodies.ChatMessage) -> dict[str, Any]:
    plain: dict[str, Any] = message.model_dump(exclude_unset=True)
    if isinstance(message.content, list):
        plain["content"] = "\n".join(part.text for part in message.content)
    return plain


def _vector(value: float, body: bodies.PoolingCompletions | bodies.PoolingChat) -> list[float] | str:
    if body.encoding_format == "float":
        return [value]
    return _packed(value, body.endianness)


def _packed(value: float, endianness: str) -> str:
    try:
        packed = struct.pack(f"{_BYTE_ORDERS[endianness]}f", value)
    except OverflowError:
        raise Problem("failed", f"the reward {value} is too large for 32 bits; request encoding_format float") from None
    return base64.b64encode(packed).decode()


async def _pairs(
    scorer: Scorer, body: bodies.Score | bodies.Rerank, prompts: str | list[str], completions: str | list[str]
) -> list[Sample]:
    """The samples that vLLM would score; like vLLM, a pair with an empty second text becomes one text."""
    ones = [prompts] if isinstance(prompts, str) else prompts
    others = [completions] if isinstance(completions, str) else completions
    check_count(scorer, max(len(ones), len(others)))
    if len(ones) > 1 and len(ones) != len(others):
        raise Problem("invalid", f"Input lengths must be either 1:1, 1:N or N:N, not {len(ones)}:{len(others)}")
    samples = [Sample(one, other) for one, other in zip(ones * len(others) if len(ones) == 1 else ones, others, strict=True)]
    await _refuse_cut_pairs(scorer, body, samples)
    if not scorer.info["pair"]:
        return samples
    return [sample if sample.completion else RenderedSample.of(str(sample.prompt)) for sample in samples]


def _id(kind: str, scorer: Scorer, request: Request, body: bodies.Options) -> str:
    given = None if "x-request-id" in request.headers else body.request_id
    return f"{kind}-{given or scorer.request_id}"


def _answer(
    kind: str, scorer: Scorer, request: Request, body: bodies.Options, scored: Scored, data: list[_Entry]
) -> bodies.Answer[_Entry]:
    usage = bodies.Usage(prompt_tokens=_tokens(scored), total_tokens=_tokens(scored))
    return bodies.Answer(id=_id(kind, scorer, request, body), model=scorer.name, data=data, usage=usage)


def _tokens(scored: Scored) -> int:
    return int(scored.metadata.get("tokens", 0))
