"""text-embeddings-inference (TEI)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

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
    in_order,
)
from rm_plugins.samples import RenderedSample


class TEI(Protocol):
    """``POST /predict`` and ``POST /rerank`` of text-embeddings-inference, as TEI 1.9.3 answers them, with raw scores.

    The server takes only texts or pairs of texts, and always adds the model's special tokens. It calls every model with one output a
    reranker, whether the model was trained on pairs or not.

    Args:
        endpoint: ``predict`` scores texts or, if the model takes pairs, pairs; ``rerank`` scores only pairs, with the prompt as query and
            the completion as text, one sample per request.
        label: The name of the class whose score is the reward. Required if the model has several.
        truncate: Whether the server truncates rows that are too long; otherwise these are errors.

    Raises:
        SpecError: `label` is set for ``rerank``, whose models have one class.
    """

    name: ClassVar[str] = "tei"
    sent_as: ClassVar[tuple[str, ...]] = ("text", "pairs")
    reads: ClassVar[Reads | None] = "before-padding"
    """From the source of 1.9.3: only its Python backend classifies with decoders, using the model of transformers
    (``backends/python/server/text_embeddings_server/models/classification_model.py``)."""
    if_absent: ClassVar[str] = "Give the root of text-embeddings-inference as the URL."
    default_max_items: ClassVar[int] = 32
    server_adds_special_tokens: ClassVar[bool] = True

    def __init__(
        self, *, endpoint: Literal["predict", "rerank"] = "predict", label: str | None = None, truncate: bool = False
    ) -> None:
        if label is not None and endpoint == "rerank":
            raise SpecError("`endpoint: rerank` gives one score per text; leave `label` out.", key="label")
        self.endpoint = endpoint
        self.label = label
        self.truncate = truncate

    @property
    def takes_only_pairs(self) -> bool:  # type: ignore[override]  # depends on the endpoint
        """Whether the endpoint is ``/rerank``."""
        return self.endpoint == "rerank"

    @property
    def batches(self) -> bool:  # type: ignore[override]  # depends on the endpoint
        """Whether a request may carry several items; ``/rerank`` takes a single query."""
        return self.endpoint == "predict"

    async def detect(self, ask: Ask) -> str | None:
        """Recognize the server by ``GET /info``."""
        info = await get_mapping(ask, "/info")
        if info is None or "server" in info or not {"model_id", "model_type", "max_client_batch_size"} <= set(info):
            return None
        return _description(info)

    async def prepare(self, ask: Ask) -> ServerFacts:
        """Ask for the kind of the model, its classes, and the largest number of items in a request.

        Raises:
            UnsupportedError: The model gives no scores, or several of which `label` chooses none.
        """
        info = await required_mapping(ask, "/info", self)
        kind, labels = _kind(info.get("model_type"))
        description = _description(info)
        if kind not in ("classifier", "reranker"):
            raise UnsupportedError(
                f"{description} serves a model of the kind {kind!r}, which gives no score. Serve a sequence classifier."
            )
        if self.endpoint == "rerank" and kind != "reranker":
            raise UnsupportedError(
                f"{description} serves a classifier with several classes, with which TEI does not rerank. Use `endpoint: predict` and name "
                f"a label: {', '.join(labels)}."
            )
        if self.endpoint == "predict" and labels:
            self._check_label(labels, description)
        most = info.get("max_client_batch_size")
        tokens = await server_tokens(ask, lambda text: {"inputs": [text]}, _ids)
        return ServerFacts(
            self,
            description,
            most if type(most) is int and most > 0 else None,
            closes_texts=tokens.closes,
            tokens_of_probe=tokens.of_probe,
        )

    def request(self, items: Sequence[Item], server: ServerFacts, request_id: str) -> Request:
        """A batch of texts and pairs, or one pair."""
        settings = {"raw_scores": True, "truncate": self.truncate}  # the server's defaults are sigmoids and truncation
        if self.endpoint == "rerank":
            (item,) = items
            query, text = item.text_pair("rerank", "predict")
            return Request("/rerank", {"query": query, "texts": [text], **settings})
        if any(
            isinstance(item.sample, RenderedSample) and not item.sample.add_special_tokens and item.token_ids is None
            for item in items
        ):
            raise DataError(
                "TEI adds the model's special tokens to every text, but this one already has them. Name the model's tokenizer in the spec "
                "of the remote provider, `tokenizer: FOLDER_OR_ID`, so that a text without them can be sent."
            )
        inputs = [
            [item.needed_text] if item.pair is None else [*item.pair] for item in items
        ]  # each in a list, because ["a", "b"] would be one pair
        return Request("/predict", {"inputs": inputs, **settings})

    def answer(self, response: Response, items: Sequence[Item], server: ServerFacts, request_id: str) -> Answer:
        """The score of the chosen class, by its name, because TEI sorts classes by score."""
        answer = response.json()
        if self.endpoint == "rerank":
            ranked = in_order(answer, len(items), "the answer")
            return Answer([finite(entry.get("score"), f"the score of item {row}", row=row) for row, entry in enumerate(ranked)])
        if not isinstance(answer, list) or len(answer) != len(items):
            raise AnswerError(f"the answer is {answer!r:.80}; a list of {len(items)} lists was expected")
        return Answer([self._score(classes, row) for row, classes in enumerate(answer)])

    def failure(self, response: Response, items: int) -> Failure:
        """What an error status means; the message decides, because versions answer 413 or 422 to invalid input."""
        message = self.message(response)
        if "maximum allowed batch size" in message:
            return "too-large"
        if "is not a re-ranker" in message or "is not a classification model" in message:
            return "refused"
        if "score is NaN" in message or (response.status == 413 and b"error_type" in response.body):
            return "rejected"  # an item is too long; the error of a body that is too large is plain text
        return "retry" if response.status == 424 else super().failure(response, items)

    def _score(self, classes: object, row: int) -> float:
        if not isinstance(classes, list) or not classes or not all(isinstance(entry, Mapping) for entry in classes):
            raise AnswerError(
                f"the answer for item {row} is {classes!r:.80}; a list with 'score' and 'label' was expected", rows=[row]
            )
        labels = [str(entry.get("label")) for entry in classes]
        if self.label is None and len(classes) > 1:
            raise UnsupportedError(
                f"item {row} has scores for {', '.join(labels)}; `label` must choose one as the reward. {_NAME_ONE}"
            )
        if self.label is not None and labels.count(self.label) != 1:
            raise UnsupportedError(f"item {row} has scores for {', '.join(labels)}, but not exactly one for {self.label!r}")
        score = classes[0 if self.label is None else labels.index(self.label)].get("score")
        return finite(score, f"the score of item {row}", row=row)

    def _check_label(self, labels: Sequence[str], description: str) -> None:
        if self.label is None and len(labels) > 1:
            raise UnsupportedError(
                f"{description} has the classes {', '.join(labels)}; `label` must choose one as the reward. {_NAME_ONE}."
            )
        if self.label is not None and labels.count(self.label) != 1:
            raise UnsupportedError(
                f"{description} does not have exactly one class {self.label!r}; its classes are {', '.join(labels)}. {_NAME_ONE}."
            )


_NAME_ONE = "Name one, `protocol: {name: tei, label: NAME}`"


def _ids(answer: Any) -> list[Any]:
    """The token ids of ``POST /tokenize`` for one text, ``[[{"id": 1, ...}, ...]]``."""
    return [token["id"] for token in answer[0]]


def _description(info: Mapping[str, Any]) -> str:
    return f"TEI {info.get('version', '(version unknown)')} with {info.get('model_id')}"


def _kind(model_type: object) -> tuple[str, list[str]]:
    """The kind of a model and the names of its classes, from ``{"reranker": {"id2label": {"0": "LABEL_0"}, ...}}``."""
    match model_type:
        case {**kinds} if len(kinds) == 1:
            ((kind, facts),) = kinds.items()
            names = facts.get("id2label") if isinstance(facts, Mapping) else None
            return str(kind), [str(name) for name in names.values()] if isinstance(names, Mapping) else []
    return str(model_type), []
