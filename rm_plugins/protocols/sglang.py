"""SGLang's reward models."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from rm_plugins.errors import AnswerError, DataError, SpecError, UnsupportedError
from rm_plugins.protocols.discovery import get_mapping, required_mapping, server_tokens
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
from rm_plugins.protocols.request_ids import REQUEST_ID, check_request_id
from rm_plugins.protocols.values import output_of_label
from rm_plugins.samples import RenderedSample

_NAME_ONE = (
    ". If the model is a classifier, name one, `protocol: {name: sglang, label: NUMBER}`; if it is an embedding model, it gives no "
    "reward"
)


class SGLang(Protocol):
    """``POST /classify`` of ``python -m sglang.launch_server --is-embedding``, as SGLang 0.5.23 answers it: logits.

    Token ids are sent if there are any. The server's tokenizer always adds special tokens to texts. The outputs of an encoder whose
    configuration names an activation (``sbert_ce_default_activation_function``) are activated.

    The server's ``/v1/classify`` is not used: it applies a softmax over the model's outputs, which is always 1.0 for a single output.
    ``/v1/embeddings`` is not used either: it gives the same numbers as ``/classify`` with less information.

    Args:
        label: Which of a model's several outputs is the reward, counted from 0. Required if there are several.

    Raises:
        SpecError: `label` is negative.
    """

    name: ClassVar[str] = "sglang"
    sent_as: ClassVar[tuple[str, ...]] = ("token ids", "text")
    reads: ClassVar[Reads | None] = "last"
    """From the source of 0.5.23: its pooler takes the last position of each sequence (``python/sglang/srt/layers/pooler.py``)."""
    if_absent: ClassVar[str] = "Launch SGLang with `--is-embedding`, and give its root as the URL."

    def __init__(self, *, label: int | None = None) -> None:
        if label is not None and label < 0:
            raise SpecError(f"outputs are counted from 0; got {label}.", key="label")
        self.label = label

    async def detect(self, ask: Ask) -> str | None:
        """Recognize the server by ``GET /model_info`` or, in older versions, ``/get_model_info``."""
        info = await get_mapping(ask, "/model_info") or await get_mapping(ask, "/get_model_info")
        if info is None or "server" in info or not {"model_path", "is_generation"} <= set(info):
            return None
        return f"SGLang with {info['model_path']}"

    async def prepare(self, ask: Ask) -> ServerFacts:
        """Ask which model is served, and whether it can score.

        Raises:
            UnsupportedError: The server generates text.
        """
        info = await get_mapping(ask, "/model_info") or await required_mapping(ask, "/get_model_info", self)
        model = info.get("model_path", "a model without a name")
        if info.get("is_generation") is True:
            raise UnsupportedError(f"SGLang serves {model} for text generation. Launch it with `--is-embedding` for scoring.")
        server = await get_mapping(ask, "/server_info") or await get_mapping(ask, "/get_server_info") or {}
        tokens = await server_tokens(ask, lambda text: {"prompt": text}, lambda answer: answer["tokens"])
        return ServerFacts(
            self,
            f"SGLang {server.get('version', '(version unknown)')} with {model}",
            closes_texts=tokens.closes,
            tokens_of_probe=tokens.of_probe,
        )

    def request(self, items: Sequence[Item], server: ServerFacts, request_id: str) -> Request:
        """The items as token ids, or as texts."""
        sending = secrets.token_hex(4)  # a repeated request needs new ids in the server
        names = [f"{request_id}.{sending}.{row}" for row in range(len(items))]
        ids = [item.token_ids for item in items if item.token_ids is not None]
        if len(ids) == len(items):
            return Request("/classify", {"input_ids": [list(row) for row in ids], "rid": names})
        if ids:
            raise DataError(
                "A batch mixes samples with and without token ids, but a request to SGLang takes only one kind. Score them separately."
            )
        if any(isinstance(item.sample, RenderedSample) and not item.sample.add_special_tokens for item in items):
            raise DataError(
                "SGLang adds the model's special tokens to every text, but this one already has them. Name the model's tokenizer in the "
                "spec of the remote provider, `tokenizer: FOLDER_OR_ID`, so that token ids are sent."
            )
        return Request("/classify", {"text": [item.needed_text for item in items], "rid": names})

    def answer(self, response: Response, items: Sequence[Item], server: ServerFacts, request_id: str) -> Answer:
        """One output of each item, from a list of entries."""
        entries = response.json()
        if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
            raise AnswerError(f"the answer is {entries!r:.80}; a list of mappings with 'embedding' was expected")
        if len(entries) != len(items):
            raise AnswerError(f"the answer has {len(entries)} entries for {len(items)} items")
        for row, entry in enumerate(entries):
            _check_name(_meta(entry).get("id"), request_id, row)
        errors = {
            row: error
            for row, (entry, item) in enumerate(zip(entries, items, strict=True))
            if (error := _truncated(entry, item))
        }
        values = [None if row in errors else self._reward(entry, row) for row, entry in enumerate(entries)]
        versions = sorted({str(_meta(entry).get("weight_version") or "default") for entry in entries})
        if len(versions) > 1:
            raise AnswerError(f"the model's weights changed between the items of one answer: {', '.join(versions)}")
        return Answer(values, errors=errors, fingerprint="" if versions == ["default"] else versions[0])

    def failure(self, response: Response, items: int) -> Failure:
        """What an error status means; the error of a model that generates text is permanent."""
        return "refused" if "--is-embedding" in self.message(response) else super().failure(response, items)

    def _reward(self, entry: Mapping[str, Any], row: int) -> float:
        reason = _meta(entry).get("finish_reason")
        if isinstance(reason, Mapping) and reason.get("type") == "abort":
            raise AnswerError(f"item {row} was aborted by the server: {reason.get('message')}", rows=[row])
        outputs = entry.get("embedding")
        if not isinstance(outputs, list) or not outputs:
            raise AnswerError(f"the embedding of item {row} is {outputs!r:.80}; a list of numbers was expected", rows=[row])
        output = output_of_label(outputs, self.label, f"item {row}", _NAME_ONE)
        return finite(output, f"the embedding of item {row}", row=row)


def _truncated(entry: Mapping[str, Any], item: Item) -> str:
    """The error of an item that the server truncated, which `--allow-auto-truncate` does silently; empty if it was not."""
    tokens, sent = _meta(entry).get("prompt_tokens"), len(item.token_ids or ())
    if type(tokens) is not int or tokens >= sent:
        return ""
    return (
        f"the server truncated it to {tokens} of its {sent} tokens; set `max_length` in the spec of the remote provider, so that samples "
        "are truncated as in the model's training"
    )


def _check_name(name: object, request_id: str, row: int) -> None:
    """Check that an entry that has one of our ids has the id of this row."""
    check_request_id(name, request_id, f"item {row}")
    if isinstance(name, str) and REQUEST_ID.search(name) and not name.endswith(f".{row}"):
        raise AnswerError(f"item {row} has the id {name!r:.80}; items were mixed up", rows=[row])


def _meta(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    meta = entry.get("meta_info")
    return meta if isinstance(meta, Mapping) else {}
