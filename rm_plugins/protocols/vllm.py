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
"""Used for servers of unknown version, and for those that are compatible with the newest vLLM."""

# Checked in the sources of the versions on both sides of each bound.
ACTIVATION_FIELD: Version = (0, 10, 1)  # the first version with a request field that switches the activation
USE_ACTIVATION_FIELD: Version = (0, 11, 1)  # the first version that calls this field `use_activation`, and has it at `/pooling`
ADD_SPECIAL_TOKENS_FIELD: Version = (0, 11, 1)  # the first version whose `/classify` can omit special tokens
TOKEN_IDS: Version = (0, 15)  # the first version whose `/classify` takes token ids
BROKEN_HEADS: tuple[Version, Version] = ((0, 14), (0, 31))  # without the activation, BERT and ModernBERT lose part of the head

_NAME_ONE = ": the model has several classes. Name one, `protocol: {name: vllm, label: NUMBER}`"

PROBES = (("What is two and two?", "Four."), ("Name a colour.", "The rain in the sea is blue."), ("Yes?", "No."))
"""Prompts and completions that are scored to check a server's raw logits."""


class VLLM(Protocol):
    """The endpoints of ``vllm serve MODEL --runner pooling --convert classify``, from vLLM 0.10.1 to 0.33.0.

    By default, vLLM returns the sigmoid of the reward. The logit is requested with the field that the server's version has for it; a
    version ignores a field that it does not know, and returns sigmoids with status 200. With the activation off, versions 0.14 to 0.30 lose
    part of some encoders' heads. For these and for unknown versions, a few texts are first scored both ways to check that the logits match
    the sigmoids. If an encoder's do not, logits are computed from the sigmoids: they are accurate to 1e-4 up to a reward of 7.4,
    beyond which an item fails.

    Token ids are sent if there are any. Nothing is truncated: a row that is too long is an error. Pairs with token types are sent to
    ``/score`` for every endpoint. There vLLM drops an empty second text (checked on 0.32.0), so such a pair is refused unless the
    model's tokenizer is known to add no special tokens, in which case the result is the same.

    Args:
        endpoint: ``classify``, ``pooling``, or ``score``, which is for cross-encoders: prompts are sent as queries and completions as
            documents, and the server joins them like ``tokenizer(prompt, completion)``, which adds no EOS for a decoder.
        model: The name of the model or of the LoRA adapter; by default the server's own model.
        label: Which of a model's several outputs is the reward, counted from 0. Required if there are several.
        activation: ``off`` requests logits. ``sigmoid`` computes logits from the server's sigmoids, for a version without right logits.
            ``server`` takes the server's outputs unchanged, for example for a version that cannot return logits and a model without an
            activation (``problem_type: regression`` in its configuration).

    Raises:
        SpecError: `label` is negative, or set for ``score``.
    """

    name: ClassVar[str] = "vllm"
    sent_as: ClassVar[tuple[str, ...]] = ("token ids", "text", "pairs")
    reads: ClassVar[Reads | None] = "last"
    """Checked on vLLM 0.32.0, also with ``pad == eos``: its pooler takes the last position of each sequence
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
            raise SpecError("`endpoint: score` gives one score per pair; leave `label` out.", key="label")
        self.endpoint = endpoint
        self.model = model
        self.label = label
        self.activation = activation
        self._adds_special_tokens = False

    @property
    def takes_only_pairs(self) -> bool:  # type: ignore[override]  # depends on the endpoint
        """Whether the endpoint is ``/score``."""
        return self.endpoint == "score"

    @property
    def server_adds_special_tokens(self) -> bool:  # type: ignore[override]  # depends on the server's version
        """Whether the server always adds special tokens."""
        return self._adds_special_tokens

    async def detect(self, ask: Ask) -> str | None:
        """Recognize the server by ``GET /version`` and ``GET /v1/models``."""
        version = await get_mapping(ask, "/version")
        if version is None or "server" in version or not isinstance(version.get("version"), str):
            return None
        model = await _model(ask)
        return None if model is None else f"vLLM {version['version']} with {model}"

    async def prepare(self, ask: Ask) -> ServerFacts:
        """Ask for the version, which decides how logits are requested.

        Raises:
            UnsupportedError: This version does not return logits, or those that it returns are wrong.
        """
        info = await get_mapping(ask, "/version") or {}
        written = info.get("version") if isinstance(info.get("version"), str) else None
        version = NEWEST if str(info.get("server")).startswith("rm-plugins") else _release(written)
        description = f"{info.get('server', 'vLLM')} {written or '(version unknown)'}"
        field = self._field(version or NEWEST, description)
        facts: dict[str, Any] = {
            "version": version or NEWEST,
            "field": field,
            "activation": False,
            "logit": self.activation == "sigmoid",
        }
        model = self.model or await _model(ask)
        prepared = copy.copy(self)  # one for each server, because the servers of a spec may have different versions
        prepared._adds_special_tokens = self.endpoint == "classify" and (version or NEWEST) < ADD_SPECIAL_TOKENS_FIELD
        tokens = await server_tokens(ask, lambda text: {"prompt": text}, lambda answer: answer["tokens"])
        facts["adds"] = tokens.adds
        server = ServerFacts(
            prepared,
            f"{description} with {model}" if model else description,
            facts=facts,
            closes_texts=tokens.closes,
            tokens_of_probe=tokens.of_probe,
        )
        if field is not None and (version is None or BROKEN_HEADS[0] <= version < BROKEN_HEADS[1]):
            facts |= await self._checked_activation(ask, server, known=version is not None)
        return server

    def request(self, items: Sequence[Item], server: ServerFacts, request_id: str) -> Request:
        """The items as token ids, as texts, or as pairs."""
        body: dict[str, Any] = {} if self.model is None else {"model": self.model}
        if server.facts["field"] is not None:
            body[server.facts["field"]] = server.facts["activation"]
        if self._endpoint(items) == "score":
            pairs = [_pair(item, server) for item in items]
            # These names of the fields work in every version.
            return Request("/score", {**body, "text_1": [pair[0] for pair in pairs], "text_2": [pair[1] for pair in pairs]})
        if self.endpoint == "pooling":
            body |= {"task": "classify", "encoding_format": "float"}
        return Request(f"/{self.endpoint}", {**body, **self._input(items, server)})

    def answer(self, response: Response, items: Sequence[Item], server: ServerFacts, request_id: str) -> Answer:
        """One output of each item."""
        outputs = self._outputs(response, len(items), self._endpoint(items), request_id)
        if server.facts["logit"] and any(len(row_outputs) > 1 for row_outputs in outputs):
            raise UnsupportedError(
                "the model has several outputs, so its activation is not a sigmoid; leave `activation: sigmoid` out"
            )
        chosen = [
            output_of_label(row_outputs, self.label, f"data[{row}]", _NAME_ONE) for row, row_outputs in enumerate(outputs)
        ]
        return self._logits(chosen, server) if server.facts["logit"] else Answer(chosen)

    def failure(self, response: Response, items: int) -> Failure:
        """What an error status means; a missing endpoint is permanent, but a request that is still running under the same id will end."""
        if "already running" in self.message(response):
            return "retry"
        if response.status == 501 or (response.status == 400 and _is_of_the_model(self.message(response))):
            return "refused"
        return super().failure(response, items)

    def _endpoint(self, items: Sequence[Item]) -> str:
        """The endpoint for the items: pairs that have no token ids go to ``/score``."""
        are_pairs = {item.pair is not None and item.token_ids is None for item in items}
        if len(are_pairs) > 1:
            raise DataError(
                "A batch mixes pairs and single texts, but a request to vLLM takes only one kind. Score them separately."
            )
        if True not in are_pairs or self.endpoint == "score":
            return self.endpoint
        if self.label is not None:
            raise DataError(
                "The model takes prompt and completion as a pair with token types, which vLLM accepts only at /score; that endpoint gives "
                "one score per pair. Leave `label` out."
            )
        return "score"

    def _logits(self, probabilities: Sequence[float], server: ServerFacts) -> Answer:
        """The logits of sigmoids, or an error where the sigmoid is saturated."""
        values: list[float | None] = []
        errors: dict[int, str] = {}
        for row, probability in enumerate(probabilities):
            try:
                values.append(logit(probability, f"the probability of item {row}", row))
            except SaturatedError as error:
                values.append(None)
                errors[row] = (
                    f"{error}. {server.description} cannot return the right logits of this model; upgrade it to 0.31 or later"
                )
        return Answer(values, errors=errors)

    def _field(self, version: Version, description: str) -> str | None:
        """The request field that switches the activation off; None if it is not to be switched off."""
        if self.activation != "off":
            return None
        if version >= USE_ACTIVATION_FIELD:
            return "use_activation"
        # Never send both: versions that have both names read `activation: false` as true, and it takes precedence.
        if version >= ACTIVATION_FIELD and self.endpoint != "pooling":
            return "activation"
        first = ".".join(map(str, USE_ACTIVATION_FIELD if self.endpoint == "pooling" else ACTIVATION_FIELD))
        raise UnsupportedError(
            f"{description} cannot return logits at /{self.endpoint}: it always applies the model's activation, usually a sigmoid. Upgrade "
            f"it to {first} or later, or compute logits from the sigmoids, `protocol: {{name: vllm, activation: sigmoid}}`. If the model "
            "has no activation (`problem_type: regression` in its configuration), take the server's outputs, `activation: server`."
        )

    def _input(self, items: Sequence[Item], server: ServerFacts) -> dict[str, Any]:
        ids = [list(item.token_ids) for item in items if item.token_ids is not None]
        if len(ids) == len(items) and (self.endpoint == "pooling" or server.facts["version"] >= TOKEN_IDS):
            return {"input": ids}
        wanted = {self._wants_special_tokens(item) for item in items}
        if self.server_adds_special_tokens and False in wanted:
            raise DataError(
                f"{server.description} adds the model's special tokens to every text, but this one already has them. Upgrade it to 0.11.1 "
                "or later; or name the model's tokenizer in the spec of the remote provider, `tokenizer: FOLDER_OR_ID`, so that a text "
                "without them can be sent."
            )
        if len(wanted) > 1:
            raise DataError(
                "A batch mixes texts with and without special tokens, but a request to vLLM adds them to all texts or to none. Score them "
                "separately."
            )
        return {"input": [item.needed_text for item in items], "add_special_tokens": True in wanted}

    def _wants_special_tokens(self, item: Item) -> bool:
        if item.token_ids is not None:  # its text was chosen to match `server_adds_special_tokens`
            return self.server_adds_special_tokens
        return not isinstance(item.sample, RenderedSample) or item.sample.add_special_tokens

    def _outputs(self, response: Response, size: int, endpoint: str, request_id: str = "") -> list[list[float]]:
        """The model's outputs for each item, [N, classes]; the answer's id contains the ``X-Request-ID`` that was sent."""
        answer = response.json()
        if not isinstance(answer, Mapping) or answer.get("object") != "list":
            raise AnswerError(f"the answer is {answer!r:.80}; a mapping with object 'list' and 'data' was expected")
        check_request_id(answer.get("id"), request_id)
        entries = in_order(answer.get("data"), size, "data")
        return [self._entry(entry, row, endpoint) for row, entry in enumerate(entries)]

    def _entry(self, entry: Mapping[str, Any], row: int, endpoint: str) -> list[float]:
        if endpoint != "classify" and entry.get("object") != endpoint:
            raise UnsupportedError(
                f"data[{row}] is a {entry.get('object')!r}; a {endpoint!r} was expected. Route /{endpoint} to vLLM's endpoint of this name"
            )
        if endpoint == "score":
            return [finite(entry.get("score"), f"data[{row}].score", row=row)]
        key = "probs" if endpoint == "classify" else "data"
        values = entry.get(key)
        if not isinstance(values, list) or not values:
            raise AnswerError(f"data[{row}].{key} is {values!r:.80}; a list of numbers was expected", rows=[row])
        if isinstance(values[0], list):
            raise UnsupportedError(
                f"data[{row}].data has an output for each of {len(values)} tokens: the server runs the task token_classify, but a reward "
                "is one number per text. Serve the model with `--pooler-config.task classify`"
            )
        if endpoint == "classify" and entry.get("num_classes") != len(values):
            raise AnswerError(
                f"data[{row}] has {len(values)} probs, but num_classes is {entry.get('num_classes')!r}", rows=[row]
            )
        return [finite(value, f"data[{row}].{key}[{place}]", row=row) for place, value in enumerate(values)]

    async def _checked_activation(self, ask: Ask, server: ServerFacts, *, known: bool) -> dict[str, Any]:
        """Score a few texts with and without the activation, and choose which of the answers gives the reward.

        Raises:
            UnsupportedError: Neither does.
            ScoringError: The server does not answer.
        """
        items = [Item(Sample(prompt, completion), prompt + completion) for prompt, completion in PROBES]
        off = server.protocol.request(items, server, "probe")
        on = Request(off.path, {**off.body, server.facts["field"]: True})
        outputs = []
        for request in (off, on):
            response = await ask(request)
            if not 200 <= response.status < 300:
                is_permanent = self.failure(response, len(items)) in ("refused", "rejected")
                message = f"POST {request.path} answered {response.status}: {self.message(response)}"
                if response.status in (404, 405):
                    message = f"{message.rstrip('.')}. {self.if_absent}"
                raise UnsupportedError(message) if is_permanent else ScoringError(message)
            outputs.append(self._outputs(response, len(items), self.endpoint))
        exact = (
            server.closes_texts is not False
        )  # only BERT and ModernBERT lose part of the head, and their tokenizers close texts
        verdict = judge(*outputs, exact=exact)
        example = f"{outputs[0][0]!r:.60} without and {outputs[1][0]!r:.60} with the activation"
        match verdict:
            case "raw":
                return {}
            case "sigmoid":
                return {"activation": True, "logit": True}
            case "activated":
                return {"activation": True}
            case "equal" if known:  # the version knows the field, so the model has no activation
                return {"activation": exact}
            case "equal":
                raise UnsupportedError(
                    f"It is unclear whether {server.description} returns logits or sigmoids: {example}. If the model has no activation "
                    "(`problem_type: regression`), take the server's outputs, `protocol: {name: vllm, activation: server}`; otherwise "
                    "upgrade the server."
                )
            case "half":
                raise UnsupportedError(
                    f"In half precision, it cannot be checked that the logits of {server.description} use the model's whole head: "
                    f"{example}. Upgrade it to 0.31 or later, or let it compute the head in single precision, its default."
                )
        raise UnsupportedError(
            f"The logits of {server.description} do not match its probabilities: {example}. With the activation off, vLLM 0.14 to 0.30 "
            "omits part of a BERT or ModernBERT head: upgrade it to 0.31 or later, or compute logits from its sigmoids, "
            "`protocol: {name: vllm, activation: sigmoid}`. If the model has no activation or a custom one, take the server's outputs, "
            "`activation: server`."
        )


def _pair(item: Item, server: ServerFacts) -> tuple[str, str]:
    """The two texts of an item.

    Raises:
        DataError: It is not a pair of texts, or vLLM would encode the pair as one text.
    """
    pair = item.text_pair("score", "classify")
    if not pair[1] and server.facts.get("adds") is not False:
        raise DataError(
            "The completion is empty, and vLLM drops an empty second text: it would score the prompt without the final separator of the "
            "model's own pair, which gives another score. Leave the sample out, or give it a completion; or serve the model with "
            "text-embeddings-inference (`protocol: tei`) or `rm-plugins serve` (`protocol: rm-plugins`), which keep the empty text."
        )
    return pair


async def _model(ask: Ask) -> str | None:
    """The first model that a vLLM server lists, which is its base model."""
    match await listed_models(ask):
        case [{"id": str(model), "owned_by": "vllm"}, *_]:
            return model
    return None


def _release(version: str | None) -> Version | None:
    """The numbers of a released version; None for any other version, such as a development build."""
    match = re.fullmatch(r"(\d+(?:\.\d+)+)(?:\.post\d+)?(?:\+[\w.]+)?", version or "")
    return None if match is None else tuple(map(int, match[1].split(".")))


def _is_of_the_model(message: str) -> bool:
    return "The model does not support" in message or "Unsupported task" in message or "pooler-config.task" in message
