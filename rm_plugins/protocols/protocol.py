"""What every protocol is: how samples become HTTP requests, and answers become scores, without any network in it."""

from __future__ import annotations

import json
import math
import re
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, ClassVar, Literal, TypeAlias

from rm_plugins.errors import AnswerError, DataError
from rm_plugins.provider import Component
from rm_plugins.samples import RenderedSample, Sample

MOST_TOLD = 2000
"""Characters of what a server says of an error, or of one item."""

_NO_LINE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")

MOST_NESTED = 100
"""Lists and mappings inside each other in an answer; what is nested much deeper can be neither read nor shown."""


_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


@dataclass(frozen=True, slots=True)
class Item:
    """A sample as it may be sent.

    Args:
        sample: The sample itself.
        text: What is to be scored, rendered; None for a conversation where no tokenizer is named to render it with. Where there
            are token ids, these are what it tokenizes to (`Protocol.server_adds_special_tokens` says how), or it is None.
        token_ids: Its token ids, truncated, where a tokenizer is named; None where they do not tell all, as of a pair with token types.
        pair: Its two texts, where the model takes prompt and completion as a pair.
        refusal: Why it must not be sent; empty where it may.
        length: How many tokens the rendering here has, where there is one; `token_ids` may leave trailing padding out.
    """

    sample: Sample
    text: str | None = None
    token_ids: tuple[int, ...] | None = None
    pair: tuple[str, str] | None = None
    refusal: str = ""
    length: int | None = None

    @property
    def needed_text(self) -> str:
        """The text, for a server that takes nothing else.

        Raises:
            DataError: The sample is a conversation, and there is no tokenizer to render it with; or no text has its token ids; or it is
                a pair.
        """
        if self.text is None and self.pair is not None:
            raise DataError(
                "The model takes prompt and completion as a pair, and this server is sent one row, which does not tell where the second "
                "text begins. Use a protocol that sends pairs (`vllm`, `tei`); or set `pair: false` in the spec of the remote provider if "
                "the model was trained on prompt and completion in one text."
            )
        if self.text is None and self.token_ids is not None:
            raise DataError(
                "This server is sent text, and no text gives it the token ids of this sample: its tokenizer would add other special "
                "tokens, or the sample was truncated within a word. Use a server and protocol that take token ids."
            )
        if self.text is None:
            raise DataError(
                "This server is sent text, and the sample is a conversation that nothing here can render. Name the model's "
                "tokenizer in the spec of the remote provider, `tokenizer: FOLDER_OR_ID`, or send text."
            )
        return self.text

    @property
    def text_with_tokens(self) -> str:
        """The text, for a server that pads the texts of a batch: one without a token is all padding there, and gets a number all the same.

        Raises:
            DataError: It has no token, or it is not what `needed_text` wants.
        """
        if self.needed_text == "":
            raise DataError(
                "The text is empty, and has no token that a model could read: this server would pad it to the length of others, and answer "
                "the score of the padding. Leave the sample out; or name the model's `tokenizer` in the spec of the remote provider, if it "
                "puts special tokens there, such as EOS."
            )
        return self.needed_text

    def text_pair(self, endpoint: str, instead: str) -> tuple[str, str]:
        """The two texts, for an `endpoint` that takes nothing else; messages name the one to use `instead`.

        Raises:
            DataError: There are none.
        """
        if self.pair is not None:
            return self.pair
        prompt, completion = self.sample.prompt, self.sample.completion
        is_rendered = isinstance(self.sample, RenderedSample)
        if is_rendered or not isinstance(prompt, str) or not isinstance(completion, str):
            raise DataError(
                f"`endpoint: {endpoint}` takes a prompt and a completion that are text, and this sample is "
                f"{'rendered already' if is_rendered else 'a conversation'}; use `endpoint: {instead}`."
            )
        return prompt, completion


@dataclass(frozen=True, slots=True)
class Request:
    """An HTTP request.

    Args:
        path: Appended to the endpoint's URL, such as ``/classify``.
        body: What is sent as JSON; None for no body.
        method: The HTTP method.
        headers: Beside those that the client sends by itself.
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
        headers: By lower-case name.
    """

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)

    def json(self) -> Any:
        """The body as JSON; ``NaN`` and ``Infinity`` are read as numbers, for a check to name them.

        Raises:
            AnswerError: It is not valid JSON.
        """
        try:
            answer = json.loads(self.body)
        except (ValueError, RecursionError) as error:
            raise AnswerError(f"the answer is no JSON ({error}): {self.body[:80]!r}") from None
        if _is_deep(self.body):
            raise AnswerError(f"the answer is nested more than {MOST_NESTED} deep: {self.body[:80]!r}")
        return answer


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What asking a server told.

    Args:
        protocol: How it is spoken to; another one than was asked where that one only chooses.
        description: For logs and people: ``vLLM 0.33.0``.
        max_items: Most samples of a request; None where the server has no limit that is known.
        facts: What the protocol itself wants to remember.
        closes_texts: Whether the server's tokenizer ends every text with a token of its own, EOS or a separator, as those of encoders
            do; None where that is not known or does not matter, as with a server that renders samples by itself.
        tokens_of_probe: What the server's tokenizer makes of `rm_plugins.protocols.discovery.PROBE_TEXT`, without special tokens; None
            where that is not known.
    """

    protocol: Protocol
    description: str
    max_items: int | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    closes_texts: bool | None = None
    tokens_of_probe: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server said of N items.

    Args:
        values: One score per item in the items' order, [N]; None where the server's reward abstained.
        details: Named per-item extras, [N] each.
        errors: What the server could not score, by item, and why; `values` has None there.
        fingerprint: What identifies the model that scored; empty where the server does not say.
    """

    values: Sequence[float | None]
    details: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    errors: Mapping[int, str] = field(default_factory=dict)
    fingerprint: str = ""


Ask: TypeAlias = Callable[[Request], Awaitable[Response]]
"""Sends one request to a server, with the user's key; raises ScoringError where there is no answer at all."""

Failure: TypeAlias = Literal["retry", "overload", "too-large", "rejected", "refused"]
"""What an error status means.

- ``retry``: it may go well the next time.
- ``overload``: the server has too much to do; less at a time, and later.
- ``too-large``: the request must be split.
- ``rejected``: an item is at fault; a request of several is split to find it.
- ``refused``: the request as such is wrong (key, model, path), and so would be the next one.
"""


Reads: TypeAlias = Literal["last", "before-padding", "unknown"]
"""Which token of a decoder's row a server's model reads: the very last that it is sent, the last that is not the padding token, or one of
these two, and nobody knows which. They differ where a row ends with the padding token, as it does where that is EOS."""


class Protocol(Component):
    """How a remote scorer is spoken to."""

    kind: ClassVar[str] = "protocol"

    batches: ClassVar[bool] = True
    """Whether one request may carry several items."""

    default_max_items: ClassVar[int] = 64
    """Items of a request where neither the server nor the spec names a limit."""

    answer_bytes: ClassVar[int] = 64 * 1024
    """Most bytes of an answer for each of its items; `rm_plugins.remote` allows 4 MiB for the whole beside it."""

    sent_as: ClassVar[tuple[str, ...]] = ("text",)
    """What a sample may be sent as, the best first, for people; ``pairs`` are prompt and completion as two texts."""

    reads: ClassVar[Reads | None] = None
    """Which token of a decoder's row the server's model reads; None for a server that knows by itself, as ours does, or renders samples
    itself. Rows are sent for it to be the token that the model was trained to be read at, or not at all."""

    leaves_texts_bare: ClassVar[bool] = False
    """Whether a text that nothing renders here is taken to reach the model without special tokens and EOS: the server cannot be asked."""

    takes_only_pairs: ClassVar[bool] = False
    """Whether it is sent pairs of texts, `Item.pair`, and nothing else, as an endpoint for cross-encoders is."""

    server_adds_special_tokens: ClassVar[bool] = False
    """Whether the server's tokenizer adds its special tokens to the text of an item with token ids, so that its text must be
    one without them."""

    async def detect(self, ask: Ask) -> str | None:
        """What the server is, if it speaks this protocol, such as ``TEI 1.9.3 with BAAI/bge-reranker-base``; else None.

        Called by ``protocol: auto``. Asks by GET alone: nothing is scored.
        """
        return None

    async def prepare(self, ask: Ask) -> ServerFacts:
        """Ask what must be known before the first request, and after the server was gone.

        Raises:
            UnsupportedError: This server cannot give rewards by this protocol.
            ScoringError: There is no answer.
        """
        return ServerFacts(self, self.name)

    @abstractmethod
    def request(self, items: Sequence[Item], server: ServerFacts, request_id: str) -> Request:
        """The request that has the items scored; a single one unless `batches`.

        Raises:
            DataError: An item cannot be sent.
        """

    @abstractmethod
    def answer(self, response: Response, items: Sequence[Item], server: ServerFacts, request_id: str) -> Answer:
        """What a response with a status of 2xx says of the items.

        Raises:
            AnswerError: It is not what the protocol says: another count, an item twice, no number. It is asked for again.
            UnsupportedError: It shows that this server gives no rewards as the spec asks for them: several outputs and no word which of
                them, no log-probabilities. Nothing is asked for again, for the next answer would be no better.
        """

    def failure(self, response: Response, items: int) -> Failure:
        """What a response with another status means, for a request of so many items."""
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
    """What is likely wrong where a server answers 404 or 405, and what to do, for people."""

    def message(self, response: Response) -> str:
        """What a response of an error status says, for people: the text under the usual keys, else the body's beginning."""
        try:
            message = response.json()
        except AnswerError:
            return one_line(response.body[:200].decode(errors="replace"))
        for key in ("error", "message", "detail"):
            while isinstance(message, Mapping) and key in message:
                message = message[key]
        return one_line(message if isinstance(message, str) else json.dumps(message)[:200])


def one_line(text: str) -> str:
    """What a server says, as a line of a log may have it: without line ends and control characters, and not too long.

    >>> one_line("no\\x1b[31m such\\nmodel")
    'no [31m such model'
    """
    return _NO_LINE.sub(" ", text[:MOST_TOLD])


def _is_deep(body: bytes) -> bool:
    """Whether JSON has more than `MOST_NESTED` lists and mappings inside each other."""
    if body.count(b"[") + body.count(b"{") <= MOST_NESTED:
        return False
    brackets = _STRING.sub(b"", body).translate(None, delete=_NO_BRACKETS)
    return max(accumulate(1 if bracket in b"[{" else -1 for bracket in brackets), default=0) > MOST_NESTED


def finite(value: object, what: str, *, row: int | None = None) -> float:
    """A finite number of an answer.

    Args:
        value: What the answer has.
        what: Where it stands, for the message: ``data[0].probs[0]``.
        row: The item that it is the score of.

    Raises:
        AnswerError: It is no number, or not finite.

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
    """Entries with an ``index`` in the order of it, exactly one for each of `size` items.

    Args:
        entries: What the answer has.
        size: The number of items.
        what: Where it stands, for the message: ``data``.

    Raises:
        AnswerError: It is no list of mappings, or an index is missing, twice there, or of no item.

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
