"""A plug-in for rm-plugins: a reward that likes brevity, and one of everything else that can be registered."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import click
import numpy as np
from pydantic import BaseModel

from rm_plugins import Aggregate, Combinator, Provider, Sample, Scores, Transform, hookimpl
from rm_plugins.errors import AnswerError, SpecError
from rm_plugins.losses import Loss, Need, Regularizer, RewardBatch
from rm_plugins.protocols import Answer, Item, Protocol, Request, Response, ServerFacts, finite
from rm_plugins.scores import FloatArray
from rm_plugins.server.dialects import Dialect, Scorer, score_all, text_sample

if TYPE_CHECKING:
    from fastapi import APIRouter
    from torch import Tensor


class Brevity(Combinator):
    """Another reward, less a price for every word of a completion beyond a limit.

    Args:
        member: The reward that is priced; any spec.
        limit: Words that cost nothing.
        price: The price of each further one.
        unit: What is counted.
    """

    name: ClassVar[str] = "brevity"

    def __init__(
        self, *, member: Provider, limit: int = 100, price: float = 0.01, unit: Literal["words", "characters"] = "words"
    ) -> None:
        if price < 0:
            raise SpecError(f"brevity needs a price of at least 0, not {price}.")
        self.member = member
        self.limit = limit
        self.price = price
        self.unit = unit

    def score_batch(self, samples: Sequence[Sample]) -> Scores:
        """The member's scores less the prices; the member is a part, and the price a detail."""
        scores = self.member.attempt(samples)
        price = self.price * np.array([max(0, self._length(sample) - self.limit) for sample in samples])
        return self.whole(scores.values - price, {"member": (self.member, scores)}, details={"price": price})

    def _length(self, sample: Sample) -> int:
        text = sample.completion_text
        return len(text.split() if self.unit == "words" else text)

    def render(self, sample: Sample) -> str:
        """The text that the member scores."""
        return self.member.render(sample)


class Squash(Transform):
    """scale * tanh(score / scale): hardly changed near zero, never beyond the scale."""

    name: ClassVar[str] = "squash"

    def __init__(self, *, scale: float = 1.0) -> None:
        self.scale = scale

    def __call__(self, values: FloatArray, samples: Sequence[Sample]) -> FloatArray:
        """Squash; NaN stays NaN."""
        return self.scale * np.tanh(values / self.scale)


class Midrange(Aggregate):
    """Halfway between the lowest and the highest member."""

    name: ClassVar[str] = "midrange"
    needs_common_scale: ClassVar[bool] = True

    def __call__(self, members: FloatArray) -> FloatArray:
        """Of those that gave a score."""
        found: FloatArray = (np.nanmin(members, axis=0) + np.nanmax(members, axis=0)) / 2
        return found


class Plain(Protocol):
    """``POST /score {"texts": [...]}``, answered with ``{"scores": [...]}``.

    Args:
        path: What the server calls it.
    """

    name: ClassVar[str] = "plain"

    def __init__(self, *, path: str = "/score") -> None:
        self.path = path

    def request(self, items: Sequence[Item], server: ServerFacts, request_id: str) -> Request:
        """The texts of the items."""
        return Request(self.path, {"texts": [item.needed_text for item in items]})

    def answer(self, response: Response, items: Sequence[Item], server: ServerFacts, request_id: str) -> Answer:
        """One finite score per text, in their order."""
        match response.json():
            case {"scores": list(scores)} if len(scores) == len(items):
                return Answer([finite(score, f"scores[{row}]", row=row) for row, score in enumerate(scores)])
            case found:
                raise AnswerError(f"the answer is {found!r:.80}; {len(items)} 'scores' were expected")


class PlainTexts(BaseModel):
    """The body of a request to the dialect."""

    texts: list[str]


class PlainDialect(Dialect):
    """What the protocol of this name speaks to: ``POST /plain {"texts": [...]}`` gives ``{"scores": [...]}``."""

    name: ClassVar[str] = "plain"

    def router(self, scorer: Scorer) -> APIRouter:
        """The endpoint."""
        from fastapi import APIRouter

        router = APIRouter()

        @router.post("/plain")
        async def plain(body: PlainTexts) -> dict[str, list[float]]:
            scores, _ = await score_all(scorer, [text_sample(scorer, text) for text in body.texts])
            return {"scores": scores}

        return router


class Hinge(Loss):
    """The hinge loss: mean of max(0, gap - (r_winner - r_loser))."""

    name: ClassVar[str] = "gap-hinge"

    def __init__(self, *, gap: float = 1.0) -> None:
        self.gap = gap

    def __call__(self, batch: RewardBatch) -> Tensor:
        """The mean over pairs and heads."""
        return (self.gap - (batch.winners - batch.losers)).relu().mean()


CONFIDENCE = Need("confidence", each="pair", missing=1.0, comes_of="It is how sure an annotator was of a pair, from 0 to 1.")


class Confident(Loss):
    """Bradley-Terry with the probability that the annotator gave: mean of -c log p - (1 - c) log(1 - p)."""

    name: ClassVar[str] = "confident"
    needs = frozenset({"pairs", CONFIDENCE})

    def __call__(self, batch: RewardBatch) -> Tensor:
        """The mean over pairs and heads."""
        from torch.nn.functional import logsigmoid

        confidence = batch.extras[CONFIDENCE.name][:, None]
        gap = batch.winners - batch.losers
        return -(confidence * logsigmoid(gap) + (1 - confidence) * logsigmoid(-gap)).mean()


class SmallRewards(Regularizer):
    """Keeps rewards small: mean of r^2 over all rows."""

    name: ClassVar[str] = "small-rewards"

    def __call__(self, batch: RewardBatch) -> Tensor:
        """The mean over rows and heads."""
        return batch.rewards.square().mean()


@click.command()
@click.argument("text")
def words(text: str) -> None:
    """Count the words of TEXT."""
    click.echo(len(text.split()))


@hookimpl
def rm_register_providers() -> Sequence[type[Provider]]:
    """The provider."""
    return [Brevity]


@hookimpl
def rm_register_transforms() -> Sequence[type[Transform]]:
    """The transform."""
    return [Squash]


@hookimpl
def rm_register_aggregates() -> Sequence[type[Aggregate]]:
    """The aggregate."""
    return [Midrange]


@hookimpl
def rm_register_protocols() -> Sequence[type[Protocol]]:
    """The protocol."""
    return [Plain]


@hookimpl
def rm_register_dialects() -> Sequence[type[Dialect]]:
    """The dialect."""
    return [PlainDialect]


@hookimpl
def rm_register_losses() -> Sequence[type[Loss]]:
    """The losses."""
    return [Confident, Hinge]


@hookimpl
def rm_register_regularizers() -> Sequence[type[Regularizer]]:
    """The regularizer."""
    return [SmallRewards]


@hookimpl
def rm_register_commands() -> Sequence[click.Command]:
    """The command."""
    return [words]


@hookimpl
def rm_scored(provider: Provider, samples: Sequence[Sample], scores: Scores) -> None:
    """Write a line about the batch, if the environment says where."""
    if path := os.environ.get("RM_PLUGINS_EXAMPLE_LOG"):
        line = {"provider": provider.label, "samples": len(samples), "abstained": int(scores.abstained.sum())}
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
