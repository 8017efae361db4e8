"""rm-plugins' own protocol: samples are sent unrendered, and the server's reward renders them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from rm_plugins.errors import AnswerError, DataError, UnsupportedError
from rm_plugins.protocols.discovery import get_mapping, required_mapping
from rm_plugins.protocols.protocol import (
    Answer,
    Ask,
    Item,
    Protocol,
    Request,
    Response,
    ServerFacts,
    finite,
    in_order,
    one_line,
)
from rm_plugins.protocols.values import json_form
from rm_plugins.samples import RenderedSample
from rm_plugins.wire import sample_to_json

VERSION = "rm-plugins/1"
"""The name and version of the protocol in requests and answers."""

_REMEDY = (
    "List the columns that the reward needs, `protocol: {name: rm-plugins, columns: [...]}` (an empty list for none), or convert "
    "this one."
)


class Native(Protocol):
    """``POST /v1/rewards``, as ``rm-plugins serve`` answers it.

    Prompt, completion and columns are sent, and the server renders them; the client needs nothing of the model. Abstentions, details and
    failures of single samples are returned.

    Args:
        columns: The columns to send, where a sample has them; by default all, because a chat template or a function may read any of
            them.
    """

    name: ClassVar[str] = "rm-plugins"
    sent_as: ClassVar[tuple[str, ...]] = ("samples",)
    if_absent: ClassVar[str] = "Give the root of `rm-plugins serve` as the URL, without /v1."

    def __init__(self, *, columns: Sequence[str] | None = None) -> None:
        self.columns = None if columns is None else tuple(columns)

    async def detect(self, ask: Ask) -> str | None:
        """Recognize the server by ``GET /v1/info``."""
        info = await get_mapping(ask, "/v1/info")
        return None if info is None or not str(info.get("protocol")).startswith("rm-plugins/") else _description(info)

    async def prepare(self, ask: Ask) -> ServerFacts:
        """Ask for the model, its fingerprint, and the largest number of samples in a request.

        Raises:
            UnsupportedError: The server has another version, or its reward compares samples.
        """
        info = await required_mapping(ask, "/v1/info", self)
        if info.get("protocol") != VERSION:
            raise UnsupportedError(
                f"GET /v1/info names the protocol {info.get('protocol')!r}; this version of rm-plugins speaks {VERSION!r}. "
                "Install the same version of rm-plugins on client and server."
            )
        max_items = info.get("max_items")
        if max_items is not None and (type(max_items) is not int or max_items < 1):
            raise UnsupportedError(f"GET /v1/info has max_items {max_items!r}; a positive integer was expected.")
        if info.get("compares") is True:
            raise UnsupportedError(
                f"The reward of this server, {_description(info)}, compares the samples of a group in a request, but this client divides "
                "samples into requests and sends equal ones once. Serve the reward without that part, and put the part into the spec here, "
                "such as `{provider: remote, url: ..., transform: rank-in-group}`."
            )
        return ServerFacts(self, _description(info), max_items, info)

    def request(self, items: Sequence[Item], server: ServerFacts, request_id: str) -> Request:
        """Samples as JSON, or token ids if the spec names a tokenizer."""
        rendered = server.facts.get("rendered") is not False
        return Request("/v1/rewards", {"id": request_id, "samples": [self._sample(item, rendered=rendered) for item in items]})

    def answer(self, response: Response, items: Sequence[Item], server: ServerFacts, request_id: str) -> Answer:
        """Rewards by index, and the errors of samples without a reward."""
        answer = response.json()
        if not isinstance(answer, Mapping):
            raise AnswerError(f"the answer is {answer!r:.80}; a mapping with 'rewards' was expected")
        if answer.get("id") != request_id:
            raise AnswerError(
                f"the answer is for the request {answer.get('id')!r:.80}, not for {request_id!r}; answers were mixed up"
            )
        entries = in_order(answer.get("rewards"), len(items), "rewards")
        values: list[float | None] = []
        errors: dict[int, str] = {}
        for row, entry in enumerate(entries):
            if "reward" not in entry:
                raise AnswerError(f"rewards has no 'reward' for item {row}", rows=[row])
            error, value = entry.get("error"), entry["reward"]
            values.append(None if value is None else finite(value, f"the reward of item {row}", row=row))
            if error is not None and value is not None:
                raise AnswerError(f"item {row} has both the reward {value} and the error {error!r:.80}", rows=[row])
            if error is not None:
                errors[row] = one_line(str(error)) or "the server gives no reason"
        details = answer.get("details") or {}
        if not isinstance(details, Mapping):
            raise AnswerError(f"details is {details!r:.80}; a mapping of lists was expected")
        columns = {str(name): _column(column, len(items), f"details[{name!r}]") for name, column in details.items()}
        return Answer(values, columns, errors, str(answer.get("fingerprint") or ""))

    def _sample(self, item: Item, *, rendered: bool) -> dict[str, Any]:
        if not rendered and (item.token_ids is not None or isinstance(item.sample, RenderedSample)):
            raise DataError(
                "The reward of this server does not consist of models only, so it takes no token ids and no rendered text. Send samples: "
                "leave `tokenizer` out of the spec of the remote provider."
            )
        if item.token_ids is not None:
            return {"token_ids": list(item.token_ids)}
        if item.pair is not None:
            raise DataError(
                "This server renders samples itself and knows whether its model takes pairs. Leave `pair` and `tokenizer` out of the spec "
                "of the remote provider."
            )
        sent = sample_to_json(item.sample)
        columns = {
            name: json_form(value, f"the column {name!r}", _REMEDY)
            for name, value in sent.pop("columns", {}).items()
            if self.columns is None or name in self.columns
        }
        sent = {name: json_form(value, f"its {name}") for name, value in sent.items()}
        return {**sent, "columns": columns} if columns else sent


def _description(info: Mapping[str, Any]) -> str:
    fingerprint = str(info.get("fingerprint") or "")[:12]
    return f"{info.get('server', 'rm-plugins')} with {info.get('model', 'a reward')}" + (
        f" ({fingerprint})" if fingerprint else ""
    )


def _column(column: object, size: int, what: str) -> list[float | None]:
    if not isinstance(column, list) or len(column) != size:
        raise AnswerError(f"{what} is {column!r:.80}; a list of {size} numbers or nulls was expected")
    return [None if value is None else finite(value, f"{what}[{row}]", row=row) for row, value in enumerate(column)]
