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

    It takes text alone, single or in pairs, and always adds the special tokens of its model to it. A model with one output it calls
    a reranker, whether that was trained on pairs or not.

    Args:
        endpoint: What is asked: ``predict``, of a text or, where the model takes such, a pair; or ``rerank``, of pairs alone: the
            prompt is its query and the completion its text, one sample a request.
        label: The name of the class whose score is the reward. Needed where the model has several.
        truncate: Whether the server cuts off what is too long; else that is an error.

    Raises:
        SpecError: There is a label for ``rerank``, whose models have one class.
    """

    name: ClassVar[str] = "tei"
    sent_as: ClassVar[tuple[str, ...]] = ("text", "pairs")
    reads: ClassVar[Reads | None] = "before-padding"
    """Read in the source of 1.9.3: decoders are classified by its Python backend alone, with the model of transformers
    (``backends/python/server/text_embeddings_server/models/classification_model.py``)."""
    if_absent: ClassVar[str] = "Give the root of text-embeddings-inference as the URL."
    default_max_items: ClassVar[int] = 32
    server_adds_special_tokens: ClassVar[bool] = True

    def __init__(
        self, *, endpoint: Literal["predict", "rerank"] = "predict", label: str | None = None, truncate: bool = False
    ) -> None:
        if label is not None and endpoint == "rerank":
            raise SpecError("`endpoint: rerank` has one number for each text; leave the label out.", key="label")
        self.endpoint = endpoint
        self.label = label
        self.truncate = truncate

    @property
    def takes_only_pairs(self) -> bool:  # type: ignore[override]  # of its endpoint
        """Whether it is asked at /rerank."""
        return self.endpoint == "rerank"

    @property
    def batches(self) -> bool:  # type: ignore[override]  # of its endpoint
        """Not where a request has a single query."""
        return self.endpoint == "predict"

    async def detect(self, ask: Ask) -> str | None:
        """What ``GET /info`` says."""
        info = await get_mapping(ask, "/info")
        if info is None or "server" in info or not {"model_id", "model_type", "max_client_batch_size"} <= set(info):
            return None
        return _description(info)

    async def prepare(self, ask: Ask) -> ServerFacts:
        """Ask for the kind of the model, its classes, and the most items of a request.

        Raises:
            UnsupportedError: The model has no score, or several and none of them is named.
        """
        info = await required_mapping(ask, "/info", self)
        kind, labels = _kind(info.get("model_type"))
        description = _description(info)
        if kind not in ("classifier", "reranker"):
            raise UnsupportedError(
                f"{description} serves a model of the kind {kind!r}, which gives no score. A sequence classifier is needed."
            )
        if self.endpoint == "rerank" and kind != "reranker":
            raise UnsupportedError(
                f"{description} serves a classifier, which TEI does not rerank with. Use `endpoint: predict` and name a label: "
                f"{', '.join(labels)}."
            )
        if self.endpoint == "predict" and labels:
            self._check_label(labels, description)
        most = info.get("max_client_batch_size")
        added = await server_tokens(ask, lambda text: {"inputs": [text]}, _ids)
        return ServerFacts(
            self,
            description,
            most if type(most) is int and most > 0 else None,
            closes_texts=added.closes,
            tokens_of_probe=added.of_probe,
        )

    def request(self, items: Sequence[Item], server: ServerFacts, request_id: str) -> Request:
        """A batch of texts and pairs, or one pair."""
        settings = {"raw_scores": True, "truncate": self.truncate}  # by the server's own default, sigmoids and truncated texts
        if self.endpoint == "rerank":
            (item,) = items
            query, text = item.text_pair("rerank", "predict")
            return Request("/rerank", {"query": query, "texts": [text], **settings})
        if any(
            isinstance(item.sample, RenderedSample) and not item.sample.add_special_tokens and item.token_ids is None
            for item in items
        ):
            raise DataError(
                "TEI adds the model's special tokens to every text, and this one has them already. Name the model's tokenizer in the spec "
                "of the remote provider, `tokenizer: FOLDER_OR_ID`, for a text without them to be found."
            )
        inputs = [
            [item.needed_text] if item.pair is None else [*item.pair] for item in items
        ]  # ["a", "b"] by itself is one pair
        return Request("/predict", {"inputs": inputs, **settings})

    def answer(self, response: Response, items: Sequence[Item], server: ServerFacts, request_id: str) -> Answer:
        """The score of the one class that is asked for, by its name: classes come in the order of their scores."""
        answer = response.json()
        if self.endpoint == "rerank":
            ranked = in_order(answer, len(items), "the answer")
            return Answer([finite(entry.get("score"), f"the score of item {row}", row=row) for row, entry in enumerate(ranked)])
        if not isinstance(answer, list) or len(answer) != len(items):
            raise AnswerError(f"the answer is {answer!r:.80}; a list of {len(items)} lists was expected")
        return Answer([self._score(classes, row) for row, classes in enumerate(answer)])

    def failure(self, response: Response, items: int) -> Failure:
        """By what the message says: versions differ in their status for what is invalid, 413 or 422."""
        message = self.message(response)
        if "maximum allowed batch size" in message:
            return "too-large"
        if "is not a re-ranker" in message or "is not a classification model" in message:
            return "refused"
        if "score is NaN" in message or (response.status == 413 and b"error_type" in response.body):
            return "rejected"  # of an item; a body that is too large is told as plain text
        return "retry" if response.status == 424 else super().failure(response, items)

    def _score(self, classes: object, row: int) -> float:
        if not isinstance(classes, list) or not classes or not all(isinstance(entry, Mapping) for entry in classes):
            raise AnswerError(
                f"the answer for item {row} is {classes!r:.80}; a list with 'score' and 'label' was expected", rows=[row]
            )
        labels = [str(entry.get("label")) for entry in classes]
        if self.label is None and len(classes) > 1:
            raise UnsupportedError(
                f"item {row} has scores for {', '.join(labels)}, and which is the reward was not said. {_NAME_ONE}"
            )
        if self.label is not None and labels.count(self.label) != 1:
            raise UnsupportedError(f"item {row} has scores for {', '.join(labels)}, and not one for {self.label!r}")
        score = classes[0 if self.label is None else labels.index(self.label)].get("score")
        return finite(score, f"the score of item {row}", row=row)

    def _check_label(self, labels: Sequence[str], description: str) -> None:
        if self.label is None and len(labels) > 1:
            raise UnsupportedError(
                f"{description} has the classes {', '.join(labels)}, and which is the reward was not said. {_NAME_ONE}."
            )
        if self.label is not None and labels.count(self.label) != 1:
            raise UnsupportedError(
                f"{description} has no class {self.label!r}, or several. Its classes are {', '.join(labels)}."
            )


_NAME_ONE = "Name one, `protocol: {name: tei, label: NAME}`"


def _ids(answer: Any) -> list[Any]:
    """The token ids of ``POST /tokenize`` for one text, ``[[{"id": 1, ...}, ...]]``."""
    return [token["id"] for token in answer[0]]


def _description(info: Mapping[str, Any]) -> str:
    return f"TEI {info.get('version', '(version unknown)')} with {info.get('model_id')}"


def _kind(model_type: object) -> tuple[str, list[str]]:
    """The kind of a model and the names of its classes, of ``{"reranker": {"id2label": {"0": "LABEL_0"}, ...}}``."""
    match model_type:
        case {**kinds} if len(kinds) == 1:
            ((kind, facts),) = kinds.items()
            names = facts.get("id2label") if isinstance(facts, Mapping) else None
            return str(kind), [str(name) for name in names.values()] if isinstance(names, Mapping) else []
    return str(model_type), []
