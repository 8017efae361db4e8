"""vLLM's pooling endpoints."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, TypeAlias

from rm_plugins.errors import AnswerError, DataError, ScoringError, SpecError, UnsupportedError
from rm_plugins.protocols.discovery import get_mapping, listed_models, server_tokens
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
    in_order,
)
from rm_plugins.protocols.raw_logits import SaturatedError, judge, logit
from rm_plugins.protocols.request_ids import check_request_id
from rm_plugins.protocols.values import output_of_label
from rm_plugins.samples import RenderedSample, Sample

Version: TypeAlias = tuple[int, ...]

NEWEST: Version = (1 << 20,)
"""Stands for servers whose version is not known, and for those that follow the newest vLLM."""

# What was read in the sources of the versions on both sides of each bound.
ACTIVATION_FIELD: Version = (0, 10, 1)  # the first where a request says whether the activation is applied
USE_ACTIVATION_FIELD: Version = (0, 11, 1)  # the first where this field is called `use_activation`, and `/pooling` has it
ADD_SPECIAL_TOKENS_FIELD: Version = (0, 11, 1)  # the first whose `/classify` can leave special tokens out
TOKEN_IDS: Version = (0, 15)  # the first whose `/classify` takes token ids
BROKEN_HEADS: tuple[Version, Version] = ((0, 14), (0, 31))  # BERT's and ModernBERT's lose part of the head with the activation

_NAME_ONE = ": the model has several classes. Name one, `protocol: {name: vllm, label: NUMBER}`"

PROBES = (("What is two and two?", "Four."), ("Name a colour.", "The rain in the sea is blue."), ("Yes?", "No."))
"""Prompts and completions that are scored to see what a server's raw logits are worth."""


class VLLM(Protocol):
    """The endpoints of ``vllm serve MODEL --runner pooling --convert classify``, from vLLM 0.10.1 to 0.33.0.

    By default, vLLM answers a sigmoid of the reward. It is asked for the logit, by the field that its version has for that: a field
    that a version does not know is ignored there, and sigmoids come back with a status of 200. Where the version is not known, and
    where it is one that loses part of some encoders' heads along with the activation (0.14 to 0.30), a few texts are scored
    both ways first, to see that the logits are those that the sigmoids are made of. Where an encoder's are not, the logits of the
    sigmoids are taken: they are right to 1e-4 up to a reward of 7.4, beyond which an item fails.

    Token ids are sent where there are any, and nothing is truncated: what is too long is an error. Pairs with token types go to
    ``/score``, whatever the endpoint. There vLLM drops an empty second text (seen on 0.32.0): such a pair is refused, unless the
    model's tokenizer is known to add no special tokens, without which nothing differs.

    Args:
        endpoint: What is asked: ``classify``, ``pooling``, or ``score``, which is for cross-encoders: prompts are its queries and
            completions its documents, put together as ``tokenizer(prompt, completion)`` has them; that closes no text of a decoder.
        model: The name of the model or of the LoRA adapter; the server's own model by default.
        label: Which of a model's several outputs is the reward, counted from 0. Needed where there are several.
        activation: ``off`` for logits; ``sigmoid`` for the logits of the sigmoids that the server gives, from a version that has no right
            logits; ``server`` to take what the server gives, such as from a version that cannot be asked for logits and a model that has
            none to switch off (``problem_type: regression`` in its configuration).

    Raises:
        SpecError: `label` is negative, or there is one for ``score``.
    """

    name: ClassVar[str] = "vllm"
    sent_as: ClassVar[tuple[str, ...]] = ("token ids", "text", "pairs")
    reads: ClassVar[Reads | None] = "last"
    """Seen on vLLM 0.32.0, with ``pad == eos`` as well: its pooler takes the last position of each sequence
    (``vllm/model_executor/layers/pooler/seqwise/methods.py``)."""
    if_absent: ClassVar[str] = (
        "Serve the model for scoring, `vllm serve MODEL --runner pooling --convert classify`; leave `model` out, or name one that "
        "GET /v1/models lists."
    )

    def __init__(
        self,
        *,
        endpoint: Literal["classify", "pooling", "score"] = "classify",
        model: str | None = None,
        label: int | None = None,
        activation: Literal["off", "sigmoid", "server"] = "off",
    ) -> None:
        if label is not None and label < 0:
            raise SpecError(f"outputs are counted from 0; got {label}.", key="label")
        if label is not None and endpoint == "score":
            raise SpecError("`endpoint: score` has one number for each pair; leave the label out.", key="label")
        self.endpoint = endpoint
        self.model = model
        self.label = label
        self.activation = activation
        self._adds_special_tokens = False

    @property
    def takes_only_pairs(self) -> bool:  # type: ignore[override]  # of its endpoint
        """Whether it is asked at /score in any case."""
        return self.endpoint == "score"

    @property
    def server_adds_special_tokens(self) -> bool:  # type: ignore[override]  # of the version that was found
        """Whether the server cannot be told to leave them out."""
        return self._adds_special_tokens

    async def detect(self, ask: Ask) -> str | None:
        """What ``GET /version`` and ``GET /v1/models`` say."""
        version = await get_mapping(ask, "/version")
        if version is None or "server" in version or not isinstance(version.get("version"), str):
            return None
        model = await _model(ask)
        return None if model is None else f"vLLM {version['version']} with {model}"

    async def prepare(self, ask: Ask) -> ServerFacts:
        """Ask for the version, and choose by it how logits are asked for.

        Raises:
            UnsupportedError: This version has no logits, or what it gives for them is none.
        """
        told = await get_mapping(ask, "/version") or {}
        written = told.get("version") if isinstance(told.get("version"), str) else None
        version = NEWEST if str(told.get("server")).startswith("rm-plugins") else _release(written)
        description = f"{told.get('server', 'vLLM')} {written or '(version unknown)'}"
        field = self._field(version or NEWEST, description)
        facts: dict[str, Any] = {
            "version": version or NEWEST,
            "field": field,
            "activation": False,
            "logit": self.activation == "sigmoid",
        }
        model = self.model or await _model(ask)
        spoken = copy.copy(self)  # the servers of one spec may be of several versions
        spoken._adds_special_tokens = self.endpoint == "classify" and (version or NEWEST) < ADD_SPECIAL_TOKENS_FIELD
        added = await server_tokens(ask, lambda text: {"prompt": text}, lambda answer: answer["tokens"])
        facts["adds"] = added.adds
        server = ServerFacts(
            spoken,
            f"{description} with {model}" if model else description,
            facts=facts,
            closes_texts=added.closes,
            tokens_of_probe=added.of_probe,
        )
        if field is not None and (version is None or BROKEN_HEADS[0] <= version < BROKEN_HEADS[1]):
            facts |= await self._proven(ask, server, known=version is not None)
        return server

    def request(self, items: Sequence[Item], server: ServerFacts, request_id: str) -> Request:
        """The items as token ids, as texts, or as pairs."""
        body: dict[str, Any] = {} if self.model is None else {"model": self.model}
        if server.facts["field"] is not None:
            body[server.facts["field"]] = server.facts["activation"]
        if self._endpoint(items) == "score":
            pairs = [_pair(item, server) for item in items]
            # By the names that every version takes.
            return Request("/score", {**body, "text_1": [pair[0] for pair in pairs], "text_2": [pair[1] for pair in pairs]})
        if self.endpoint == "pooling":
            body |= {"task": "classify", "encoding_format": "float"}
        return Request(f"/{self.endpoint}", {**body, **self._input(items, server)})

    def answer(self, response: Response, items: Sequence[Item], server: ServerFacts, request_id: str) -> Answer:
        """One output of each item."""
        outputs = self._outputs(response, len(items), self._endpoint(items), request_id)
        if server.facts["logit"] and any(len(row_outputs) > 1 for row_outputs in outputs):
            raise UnsupportedError("the model has several outputs, and of these no sigmoids; leave `activation: sigmoid` out")
        named = [output_of_label(row_outputs, self.label, f"data[{row}]", _NAME_ONE) for row, row_outputs in enumerate(outputs)]
        return self._logits(named, server) if server.facts["logit"] else Answer(named)

    def failure(self, response: Response, items: int) -> Failure:
        """A model without the endpoint stays so, while a request that is still running under the same id will have ended."""
        if "already running" in self.message(response):
            return "retry"
        if response.status == 501 or (response.status == 400 and _is_of_the_model(self.message(response))):
            return "refused"
        return super().failure(response, items)

    def _endpoint(self, items: Sequence[Item]) -> str:
        """Where the items are sent: pairs that no single text and no token ids stand for go to ``/score``."""
        needy = {item.pair is not None and item.token_ids is None for item in items}
        if len(needy) > 1:
            raise DataError("A pair was mixed with single texts, and a request to vLLM has either. Score them apart.")
        if True not in needy or self.endpoint == "score":
            return self.endpoint
        if self.label is not None:
            raise DataError(
                "The model takes prompt and completion as a pair with token types, which vLLM takes at /score alone; that has one number "
                "for each pair. Leave the label out."
            )
        return "score"

    def _logits(self, probabilities: Sequence[float], server: ServerFacts) -> Answer:
        """The logits of sigmoids, or why there is none any more."""
        values: list[float | None] = []
        errors: dict[int, str] = {}
        for row, probability in enumerate(probabilities):
            try:
                values.append(logit(probability, f"the probability of item {row}", row))
            except SaturatedError as error:
                values.append(None)
                errors[row] = (
                    f"{error}. {server.description} gives no right logit of this model otherwise; upgrade it to 0.31 or later"
                )
        return Answer(values, errors=errors)

    def _field(self, version: Version, description: str) -> str | None:
        """The field that switches the activation off."""
        if self.activation != "off":
            return None
        if version >= USE_ACTIVATION_FIELD:
            return "use_activation"
        # Never both: the versions that have both names take `activation: false` for true, and it wins.
        if version >= ACTIVATION_FIELD and self.endpoint != "pooling":
            return "activation"
        first = ".".join(map(str, USE_ACTIVATION_FIELD if self.endpoint == "pooling" else ACTIVATION_FIELD))
        raise UnsupportedError(
            f"{description} cannot be asked for logits at /{self.endpoint}: what it gives went through the model's activation, a sigmoid "
            f"for most. Upgrade it to {first} or later; or take the logits of the sigmoids, "
            "`protocol: {name: vllm, activation: sigmoid}`; or, if the model has no activation (`problem_type: regression` in its "
            "configuration), what it gives, `activation: server`."
        )

    def _input(self, items: Sequence[Item], server: ServerFacts) -> dict[str, Any]:
        ids = [list(item.token_ids) for item in items if item.token_ids is not None]
        if len(ids) == len(items) and (self.endpoint == "pooling" or server.facts["version"] >= TOKEN_IDS):
            return {"input": ids}
        wanted = {self._wants_special_tokens(item) for item in items}
        if self.server_adds_special_tokens and False in wanted:
            raise DataError(
                f"{server.description} adds the model's special tokens to every text, and this one has them already. Upgrade it to 0.11.1 "
                "or later; or name the model's tokenizer in the spec of the remote provider, `tokenizer: FOLDER_OR_ID`, for a text "
                "without them to be found."
            )
        if len(wanted) > 1:
            raise DataError(
                "A text that has its special tokens was mixed with others, and a request to vLLM adds them to all texts or to none. Score "
                "them apart."
            )
        return {"input": [item.needed_text for item in items], "add_special_tokens": True in wanted}

    def _wants_special_tokens(self, item: Item) -> bool:
        if item.token_ids is not None:  # its text was chosen for what the server does
            return self.server_adds_special_tokens
        return not isinstance(item.sample, RenderedSample) or item.sample.add_special_tokens

    def _outputs(self, response: Response, size: int, endpoint: str, request_id: str = "") -> list[list[float]]:
        """What the model gives for each item, [N, classes]; its id ends with what was sent as ``X-Request-ID``."""
        answer = response.json()
        if not isinstance(answer, Mapping) or answer.get("object") != "list":
            raise AnswerError(f"the answer is {answer!r:.80}; a mapping with object 'list' and 'data' was expected")
        check_request_id(answer.get("id"), request_id)
        entries = in_order(answer.get("data"), size, "data")
        return [self._entry(entry, row, endpoint) for row, entry in enumerate(entries)]

    def _entry(self, entry: Mapping[str, Any], row: int, endpoint: str) -> list[float]:
        if endpoint != "classify" and entry.get("object") != endpoint:
            raise UnsupportedError(
                f"data[{row}] is a {entry.get('object')!r}; a {endpoint!r} was expected. Have /{endpoint} lead to vLLM's own"
            )
        if endpoint == "score":
            return [finite(entry.get("score"), f"data[{row}].score", row=row)]
        key = "probs" if endpoint == "classify" else "data"
        values = entry.get(key)
        if not isinstance(values, list) or not values:
            raise AnswerError(f"data[{row}].{key} is {values!r:.80}; a list of numbers was expected", rows=[row])
        if isinstance(values[0], list):
            raise UnsupportedError(
                f"data[{row}].data has an output for each of {len(values)} tokens: the server runs the task token_classify, and a reward "
                "is one number for a text; serve the model with `--pooler-config.task classify`"
            )
        if endpoint == "classify" and entry.get("num_classes") != len(values):
            raise AnswerError(f"data[{row}] has {len(values)} probs for num_classes {entry.get('num_classes')!r}", rows=[row])
        return [finite(value, f"data[{row}].{key}[{place}]", row=row) for place, value in enumerate(values)]

    async def _proven(self, ask: Ask, server: ServerFacts, *, known: bool) -> dict[str, Any]:
        """Have a few texts scored with the activation and without, and choose which of both answers give the reward.

        Raises:
            UnsupportedError: Neither does.
            ScoringError: There is no answer.
        """
        items = [Item(Sample(prompt, completion), prompt + completion) for prompt, completion in PROBES]
        off = server.protocol.request(items, server, "probe")
        on = Request(off.path, {**off.body, server.facts["field"]: True})
        outputs = []
        for request in (off, on):
            response = await ask(request)
            if not 200 <= response.status < 300:
                lasts = self.failure(response, len(items)) in ("refused", "rejected")
                message = f"POST {request.path} answered {response.status}: {self.message(response)}"
                if response.status in (404, 405):
                    message = f"{message.rstrip('.')}. {self.if_absent}"
                raise UnsupportedError(message) if lasts else ScoringError(message)
            outputs.append(self._outputs(response, len(items), self.endpoint))
        exact = server.closes_texts is not False  # the heads that are lost are BERT's and ModernBERT's, whose texts are closed
        verdict = judge(*outputs, exact=exact)
        example = f"{outputs[0][0]!r:.60} without and {outputs[1][0]!r:.60} with the activation"
        match verdict:
            case "raw":
                return {}
            case "sigmoid":
                return {"activation": True, "logit": True}
            case "activated":
                return {"activation": True}
            case "equal" if known:  # the version knows the field, so there is nothing to switch off
                return {"activation": exact}
            case "equal":
                raise UnsupportedError(
                    f"Whether {server.description} gives logits or sigmoids cannot be told: {example}. If the model has no activation "
                    "(`problem_type: regression`), take what it gives, `protocol: {name: vllm, activation: server}`; else upgrade the "
                    "server."
                )
            case "half":
                raise UnsupportedError(
                    f"Whether the logits of {server.description} have all of the model's head cannot be told in half precision: {example}. "
                    "Upgrade it to 0.31 or later, or have it compute the head in single precision, as it does by default."
                )
        raise UnsupportedError(
            f"The logits of {server.description} are not those that its probabilities are made of: {example}. vLLM 0.14 to 0.30 leaves "
            "part of a BERT or ModernBERT head out with the activation: upgrade it to 0.31 or later, or take the logits of its sigmoids, "
            "`protocol: {name: vllm, activation: sigmoid}`. If the model has no activation, or one of its own, take what the server gives, "
            "`activation: server`."
        )


def _pair(item: Item, server: ServerFacts) -> tuple[str, str]:
    """The two texts of an item.

    Raises:
        DataError: There are none; or vLLM would encode them as one.
    """
    pair = item.text_pair("score", "classify")
    if not pair[1] and server.facts.get("adds") is not False:
        raise DataError(
            "The completion is empty, and vLLM drops an empty second text: it would score the prompt alone, without the separator behind "
            "it that the model's own pair has, which is another number. Leave the sample out, or give it a completion; or serve the model "
            "with text-embeddings-inference (`protocol: tei`) or `rm-plugins serve` (`protocol: rm-plugins`), which keep the empty text."
        )
    return pair


async def _model(ask: Ask) -> str | None:
    """The first model that a vLLM lists: its base model."""
    match await listed_models(ask):
        case [{"id": str(model), "owned_by": "vllm"}, *_]:
            return model
    return None


def _release(version: str | None) -> Version | None:
    """The numbers of a released version; None for any other, which may be of any state."""
    match = re.fullmatch(r"(\d+(?:\.\d+)+)(?:\.post\d+)?(?:\+[\w.]+)?", version or "")
    return None if match is None else tuple(map(int, match[1].split(".")))


def _is_of_the_model(message: str) -> bool:
    return "The model does not support" in message or "Unsupported task" in message or "pooler-config.task" in message
