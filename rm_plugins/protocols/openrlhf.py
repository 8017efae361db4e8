"""OpenRLHF's remote reward models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from rm_plugins.errors import AnswerError, DataError
from rm_plugins.protocols.discovery import get_mapping
from rm_plugins.protocols.protocol import Answer, Ask, Item, Protocol, Reads, Request, Response, ServerFacts
from rm_plugins.protocols.values import detail, json_form, numbers


class OpenRLHF(Protocol):
    """``POST /get_reward``, as answered by ``openrlhf.cli.serve_rm`` of OpenRLHF 0.11.2 and compatible servers.

    The server takes text. Its tokenizer adds no special tokens, and silently cuts off the end at ``--data.max_len``. The server gives no
    information about itself: no version, no limit, no health.

    Args:
        labels: The column to send as ``labels``, for servers that compare with a reference; none by default.
        reads: Which token of a decoder's row the served model reads. ``serve_rm`` of OpenRLHF reads the ``last`` one (checked on 0.11.2,
            also with ``pad == eos``: ``openrlhf/models/model.py``); compatible servers that run a model of transformers mostly read
            ``before-padding``. The server gives no information about it.
    """

    name: ClassVar[str] = "openrlhf"
    leaves_texts_bare: ClassVar[bool] = True
    if_absent: ClassVar[str] = "Give the root of `openrlhf.cli.serve_rm` as the URL, without /get_reward."

    def __init__(self, *, labels: str | None = None, reads: Literal["last", "before-padding"] | None = None) -> None:
        self._reads: Reads = reads or "unknown"
        self.labels = labels

    @property
    def reads(self) -> Reads:  # type: ignore[override]  # set in the spec
        """Which token the served model reads, as set in the spec: compatible servers differ."""
        return self._reads

    async def detect(self, ask: Ask) -> str | None:
        """Recognize the server by the paths in ``GET /openapi.json``."""
        page = await get_mapping(ask, "/openapi.json") or {}
        paths = page.get("paths")
        return "an OpenRLHF reward server" if isinstance(paths, Mapping) and "/get_reward" in paths else None

    def request(self, items: Sequence[Item], server: ServerFacts, request_id: str) -> Request:
        """Texts, and the prompts and labels that rule-based servers use."""
        body: dict[str, Any] = {"query": [item.text_with_tokens for item in items]}
        prompts = [item.sample.prompt for item in items]
        if all(isinstance(prompt, str) for prompt in prompts):  # messages cannot be rendered without the completion
            body["prompts"] = prompts
        if self.labels is not None:
            body["labels"] = [self._label(item, self.labels) for item in items]
        return Request("/get_reward", body)

    def answer(self, response: Response, items: Sequence[Item], server: ServerFacts, request_id: str) -> Answer:
        """``rewards`` in the order of the texts; ``scores`` and ``extra_logs`` become details if they have one number per text."""
        answer = response.json()
        if not isinstance(answer, Mapping) or "rewards" not in answer:
            raise AnswerError(f"the answer is {answer!r:.80}; a mapping with 'rewards' was expected")
        values = numbers(answer["rewards"], len(items), "rewards")
        logs = answer.get("extra_logs")
        extras = {"scores": answer.get("scores"), **(logs if isinstance(logs, Mapping) else {})}
        details = {str(name): detail(column, len(items)) for name, column in extras.items()}
        return Answer(values, {name: column for name, column in details.items() if column is not None})

    def _label(self, item: Item, column: str) -> Any:
        if column not in item.sample.columns:
            raise DataError(
                f"A sample has no column {column!r}, which the spec of the protocol names as `labels`; its columns are "
                f"{', '.join(item.sample.columns) or 'none'}."
            )
        return json_form(item.sample.columns[column], f"the column {column!r}")
