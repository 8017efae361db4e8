"""ms-swift's deployed reward models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from rm_plugins.errors import AnswerError, DataError, UnsupportedError
from rm_plugins.protocols.discovery import listed_models, only_model
from rm_plugins.protocols.protocol import (
    Answer,
    Ask,
    Failure,
    Item,
    Protocol,
    Reads,
    Request,
    Response,
    ServerFacts,
    finite,
)
from rm_plugins.protocols.values import json_form
from rm_plugins.samples import RenderedSample


class Swift(Protocol):
    """``POST /v1/chat/completions`` of ``swift deploy --task_type seq_cls --num_labels 1``, as ms-swift 4.6.0 answers it.

    Each request has one conversation, which the server renders with its own template. If the spec names a tokenizer, an answer with another
    number of tokens is refused. The returned message has the score as its content.

    Args:
        model: The model's name on the server; by default the only one that it lists.
        texts: With ``messages``, a text prompt and completion are sent as a user's and an assistant's message, which gives another score
            than the text itself. By default such samples are refused.
    """

    name: ClassVar[str] = "swift"
    sent_as: ClassVar[tuple[str, ...]] = ("messages",)
    reads: ClassVar[Reads | None] = "before-padding"
    """From the source of 4.6.0: the token before the first padding token, as in older versions of transformers
    (``swift/model/patcher.py``)."""
    if_absent: ClassVar[str] = "Give the root of `swift deploy --task_type seq_cls` as the URL, without /v1."
    batches: ClassVar[bool] = False

    def __init__(self, *, model: str | None = None, texts: Literal["messages"] | None = None) -> None:
        self.model = model
        self.texts = texts

    async def detect(self, ask: Ask) -> str | None:
        """Recognize the server by the owner of the models in ``GET /v1/models``."""
        names = [entry.get("id") for entry in await listed_models(ask) if entry.get("owned_by") in ("swift", "ms-swift")]
        return f"ms-swift with {names[0]}" if names else None

    async def prepare(self, ask: Ask) -> ServerFacts:
        """Ask for the model's name, unless it is set."""
        model = self.model or await only_model(ask, self)
        return ServerFacts(self, f"ms-swift with {model}", facts={"model": model})

    def request(self, items: Sequence[Item], server: ServerFacts, request_id: str) -> Request:
        """The conversation, and the columns that chat templates use."""
        (item,) = items
        body = {"model": server.facts["model"], "messages": self._messages(item)}
        for column in ("tools", "chat_template_kwargs"):
            if item.sample.columns.get(column):
                body[column] = json_form(item.sample.columns[column], f"the column {column!r}")
        return Request("/v1/chat/completions", body)

    def answer(self, response: Response, items: Sequence[Item], server: ServerFacts, request_id: str) -> Answer:
        """The number in the message's content."""
        answer = response.json()
        match answer:
            case {"choices": [{"message": {"content": content}, **choice}]}:
                pass
            case _:
                raise AnswerError(f"the answer is {answer!r:.80}; one of the 'choices' with a 'message' was expected")
        if choice.get("logprobs") is not None:
            # The content is then the number of the most likely class, which could be mistaken for a score.
            raise UnsupportedError(
                f"the answer has logprobs, so its content {content!r:.80} is a class: the server runs a classifier, not a reward "
                "model. Deploy it with `--num_labels 1 --problem_type regression`"
            )
        if isinstance(content, list) and len(content) == 1:
            (content,) = content
        if isinstance(content, list) and len(content) > 1:
            raise UnsupportedError(
                f"the content is {content!r:.80}, several numbers, but a reward is one number. Deploy a model with `--num_labels 1`"
            )
        if isinstance(content, str):  # even if it looks like a number
            raise UnsupportedError(
                f"the content is the text {content!r:.80}: the server generates text. Deploy it with `--task_type seq_cls`"
            )
        _check_rendering(answer.get("usage"), items[0])
        return Answer([finite(content, "the content", row=0)])

    def failure(self, response: Response, items: int) -> Failure:
        """What an error status means; ms-swift answers 400 to every error, so the message decides."""
        message = self.message(response)
        if response.status == 400 and ("API key error" in message or "is not in the model_list" in message):
            return "refused"
        if response.status == 400 and "out of memory" in message:
            return "overload"
        return super().failure(response, items)

    def _messages(self, item: Item) -> list[Any]:
        sample = item.sample
        if isinstance(sample, RenderedSample):
            raise DataError(
                "ms-swift renders conversations itself and takes no rendered text and no token ids. Send prompts and completions."
            )
        if item.pair is not None:
            raise DataError(
                "The model takes prompt and completion as a pair, but ms-swift renders every sample as a conversation. Use a protocol that "
                "sends pairs (`vllm`, `tei`), with such a server."
            )
        if sample.is_conversational:
            return [json_form(dict(message), "a message") for message in sample.messages]
        if self.texts is None:
            raise DataError(
                "The sample is text, but ms-swift scores only conversations; sent as a user's and an assistant's message, it would get "
                "another score than `rm.load` gives the text. Send a conversation; or accept that with `protocol: {name: swift, texts: "
                "messages}`."
            )
        prompt = [{"role": "user", "content": sample.prompt}] if sample.prompt else []
        return [*prompt, {"role": "assistant", "content": sample.completion}]


def _check_rendering(usage: object, item: Item) -> None:
    """Check that the server's rendering of a conversation has as many tokens as the local one.

    With the same template, ms-swift 4.6.0 reports exactly the tokens of the conversation, independently of the batch.

    Raises:
        UnsupportedError: The numbers differ.
    """
    counted = usage.get("prompt_tokens") if isinstance(usage, Mapping) else None
    if item.sample.is_conversational and item.length is not None and type(counted) is int and counted != item.length:
        raise UnsupportedError(
            f"the server's rendering of a conversation has {counted} tokens, but that of the `tokenizer` in the spec has {item.length}: "
            "the server uses another template. Deploy the model with its own template, `--template_backend jinja`; or, to use the server's "
            "template, leave `tokenizer` out of the spec of the remote provider"
        )
