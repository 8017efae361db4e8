"""The interface of protocols: how samples become HTTP requests, and how answers become scores. Does no network access."""

from __future__ import annotations

import json
import math
import re
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, ClassVar, Literal, TypeAlias

from rm_plugins.component import Component
from rm_plugins.errors import AnswerError, DataError
from rm_plugins.samples import RenderedSample, Sample

MOST_TOLD = 2000
"""The most characters of a server's message that are kept."""

_NO_LINE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")

MOST_NESTED = 100
"""The deepest nesting of lists and mappings in an answer; deeper answers cannot be parsed or printed safely."""


_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


@dataclass(frozen=True, slots=True)
class Item:
    """A sample in the forms in which it can be sent.

    Args:
        sample: The sample itself.
        text: The rendered text; None for a conversation without a tokenizer to render it. If there are token ids, the text tokenizes to
            them (with special tokens as `Protocol.server_adds_special_tokens` says), or is None if no text does.
        token_ids: The truncated token ids, if the spec names a tokenizer; None if they are not sufficient, as for a pair with token types.
        pair: The two texts, if the model takes prompt and completion as a pair.
        refusal: Why the sample must not be sent; empty if it may be sent.
        length: The number of tokens of the local rendering, if there is one; `token_ids` may omit trailing padding.
        question: What is asked, for a protocol that asks a language model questions; the sample is then empty.
    """

    sample: Sample
    text: str | None = None
    token_ids: tuple[int, ...] | None = None
    pair: tuple[str, str] | None = None
    refusal: str = ""
    length: int | None = None
    question: Any = None

    @property
    def needed_text(self) -> str:
        """The text, for a server that takes only text.

        Raises:
            DataError: The sample is a conversation and there is no tokenizer to render it, or no text has its token ids, or it is a pair.
        """
        if self.text is None and self.pair is not None:
            raise DataError(
                "The model takes prompt and completion as a pair, but this protocol sends one text, which does not show where the second "
                "text begins. Use a protocol that sends pairs (`vllm`, `tei`); or set `pair: false` in the spec of the remote provider if "
                "the model was trained on prompt and completion in one text."
            )
        if self.text is None and self.token_ids is not None:
            raise DataError(
                "This protocol sends text, but no text gives the token ids of this sample: the server's tokenizer would add other special "
                "tokens, or the sample was truncated within a word. Use a server and protocol that take token ids."
            )
        if self.text is None:
            raise DataError(
                "This protocol sends text, but the sample is a conversation and there is no tokenizer to render it. Name the model's "
                "tokenizer in the spec of the remote provider, `tokenizer: FOLDER_OR_ID`, or send text."
            )
        return self.text

    @property
    def text_with_tokens(self) -> str:
        """The text, for a server that pads the texts of a batch: such a server would score the padding of a text without tokens.

        Raises:
            DataError: The text is empty, or `needed_text` raises.
        """
        if self.needed_text == "":
            raise DataError(
                "The text is empty, so it has no token to score: this server would pad it to the length of others, and return the score of "
                "the padding. Leave the sample out; or name the model's `tokenizer` in the spec of the remote provider, if it adds special "
                "tokens such as EOS."
            )
        return self.needed_text

    def text_pair(self, endpoint: str, instead: str) -> tuple[str, str]:
        """The two texts, for an `endpoint` that takes only pairs.

        Args:
            endpoint: The name of the endpoint, for the error message.
            instead: The endpoint to use instead, for the error message.

        Raises:
            DataError: The sample is not a pair of texts.
        """
        if self.pair is not None:
            return self.pair
        prompt, completion = self.sample.prompt, self.sample.completion
        is_rendered = isinstance(self.sample, RenderedSample)
        if is_rendered or not isinstance(prompt, str) or not isinstance(completion, str):
            raise DataError(
                f"`endpoint: {endpoint}` takes a prompt and a completion that are text, but this sample is "
                f"{'already rendered' if is_rendered else 'a conversation'}; use `endpoint: {instead}`."
            )
        return prompt, completion


@dataclass(frozen=True, slots=True)
class Request:
    """An HTTP request.

    Args:
        path: Appended to the endpoint's URL, such as ``/classify``.
        body: The body, sent as JSON; None for no body.
        method: The HTTP method.
        headers: Headers in addition to those that the client always sends.
    """

    path: str
    body: Any = None
    method: Literal["GET", "POST"] = "POST"
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Response:
    """An HTTP response, read to its end.

    Args:
        status: The status code.
        body: The body.
        headers: The headers by lower-case name.
    """

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)

    def json(self) -> Any:
        """The body as JSON; ``NaN`` and ``Infinity`` are read as numbers, so that a later check can name them.

        Raises:
            AnswerError: It is not valid JSON.
        """
        try:
            answer = json.loads(self.body)
        except (ValueError, RecursionError) as error:
            raise AnswerError(f"the answer is not valid JSON ({error}): {self.body[:80]!r}") from None
        if _is_deep(self.body):
            raise AnswerError(f"the answer is nested more than {MOST_NESTED} levels deep: {self.body[:80]!r}")
        return answer


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """Facts about a server, from `Protocol.prepare`.

    Args:
        protocol: The protocol to use with the server; not the prepared one if that one only detects protocols.
        description: A description for logs and messages, such as ``vLLM 0.33.0``.
        max_items: The most samples of a request; None if no limit is known.
        facts: Data for the protocol's own use.
        closes_texts: Whether the server's tokenizer ends every text with a special token, such as EOS or a separator; None if this is
            unknown or irrelevant, as for a server that renders samples itself.
        tokens_of_probe: The server's token ids for `rm_plugins.protocols.discovery.PROBE_TEXT`, without special tokens; None if unknown.
    """

    protocol: Protocol
    description: str
    max_items: int | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    closes_texts: bool | None = None
    tokens_of_probe: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """A server's answer for N items.

    Args:
        values: One score per item in the items' order, [N]; None where the server's reward abstained or failed.
        details: Named per-item extras, [N] each.
        errors: The reason for each item that the server could not score, by position; its value is None.
        fingerprint: Identifies the model that scored; empty if the server does not report it.
        replies: What a language model replied to each `Item.question`, [N]; empty for a protocol that scores samples.
    """

    values: Sequence[float | None]
    details: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    errors: Mapping[int, str] = field(default_factory=dict)
    fingerprint: str = ""
    replies: Sequence[Any] = ()


Ask: TypeAlias = Callable[[Request], Awaitable[Response]]
"""Sends one request to a server, with the user's key; raises ScoringError if there is no answer at all."""

Failure: TypeAlias = Literal["retry", "overload", "too-large", "rejected", "refused"]
"""The meaning of an error status.

- ``retry``: the request may succeed if repeated.
- ``overload``: the server is overloaded; send fewer requests at a time, and later.
- ``too-large``: the request must be split.
- ``rejected``: an item is at fault; a request with several items is split to find it.
- ``refused``: the request is wrong regardless of its items (key, model, path), so later ones would fail too.
"""


Reads: TypeAlias = Literal["last", "before-padding", "unknown"]
"""Which token of a decoder's row a served model reads: the very last one (``last``), the last one that is not the padding token
(``before-padding``), or one of these two (``unknown``). They differ if a row ends with the padding token, for example if that is EOS."""


class Protocol(Component):
    """A way to send samples to a remote scorer and to read its answers."""

    kind: ClassVar[str] = "protocol"

    batches: ClassVar[bool] = True
    """Whether one request may carry several items."""

    default_max_items: ClassVar[int] = 64
    """The most items of a request if neither the server nor the spec sets a limit."""

    answer_bytes: ClassVar[int] = 64 * 1024
    """The most bytes of an answer per item; `rm_plugins.remote` allows 4 MiB per answer in addition."""

    sent_as: ClassVar[tuple[str, ...]] = ("text",)
    """The forms in which a sample can be sent, best first, for descriptions; ``pairs`` are prompt and completion as two texts."""

    reads: ClassVar[Reads | None] = None
    """Which token of a decoder's row the served model reads; None for a server that handles this itself, as ours does, or that renders
    samples itself. Rows are sent only if the server then reads the token that the model was trained to be read at."""

    leaves_texts_bare: ClassVar[bool] = False
    """Whether a text that is not rendered locally is assumed to reach the model without special tokens and EOS, because the server gives
    no information about that."""

    takes_only_pairs: ClassVar[bool] = False
    """Whether it sends only pairs of texts, `Item.pair`, as an endpoint for cross-encoders needs."""

    server_adds_special_tokens: ClassVar[bool] = False
    """Whether the server's tokenizer adds special tokens to the text of an item with token ids, so that the text must not contain
    them."""

    async def detect(self, ask: Ask) -> str | None:
        """A description of the server if it speaks this protocol, such as ``TEI 1.9.3 with BAAI/bge-reranker-base``; else None.

        Called by ``protocol: auto``. Sends only GET requests and scores nothing.
        """
        return None

    async def prepare(self, ask: Ask) -> ServerFacts:
        """Ask for the facts that are needed before the first request; called again after the server was unreachable.

        Raises:
            UnsupportedError: This server cannot give rewards over this protocol.
            ScoringError: The server does not answer.
        """
        return ServerFacts(self, self.name)

    @abstractmethod
    def request(self, items: Sequence[Item], server: ServerFacts, request_id: str) -> Request:
        """The request that scores the items; there is exactly one item unless `batches`.

        Raises:
            DataError: An item cannot be sent.
        """

    @abstractmethod
    def answer(self, response: Response, items: Sequence[Item], server: ServerFacts, request_id: str) -> Answer:
        """The scores in a response with a 2xx status.

        Raises:
            AnswerError: The response violates the protocol: another count, a repeated item, something that is not a number. The request is
                sent again.
            UnsupportedError: The server does not give rewards as the spec requires, for example several outputs of which the spec chooses
                none, or no log-probabilities. The request is not sent again, because later answers would have the same problem.
        """

    def failure(self, response: Response, items: int) -> Failure:
        """What a response with another status means, for a request with this number of items."""
        match response.status:
            case 413:
                return "too-large"
            case 429 | 503:
                return "overload"
            case 408 | 409 | 425:
                return "retry"
            case 400 | 422 | 424:
                return "rejected"
            case 501 | 505:
                return "refused"
            case status if status >= 500:
                return "retry"
        return "refused"

    if_absent: ClassVar[str] = ""
    """The likely remedy if a server answers 404 or 405, for error messages."""

    def message(self, response: Response) -> str:
        """The message of a response with an error status: the text under the usual keys, else the beginning of the body."""
        try:
            message = response.json()
        except AnswerError:
            return one_line(response.body[:200].decode(errors="replace"))
        for key in ("error", "message", "detail"):
            while isinstance(message, Mapping) and key in message:
                message = message[key]
        return one_line(message if isinstance(message, str) else json.dumps(message)[:200])


def one_line(text: str) -> str:
    """A server's message as a single line for logs: without line breaks and control characters, and truncated.

    >>> one_line("no\\x1b[31m such\\nmodel")
    'no [31m such model'
    """
    return _NO_LINE.sub(" ", text[:MOST_TOLD])


def _is_deep(body: bytes) -> bool:
    """Whether JSON text nests lists and mappings more than `MOST_NESTED` levels deep."""
    if body.count(b"[") + body.count(b"{") <= MOST_NESTED:
        return False
    brackets = _STRING.sub(b"", body).translate(None, delete=_NO_BRACKETS)
    return max(accumulate(1 if bracket in b"[{" else -1 for bracket in brackets), default=0) > MOST_NESTED


def finite(value: object, what: str, *, row: int | None = None) -> float:
    """Check that a value in an answer is a finite number.

    Args:
        value: The value.
        what: Its place in the answer, for the message: ``data[0].probs[0]``.
        row: The item whose score it is.

    Raises:
        AnswerError: It is not a number, or not finite.

    >>> finite(1, "score")
    1.0
    """
    rows = None if row is None else [row]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise AnswerError(f"{what} is {value!r:.80}; a number was expected", rows=rows)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise AnswerError(f"{what} is {number}; a score must be finite", rows=rows)
    return number


def in_order(entries: object, size: int, what: str) -> list[Mapping[str, Any]]:
    """Sort entries by their ``index``; there must be exactly one for each of `size` items.

    Args:
        entries: The entries in the answer.
        size: The number of items.
        what: Their place in the answer, for the message: ``data``.

    Raises:
        AnswerError: It is not a list of mappings, or an index is missing, repeated, or out of range.

    >>> in_order([{"index": 1, "score": 0.5}, {"index": 0, "score": 2.0}], 2, "results")
    [{'index': 0, 'score': 2.0}, {'index': 1, 'score': 0.5}]
    """
    if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
        raise AnswerError(f"{what} is {entries!r:.80}; a list of mappings with 'index' was expected")
    indices = [entry.get("index") for entry in entries]
    if len(entries) != size:
        raise AnswerError(f"{what} has {len(entries)} entries for {size} items")
    if not all(type(index) is int for index in indices) or sorted(indices) != list(range(size)):
        raise AnswerError(f"{what} has the indices {indices!s:.80}; each of 0 to {size - 1} was expected once")
    return sorted(entries, key=lambda entry: entry["index"])
