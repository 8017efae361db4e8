"""The endpoint of OpenRLHF's reward model server, for ``--reward.remote_url``.

Written after OpenRLHF 0.11.2. A query is prompt and response as the policy's tokenizer decodes them, special tokens and EOS included.
Models score it as it is, and no special tokens are added, as in OpenRLHF's own server; that one reads the last token of all, as a reward
with ``read: last`` does. Any other reward is given prompt and completion, without the EOS. A query that is too long is truncated as the
reward was trained, where OpenRLHF's server cuts off its end.
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
    """Queries to score, and what else OpenRLHF's client knows of them."""

    query: str | Annotated[list[str], Field(min_length=1, fail_fast=True)] = Field(
        description="Prompt and response, one text for each."
    )
    prompts: Annotated[list[str | None], Field(fail_fast=True)] | None = Field(
        None,
        description="The prompts alone, by which completions are compared; a reward that is not made of models alone is given prompt and "
        "completion apart.",
    )
    labels: list[Any] | None = Field(
        None, description="References. A reward that is not made of models alone finds each sample's in its column `label`."
    )


class Rewards(BaseModel):
    """One number per query, in the order of the queries."""

    rewards: list[float]
    scores: list[float] = Field(description="The same; OpenRLHF reads scores for dynamic filtering.")
    extra_logs: dict[str, list[float]] = Field(description="The reward's details that every query has.")


_EXAMPLES: Any = {
    "rollout": {
        "summary": "What OpenRLHF's client sends for one rollout",
        "value": {"query": ["2+2?\nIt is 4.</s>"], "prompts": ["2+2?\n"], "labels": ["4"]},
    },
    "older": {"summary": "What older clients send", "value": {"query": ["2+2?\nIt is 4.</s>", "2+2?\nIt is 5.</s>"]}},
}


class OpenRLHF(DropIn):
    """OpenRLHF's reward server: /get_reward."""

    name: ClassVar[str] = "openrlhf"

    def error_body(self, problem: Problem, request_id: str) -> Any:
        """A problem as FastAPI tells it; OpenRLHF's client looks at the status alone."""
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
        if is_rendered and not query:  # which has no token to be scored at
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
