"""Asks questions over OpenAI's chat completions API."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, TypeAlias

from rm_plugins.errors import SpecError, UnsupportedError
from rm_plugins.judges.judge import CUT_OFF, Question, Reply
from rm_plugins.protocols.discovery import listed_models
from rm_plugins.protocols.protocol import Answer, Ask, Failure, Item, Protocol, Request, Response, ServerFacts
from rm_plugins.protocols.request_ids import check_request_id
from rm_plugins.redaction import redact_logs
from rm_plugins.replies import Labels, chat_text, is_cut_off, only_choice, tokens_used, withheld

logger = logging.getLogger(__name__)
redact_logs([__name__])

Structured: TypeAlias = Literal["auto", "always", "never"]

_SCHEMA_NAME = "answer"

_OPTIONAL = {
    "response_format": re.compile(r"response_format|json_schema|structured|guided|grammar|schema", re.IGNORECASE),
    "logprobs": re.compile(r"logprobs", re.IGNORECASE),
    "max_tokens": re.compile(r"\buse\W+max_completion_tokens", re.IGNORECASE),  # vLLM names it where a question is too long
}
"""Keys of a request that not every server or model knows, each with what an error message says of it."""


class ChatCompletions(Protocol):
    """``POST /v1/chat/completions`` of any server with OpenAI's API; each item is a question, and answers have replies.

    A server that refuses log-probabilities or, with ``structured: auto``, a JSON schema, is asked again without, and from then on.

    Args:
        model: The model's name on the server; None for the only one that it lists.
        max_tokens: The longest answer, in tokens.
        label_tokens: The longest answer to a question with labels, in tokens.
        temperature: The sampling temperature.
        top_logprobs: The number of tokens whose log-probabilities are requested for a question with labels.
        structured: Whether a question's schema is sent: where the server takes it, always, or never.
        extra_body: Further keys of the request; null removes a key.
    """

    name: ClassVar[str] = "openai"
    sent_as: ClassVar[tuple[str, ...]] = ("a question",)
    if_absent: ClassVar[str] = (
        "Name a model that the server has, `judge: {name: openai, model: NAME}`; leave /v1 out of the URL."
    )
    batches: ClassVar[bool] = False

    def __init__(
        self,
        *,
        model: str | None,
        max_tokens: int,
        label_tokens: int,
        temperature: float,
        top_logprobs: int,
        structured: Structured,
        extra_body: Mapping[str, Any],
    ) -> None:
        self.model = model
        self.max_tokens = max_tokens
        self.label_tokens = label_tokens
        self.temperature = temperature
        self.top_logprobs = top_logprobs
        self.structured = structured
        self.extra_body = dict(extra_body)
        self.unknown: set[str] = set()
        """The optional keys that the servers refused."""

    @property
    def answer_bytes(self) -> int:  # type: ignore[override]  # depends on the settings
        """The most bytes of an answer, from its tokens and the logprobs of each."""
        limits = [self.extra_body.get(key) for key in ("max_tokens", "max_completion_tokens")]
        given = [number for number in limits if isinstance(number, int)]
        texts, labels = max([self.max_tokens, *given]), max([self.label_tokens, *given])
        return 512 * max(texts, labels * (1 + self.top_logprobs))

    async def prepare(self, ask: Ask) -> ServerFacts:
        """Ask for the model's name, unless it is set.

        Raises:
            UnsupportedError: The server lists no model, or several.
        """
        model = self.model
        if model is None:
            names = [entry["id"] for entry in await listed_models(ask) if isinstance(entry.get("id"), str)]
            if len(names) != 1:
                raise UnsupportedError(
                    f"GET /v1/models lists {', '.join(map(repr, names)) or 'no model'}. Name the model that judges, "
                    "`judge: {name: openai, model: NAME}`."
                )
            (model,) = names
        return ServerFacts(self, f"the judge {model}", facts={"model": model})

    def request(self, items: Sequence[Item], server: ServerFacts, request_id: str) -> Request:
        """The question's messages."""
        (item,) = items
        question: Question = item.question
        body: dict[str, Any] = {
            "model": server.facts["model"],
            "messages": [dict(message) for message in question.messages],
            "temperature": self.temperature,
        }
        most = self.label_tokens if question.labels else self.max_tokens
        body["max_completion_tokens" if "max_tokens" in self.unknown else "max_tokens"] = most
        if question.labels and self.top_logprobs and "logprobs" not in self.unknown:
            body |= {"logprobs": True, "top_logprobs": self.top_logprobs}
        if question.schema is not None and self.structured != "never" and "response_format" not in self.unknown:
            schema = {"name": _SCHEMA_NAME, "strict": True, "schema": dict(question.schema)}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        body |= self.extra_body
        return Request("/v1/chat/completions", {key: value for key, value in body.items() if value is not None})

    def answer(self, response: Response, items: Sequence[Item], server: ServerFacts, request_id: str) -> Answer:
        """The reply, which says itself why there is no answer.

        Raises:
            AnswerError: The response is not one of the API.
        """
        answer = response.json()
        choice = only_choice(answer)
        check_request_id(answer.get("id"), request_id)  # vLLM builds its id from X-Request-ID
        prompt_tokens, completion_tokens = tokens_used(answer)
        question: Question = items[0].question
        text, probabilities, error = self._read(choice, question)
        if question.labels:
            error = error.replace("max_tokens", "label_tokens")  # the key of the spec that limits such an answer
        reply = Reply("" if error else text, probabilities, error, prompt_tokens, completion_tokens)
        return Answer([None], errors={0: error} if error else {}, replies=[reply])

    def _read(self, choice: Mapping[str, Any], question: Question) -> tuple[str, Mapping[str, float] | None, str]:
        """The text, the label probabilities, and the error of a choice."""
        if question.labels and not withheld(choice) and _has_logprobs(choice):
            try:
                found = Labels(question.labels).masses(choice)
            except SpecError as error:
                return "", None, f"the question's labels cannot be used: {error.message}"
            except UnsupportedError:  # only the chosen token has a log-probability
                pass
            else:
                text = chat_text({**choice, "finish_reason": "stop"}).text  # the first token counts, so it may be cut off
                text = (text or found.beginning.strip()) + (CUT_OFF if is_cut_off(choice) else "")
                return text, found.masses or None, found.error
        written = chat_text(choice)
        return written.text, None, written.error

    def failure(self, response: Response, items: int) -> Failure:
        """What an error status means; a key that the server refuses is left out when the request is sent again."""
        if response.status in (400, 403, 422, 500, 501):  # OpenAI answers 403 where a model has no logprobs
            message = self.message(response)
            for key, told in _OPTIONAL.items():
                if told.search(message) and (key != "response_format" or self.structured == "auto"):
                    if key not in self.unknown:  # if it is, this request was already under way
                        self.unknown.add(key)
                        logger.warning("The server refuses `%s` and is asked without it from now on: %s", key, message)
                    return "retry"
        return super().failure(response, items)


def _has_logprobs(choice: Mapping[str, Any]) -> bool:
    logprobs = choice.get("logprobs")
    return isinstance(logprobs, Mapping) and bool(logprobs.get("content"))


def check_sampling(max_tokens: int, label_tokens: int, temperature: float, top_logprobs: int) -> None:
    """Refuse settings that no server takes.

    Raises:
        SpecError: One is out of range.
    """
    for key, number in {"max_tokens": max_tokens, "label_tokens": label_tokens}.items():
        if number < 1:
            raise SpecError(f"must be at least 1, not {number}.", key=key)
    if not (math.isfinite(temperature) and temperature >= 0):
        raise SpecError(f"must be a number that is not negative, not {temperature}.", key="temperature")
    if not 0 <= top_logprobs <= 20:
        raise SpecError(f"must be from 0 (none are requested) to 20, not {top_logprobs}.", key="top_logprobs")
