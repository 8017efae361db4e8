"""What a dialect is, what its endpoints are handed to reach the reward, and how they tell an error. Imports no web framework."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeAlias

from rm_plugins.samples import RenderedSample, Sample

if TYPE_CHECKING:
    from fastapi import APIRouter

Cause: TypeAlias = Literal[
    "invalid",  # the request is not what the endpoint takes, or a sample of it cannot be scored
    "too-large",
    "unsupported",  # a body that is not sent as JSON, or is compressed
    "unauthorized",
    "forbidden",  # a page of another site, a name that is not the server's, or who may not operate it
    "not-found",
    "overload",
    "unavailable",  # stopping, or not ready yet
    "failed",  # the reward failed
]

STATUS: Mapping[Cause, int] = {
    "invalid": 422,
    "too-large": 413,
    "unsupported": 415,
    "unauthorized": 401,
    "forbidden": 403,
    "not-found": 404,
    "overload": 429,
    "unavailable": 503,
    "failed": 500,
}

Activation: TypeAlias = Literal["sigmoid", "identity", "softmax", "unknown"]

NO_ACTIVATION: Mapping[str, str] = {
    "softmax": "the model has several labels, of which a softmax is made elsewhere, and the reward is one number",
    "unknown": "the model's configuration names an activation that is unknown here",
}
"""Why there is no activated number of an output."""

_MOST_COMPLAINTS = 3


@dataclass(eq=False)
class Problem(Exception):
    """What a client is told in place of scores; becomes the body that its dialect has for errors.

    Args:
        cause: Counted in the metrics by this name; decides the status unless `status` does.
        message: For people, without anything of the server's inside.
        status: The HTTP status where it is not the cause's usual one.
        headers: Such as ``Retry-After``.
    """

    cause: Cause
    message: str
    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__(self.message)
        self.status = self.status or STATUS[self.cause]


@dataclass(frozen=True)
class Output:
    """What a server makes of the output of a model.

    Args:
        label: What the model's configuration calls it; what transformers calls it where that says nothing.
        activation: What vLLM applies to it unless it is told not to.
        is_only: Whether the model has no other.
    """

    label: str = "LABEL_0"
    activation: Activation = "sigmoid"
    is_only: bool = True


@dataclass(frozen=True, slots=True)
class Token:
    """A token of a text.

    Args:
        id: Its id.
        name: What the tokenizer calls it, such as ``Ġthe``.
        is_special: Whether the tokenizer added it.
        start: Where in the text it begins, in characters.
        stop: Where it ends.
    """

    id: int
    name: str
    is_special: bool
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Scored:
    """What the reward says of the samples of one request, [N].

    Args:
        values: The rewards; None where it abstained, and where it failed.
        details: Named per-sample extras, [N] each.
        errors: By row, why there is no reward where it failed.
        invalid: The rows among them that cannot be scored for what they are.
        fingerprint: Of the reward that scored all of them.
        metadata: Facts such as ``tokens`` and ``truncated``, for the whole request.
    """

    values: Sequence[float | None]
    details: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    errors: Mapping[int, str] = field(default_factory=dict)
    invalid: frozenset[int] = frozenset()
    fingerprint: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)


class Scorer(Protocol):
    """What the endpoints of a dialect are handed: the served reward, and what is known of the request that they answer."""

    name: str
    """The model's name in answers."""

    names: Sequence[str]
    """Every name that a request may call the model by; `name` is the first."""

    fingerprint: str
    """Of the reward that scores now."""

    max_items: int
    """Most samples of a request."""

    max_values: int
    """Most values of a request's body; what comes as bytes counts like JSON."""

    eos_texts: Sequence[str] | None
    """What ends the texts of a policy, as the server's settings say; None where they do not."""

    @property
    def output(self) -> Output:
        """What a server of this very model would make of its output."""

    @property
    def load(self) -> int:
        """How many requests wait or are scored."""

    @property
    def info(self) -> Mapping[str, Any]:
        """What ``GET /v1/info`` answers; ``rendered`` says whether texts and token ids are scored as they are."""

    @property
    def is_ready(self) -> bool:
        """Whether requests are accepted."""

    @property
    def request_id(self) -> str:
        """The id of the request that is answered: the client's own, or one that the server gave it."""

    async def score(self, samples: Sequence[Sample]) -> Scored:
        """Score samples of the request that is answered; cancelling the call drops those that have not begun.

        Raises:
            Problem: Overload, stopping, too many samples, or a failure of the whole request.
        """

    async def render(self, samples: Sequence[Sample]) -> list[list[dict[str, Any]]]:
        """For each sample, what each model of the reward is given; see ``POST /v1/render``.

        Raises:
            Problem: A sample cannot be rendered, or the server is stopping.
        """

    async def lengths(self, samples: Sequence[Sample]) -> list[int]:
        """How many tokens each sample has before it is truncated, for the model that makes the most of it, [N]; 0 where nothing has tokens.

        Raises:
            Problem: A sample cannot be rendered, or the server is stopping.
        """

    async def tokenize(self, texts: Sequence[str], *, add_special_tokens: bool) -> list[list[Token]]:
        """The tokens of texts, however long, for each of which all models of the reward have the same.

        Raises:
            Problem: There is no model, models have different tokens, or the server is stopping.
        """

    async def detokenize(self, rows: Sequence[Sequence[int]], *, skip_special_tokens: bool) -> list[str]:
        """The texts of token ids.

        Raises:
            Problem: As `tokenize`; or a token id is unknown.
        """

    async def reload(self) -> bool:
        """Load the reward again; returns whether another one scores now.

        Raises:
            Problem: It could not be loaded, and the earlier one stays in use.
        """


class Dialect(ABC):
    """A family of endpoints that existing clients speak: a subclass sets `name`, and its constructor takes nothing."""

    name: ClassVar[str]
    """For metrics and logs."""

    statuses: ClassVar[Mapping[Cause, int]] = {}
    """The statuses of problems that its endpoints meet, where they are not those of `STATUS`."""

    prefix: ClassVar[str] = ""
    """Errors at paths that begin so, and that no dialect has, are told in the form of this one."""

    takes_binary: ClassVar[bool] = False
    """Whether bodies may be compressed by gzip or deflate, may come without a Content-Type, and may have bytes behind their JSON as the
    header ``Inference-Header-Content-Length`` says; the bytes are then `request.state.binary`, a memoryview, and the body is the JSON."""

    samples_field: ClassVar[str] = ""
    """The field of a body with a list of samples of which each can be refused by itself, such as for half of a surrogate pair; such a
    body is refused as a whole where there is none."""

    @abstractmethod
    def router(self, scorer: Scorer) -> APIRouter:
        """The endpoints, which score with `scorer` and use nothing else of the server.

        Requests are limited, their keys checked, and errors told before and after them: what an endpoint raises becomes a `Problem`.
        A path of GET that has a part ``health`` is open without a key.
        """

    def complaint(self, errors: Sequence[Mapping[str, Any]], body: Any) -> str:
        """What is wrong with a body, from the errors that pydantic found in it: each with its place, the first three of them."""
        complaints: list[str] = []
        for error in errors:
            if error["type"] == "json_invalid":
                complaints.append(f"the body is no JSON: {error.get('ctx', {}).get('error', error['msg'])}")
                continue
            path = ""
            for part in error["loc"]:
                path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
            complaints.append(f"{path[:200]}: {str(error['msg'])[:200]}")
        more = [f"and {len(complaints) - _MOST_COMPLAINTS} more"] if len(complaints) > _MOST_COMPLAINTS else []
        return "; ".join(complaints[:_MOST_COMPLAINTS] + more)

    def error_body(self, problem: Problem, request_id: str) -> Any:
        """The JSON that stands for a problem: the server's own where a dialect has no other."""
        return {"error": {"cause": problem.cause, "message": problem.message, "request_id": request_id}}


def check_model(scorer: Scorer, model: str) -> None:
    """Refuse a request for another model.

    Raises:
        Problem: `model` is none of the served one's names.
    """
    if model not in scorer.names:
        served = " or ".join(map(repr, scorer.names))
        raise Problem("not-found", f"the model {model!r:.200} does not exist; this server has {served}")


def check_count(scorer: Scorer, number: int) -> None:
    """Refuse more samples than a request may have, before anything is made of them.

    Raises:
        Problem: There are too many.
    """
    if number > scorer.max_items:
        raise Problem("too-large", too_many("samples were sent", number, scorer.max_items))


def too_many(what: str, number: int, most: int) -> str:
    """What a client is told that sends more than a request may have."""
    return f"{number} {what}; at most {most} are taken at a time: send them in several requests, or serve with a larger --max-items"


async def score_all(scorer: Scorer, samples: Sequence[Sample]) -> tuple[list[float], Scored]:
    """Score samples for an answer that has no way to say that a sample got no reward.

    Returns:
        The rewards, [N], and everything else that is known of them.

    Raises:
        Problem: A sample has no reward, because it failed or because the reward abstained.
    """
    scored = await scorer.score(samples)
    for row, message in scored.errors.items():
        raise Problem("invalid" if row in scored.invalid else "failed", f"item {row} could not be scored: {message}")
    values: list[float] = []
    for row, value in enumerate(scored.values):
        if value is None:
            raise Problem(
                "invalid",
                f"the reward abstained from item {row}, and this endpoint's answer has no way to say so; POST /v1/rewards has",
            )
        values.append(value)
    return values, scored


def text_sample(scorer: Scorer, text: str | Sequence[int], *, add_special_tokens: bool = True) -> Sample:
    """A text that came without a prompt, or token ids.

    A reward of models alone scores it as it is. For any other it is a completion, for which no token ids can stand.

    Raises:
        Problem: The reward takes no token ids.
        DataError: There are no token ids, or one is negative.
    """
    if scorer.info["rendered"]:
        return RenderedSample.of(text, add_special_tokens=add_special_tokens)
    if isinstance(text, str):
        return Sample("", text)
    raise Problem("invalid", "this server's reward is not made of models alone and takes no token ids: send text or messages")
