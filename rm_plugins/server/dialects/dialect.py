"""The interface of dialects, the interface through which their endpoints score, and their errors. Imports no web framework."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeAlias

from rm_plugins.samples import RenderedSample, Sample

if TYPE_CHECKING:
    from fastapi import APIRouter

Cause: TypeAlias = Literal[
    "invalid",  # the request is invalid, or one of its samples cannot be scored
    "too-large",
    "unsupported",  # the body is not sent as JSON, or is compressed
    "unauthorized",
    "forbidden",  # a page of another site, a wrong name of the server, or a client that may not operate it
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
    "softmax": "the model has several labels, so its activation is a softmax over them, but the reward is one number",
    "unknown": "the model's configuration names an activation that rm-plugins does not know",
}
"""Why an output cannot be activated."""

_MOST_COMPLAINTS = 3


@dataclass(eq=False)
class Problem(Exception):
    """An error for the client; its dialect converts it to an error body.

    Args:
        cause: The kind of error, under which it is counted in the metrics; decides the status unless `status` is set.
        message: The message for the client, which must not reveal internals of the server.
        status: The HTTP status, if it differs from the usual one of the cause.
        headers: Headers of the answer, such as ``Retry-After``.
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
    """How another server would present the output of a model.

    Args:
        label: Its label in the model's configuration, or transformers' default label.
        activation: The activation that vLLM applies by default.
        is_only: Whether it is the model's only output.
    """

    label: str = "LABEL_0"
    activation: Activation = "sigmoid"
    is_only: bool = True


@dataclass(frozen=True, slots=True)
class Token:
    """A token of a text.

    Args:
        id: Its id.
        name: Its name in the vocabulary, such as ``Ġthe``.
        is_special: Whether the tokenizer added it.
        start: The position of its first character in the text.
        stop: The position after its last character.
    """

    id: int
    name: str
    is_special: bool
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Scored:
    """The scores of the N samples of one request.

    Args:
        values: The rewards, [N]; None where the reward abstained or failed.
        details: Named per-sample extras, [N] each.
        errors: The reason for each row at which the reward failed.
        invalid: The rows of `errors` whose samples are invalid.
        fingerprint: The fingerprint of the reward that scored all of them.
        metadata: Facts about the whole request, such as ``tokens`` and ``truncated``.
    """

    values: Sequence[float | None]
    details: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    errors: Mapping[int, str] = field(default_factory=dict)
    invalid: frozenset[int] = frozenset()
    fingerprint: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)


class Scorer(Protocol):
    """The served reward, and information about the current request, for the endpoints of a dialect."""

    name: str
    """The model's name in answers."""

    names: Sequence[str]
    """Every name by which a request may call the model; `name` is the first."""

    fingerprint: str
    """The fingerprint of the current reward."""

    max_items: int
    """The most samples of a request."""

    max_values: int
    """The most values of a request's body; binary values count like JSON values."""

    eos_texts: Sequence[str] | None
    """The texts of a policy's EOS tokens, from the server's settings; None if these do not set them."""

    @property
    def output(self) -> Output:
        """How another server of the same model would present its output."""

    @property
    def load(self) -> int:
        """The number of requests that wait or are being scored."""

    @property
    def info(self) -> Mapping[str, Any]:
        """The answer of ``GET /v1/info``; ``rendered`` is true if rendered texts and token ids can be scored."""

    @property
    def is_ready(self) -> bool:
        """Whether requests are accepted."""

    @property
    def request_id(self) -> str:
        """The id of the current request: the client's, or one that the server assigned."""

    async def score(self, samples: Sequence[Sample]) -> Scored:
        """Score samples of the current request; if the call is cancelled, samples that have not started are dropped.

        Raises:
            Problem: The server is overloaded or stopping, there are too many samples, or the whole request failed.
        """

    async def render(self, samples: Sequence[Sample]) -> list[list[dict[str, Any]]]:
        """For each sample, its rendering for each model of the reward; see ``POST /v1/render``.

        Raises:
            Problem: A sample cannot be rendered, or the server is stopping.
        """

    async def lengths(self, samples: Sequence[Sample]) -> list[int]:
        """The number of tokens of each sample before truncation, [N]: the largest over all models; 0 without a model.

        Raises:
            Problem: A sample cannot be rendered, or the server is stopping.
        """

    async def tokenize(self, texts: Sequence[str], *, add_special_tokens: bool) -> list[list[Token]]:
        """The tokens of texts of any length, which must be the same for all models of the reward.

        Raises:
            Problem: There is no model, models have different tokens, or the server is stopping.
        """

    async def detokenize(self, rows: Sequence[Sequence[int]], *, skip_special_tokens: bool) -> list[str]:
        """The texts of token ids.

        Raises:
            Problem: As for `tokenize`, or a token id is unknown.
        """

    async def reload(self) -> bool:
        """Reload the reward; returns whether it has changed.

        Raises:
            Problem: It could not be loaded; the previous reward stays in use.
        """


class Dialect(ABC):
    """A family of endpoints for existing clients. A subclass sets `name`; its constructor takes no arguments."""

    name: ClassVar[str]
    """The name in metrics and logs."""

    statuses: ClassVar[Mapping[Cause, int]] = {}
    """The statuses of problems at its endpoints, where they differ from `STATUS`."""

    prefix: ClassVar[str] = ""
    """Errors at unknown paths with this prefix have the form of this dialect."""

    takes_binary: ClassVar[bool] = False
    """Whether bodies may be compressed with gzip or deflate, may lack a Content-Type, and may have bytes after their JSON, whose length is
    in the header ``Inference-Header-Content-Length``. The bytes are then `request.state.binary`, a memoryview, and the body is the JSON."""

    samples_field: ClassVar[str] = ""
    """The field of a body with a list of samples that can be refused one by one, for example for a lone surrogate. Without such a field,
    the whole body is refused."""

    @abstractmethod
    def router(self, scorer: Scorer) -> APIRouter:
        """The endpoints, which score with `scorer` and use nothing else of the server.

        Limits and keys are checked before an endpoint is called, and an exception that it raises becomes a `Problem`.
        A GET path with a part ``health`` is open without a key.
        """

    def complaint(self, errors: Sequence[Mapping[str, Any]], body: Any) -> str:
        """A message for pydantic's errors in a body: the first three, each with its place."""
        complaints: list[str] = []
        for error in errors:
            if error["type"] == "json_invalid":
                complaints.append(f"the body is not valid JSON: {error.get('ctx', {}).get('error', error['msg'])}")
                continue
            path = ""
            for part in error["loc"]:
                path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
            complaints.append(f"{path[:200]}: {str(error['msg'])[:200]}")
        more = [f"and {len(complaints) - _MOST_COMPLAINTS} more"] if len(complaints) > _MOST_COMPLAINTS else []
        return "; ".join(complaints[:_MOST_COMPLAINTS] + more)

    def error_body(self, problem: Problem, request_id: str) -> Any:
        """The JSON body for a problem; by default the server's own form."""
        return {"error": {"cause": problem.cause, "message": problem.message, "request_id": request_id}}


def check_model(scorer: Scorer, model: str) -> None:
    """Check that a request names the served model.

    Raises:
        Problem: `model` is not one of its names.
    """
    if model not in scorer.names:
        served = " or ".join(map(repr, scorer.names))
        raise Problem("not-found", f"the model {model!r:.200} does not exist; this server has {served}")


def check_count(scorer: Scorer, number: int) -> None:
    """Check the number of samples of a request, before they are processed.

    Raises:
        Problem: There are too many.
    """
    if number > scorer.max_items:
        raise Problem("too-large", too_many("samples were sent", number, scorer.max_items))


def too_many(what: str, number: int, most: int) -> str:
    """The message for a request with too many items."""
    return f"{number} {what}, but a request may have at most {most}: split it, or serve with a larger --max-items"


async def score_all(scorer: Scorer, samples: Sequence[Sample]) -> tuple[list[float], Scored]:
    """Score samples for an answer that must have a number for every sample.

    Returns:
        The rewards, [N], and everything else that is known about them.

    Raises:
        Problem: A sample has no reward, because scoring failed or the reward abstained.
    """
    scored = await scorer.score(samples)
    for row, message in scored.errors.items():
        raise Problem("invalid" if row in scored.invalid else "failed", f"item {row} could not be scored: {message}")
    values: list[float] = []
    for row, value in enumerate(scored.values):
        if value is None:
            raise Problem(
                "invalid",
                f"the reward abstained on item {row}, which this endpoint cannot express; use POST /v1/rewards",
            )
        values.append(value)
    return values, scored


def text_sample(scorer: Scorer, text: str | Sequence[int], *, add_special_tokens: bool = True) -> Sample:
    """The sample for a text without a prompt, or for token ids.

    A reward that consists of models only scores the text or token ids unchanged. For any other reward, the text is a completion, and token
    ids are refused.

    Raises:
        Problem: The reward takes no token ids.
        DataError: There are no token ids, or one is negative.
    """
    if scorer.info["rendered"]:
        return RenderedSample.of(text, add_special_tokens=add_special_tokens)
    if isinstance(text, str):
        return Sample("", text)
    raise Problem(
        "invalid", "this server's reward does not consist of models only and takes no token ids: send text or messages"
    )
