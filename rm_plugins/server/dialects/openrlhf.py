"""The endpoint of OpenRLHF's reward model server, for ``--reward.remote_url``.

Compatible with OpenRLHF 0.11.2. A query is prompt and response as decoded by the policy's tokenizer, including special tokens and EOS.
Models score it unchanged and without additional special tokens, like OpenRLHF's own server. That server reads the very last token, like a
reward with ``read: last``. Any other reward gets prompt and completion, without the EOS. A query that is too long is truncated as in the
reward's training; OpenRLHF's server would cut off its end.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from fastapi import APIRouter, Body
from pydantic import BaseModel, Field

from rm_plugins.errors import DataError
from rm_plugins.samples import RenderedSample, Sample
from rm_plugins.server.dialects.dialect import Problem, Scorer, check_count, score_all
from rm_plugins.server.dialects.drop_in import DropIn, RequestBody
from rm_plugins.server.dialects.queries import completion_of, without_eos


class GetReward(RequestBody):
    """Queries to score, with their prompts and labels."""

    query: str | Annotated[list[str], Field(min_length=1, fail_fast=True)] = Field(
        description="Prompt and response, one text for each."
    )
    prompts: Annotated[list[str | None], Field(fail_fast=True)] | None = Field(
        None,
        description="The prompts. They identify the completions to compare, and split the queries for rewards that do not consist of "
        "models only.",
    )
    labels: list[Any] | None = Field(
        None, description="References. A reward that does not consist of models only gets them in the column `label`."
    )


class Rewards(BaseModel):
    """One number per query, in the order of the queries."""

    rewards: list[float]
    scores: list[float] = Field(description="The same numbers; OpenRLHF uses scores for dynamic filtering.")
    extra_logs: dict[str, list[float]] = Field(description="The details of the reward that have a number for every query.")


_EXAMPLES: Any = {
    "rollout": {
        "summary": "A request of OpenRLHF's client for one rollout",
        "value": {"query": ["2+2?\nIt is 4.</s>"], "prompts": ["2+2?\n"], "labels": ["4"]},
    },
    "older": {"summary": "A request of older clients", "value": {"query": ["2+2?\nIt is 4.</s>", "2+2?\nIt is 5.</s>"]}},
}


class OpenRLHF(DropIn):
    """OpenRLHF's reward server: /get_reward."""

    name: ClassVar[str] = "openrlhf"

    def error_body(self, problem: Problem, request_id: str) -> Any:
        """The error body of FastAPI; OpenRLHF's client only checks the status."""
        return {"detail": problem.message}

    def router(self, scorer: Scorer) -> APIRouter:
        """OpenRLHF's endpoint."""
        router = APIRouter(tags=["OpenRLHF"])

        @router.post("/get_reward", summary="Rewards of queries")
        async def get_reward(body: Annotated[GetReward, Body(openapi_examples=_EXAMPLES)]) -> Rewards:
            values, scored = await score_all(scorer, _samples(scorer, body))
            details = {name: [value for value in column if value is not None] for name, column in scored.details.items()}
            return Rewards(
                rewards=values,
                scores=values,
                extra_logs={name: column for name, column in details.items() if len(column) == len(values)},
            )

        return router


def _samples(scorer: Scorer, body: GetReward) -> list[Sample]:
    queries = [body.query] if isinstance(body.query, str) else body.query
    check_count(scorer, len(queries))
    prompts = body.prompts or [None] * len(queries)
    labels = body.labels or [None] * len(queries)
    for name, given in (("prompts", prompts), ("labels", labels)):
        if len(given) != len(queries):
            raise Problem(
                "invalid", f"there are {len(given)} {name} for {len(queries)} queries; send one for each, or none at all"
            )
    is_rendered = scorer.info["rendered"]
    samples: list[Sample] = []
    for row, (query, prompt, label) in enumerate(zip(queries, prompts, labels, strict=True)):
        columns = {} if label is None else {"label": label}
        if is_rendered and not query:  # it has no token to score
            raise Problem("invalid", f"item {row}: the query is empty")
        if is_rendered:
            samples.append(RenderedSample.of(query, add_special_tokens=False, prompt=prompt or "", columns=columns))
            continue
        try:
            completion = completion_of(query, prompt or "")
        except DataError as error:
            raise Problem("invalid", f"item {row}: {error}") from None
        samples.append(Sample(prompt or "", without_eos(completion, scorer.eos_texts), columns))
    return samples
