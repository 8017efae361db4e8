"""Samples, scores and what every plug-in author meets: `Provider`, `Transform` and `Aggregate`."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from rm_plugins.errors import DataError, RmPluginsError, ScoringError, UnsupportedError

__all__ = [
    "Aggregate",
    "Component",
    "FloatArray",
    "LocalPath",
    "Message",
    "ModelSource",
    "OnError",
    "Provider",
    "RenderedSample",
    "Sample",
    "Scores",
    "Transform",
    "merged",
    "rows_of_batch",
]

logger = logging.getLogger(__name__)

Message: TypeAlias = Mapping[str, Any]
"""One turn of a conversation: ``{"role": ..., "content": ...}``."""

FloatArray: TypeAlias = NDArray[np.float64]

OnError: TypeAlias = Literal["raise", "abstain"]


class LocalPath:
    """Marks a constructor's text argument that may be a path, which a spec file gives relative to itself."""


ModelSource: TypeAlias = Annotated[str, LocalPath]
"""A model folder or a model id of the hub."""

ROLES = ("assistant", "developer", "function", "system", "tool", "user")


@dataclass(frozen=True, slots=True)
class Sample:
    """A completion to score.

    Prompt and completion are both text, or both message lists, as in TRL's standard and conversational formats. A text
    completion under a conversational prompt becomes one assistant message.

    Args:
        prompt: Text or messages; empty (``""`` or ``[]``) where there is none.
        completion: Text or messages. An empty completion is a completion: it is scored like any other.
        columns: The other columns of the dataset row, by name (``tools`` and ``chat_template_kwargs`` reach the chat
            template).

    Raises:
        DataError: A part is neither text nor messages, a role is unknown, or a message has no text.

    >>> Sample("Q: 2+2?\\n", "4").is_conversational
    False
    >>> Sample([{"role": "user", "content": "2+2?"}], "4").completion
    [{'role': 'assistant', 'content': '4'}]
    """

    prompt: str | Sequence[Message]
    completion: str | Sequence[Message]
    columns: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_text_or_messages("prompt", self.prompt)
        if isinstance(self.completion, str) and not isinstance(self.prompt, str):
            object.__setattr__(self, "completion", [{"role": "assistant", "content": self.completion}])
        _check_text_or_messages("completion", self.completion)
        if isinstance(self.prompt, str) and not isinstance(self.completion, str):
            raise DataError(
                "A sample's prompt is text but its completion is a list of messages. Make both text or both messages."
            )

    @property
    def is_conversational(self) -> bool:
        """Whether prompt and completion are message lists."""
        return not isinstance(self.prompt, str)

    @property
    def messages(self) -> list[Message]:
        """The whole conversation.

        Raises:
            UnsupportedError: The sample is text.
        """
        if isinstance(self.prompt, str) or isinstance(self.completion, str):
            raise UnsupportedError("A text sample has no messages; look at `is_conversational` first.")
        return [*self.prompt, *self.completion]


@dataclass(frozen=True, slots=True)
class RenderedSample(Sample):
    """A text that is scored as it is, or token ids: what clients of a scoring server send that render by themselves.

    A model renders nothing more around it: no template, no EOS. For any other provider it is a completion without a prompt.

    Args:
        prompt: Empty.
        completion: The text; empty where there are token ids.
        columns: None.
        token_ids: What the model is given in place of a text.
        add_special_tokens: Whether the model's tokenizer adds its special tokens to the text.

    >>> RenderedSample.of("<|user|>2+2?<|assistant|>4", add_special_tokens=False).completion
    '<|user|>2+2?<|assistant|>4'
    """

    token_ids: tuple[int, ...] | None = None
    add_special_tokens: bool = True

    @classmethod
    def of(cls, text: str | Sequence[int], *, add_special_tokens: bool = True) -> RenderedSample:
        """The sample of a text or of token ids.

        Raises:
            DataError: There are no token ids, or one is negative or no integer.
        """
        if isinstance(text, str):
            return cls("", text, add_special_tokens=add_special_tokens)
        if not text or not all(type(token) is int and token >= 0 for token in text):
            raise DataError(f"Token ids are a list of at least one integer, none negative, not {text!r:.80}.")
        return cls("", "", token_ids=tuple(text), add_special_tokens=False)


def _check_text_or_messages(part: str, value: object) -> None:
    if isinstance(value, str):
        return
    if not isinstance(value, Sequence):
        raise DataError(f"A sample's {part} must be text or a list of messages, not {type(value).__name__}: {value!r}.")
    for position, message in enumerate(value):
        where = f"{part}[{position}]"
        if not isinstance(message, Mapping) or "role" not in message:
            raise DataError(f"{where} is not a message with 'role' and 'content': {message!r}.")
        if message["role"] not in ROLES:
            raise DataError(f"{where} has the unknown role {message['role']!r}. Allowed: {', '.join(ROLES)}.")
        content = message.get("content")
        if content is None and message.get("tool_calls"):
            continue
        if not isinstance(content, str):
            raise DataError(f"{where} needs text as its content, not {type(content).__name__}: {content!r}.")


@dataclass(frozen=True, slots=True)
class Scores:
    """What a provider says of a batch of N samples.

    Args:
        values: float64 [N], one reward per sample, NaN where the provider abstains.
        details: Named per-sample extras, each float64 [N]: member scores, spread.
        metadata: Facts about the batch as a whole, such as how many samples were truncated.
        failed: bool [N], where there is no score because of a failure, not because the provider abstained by its own choice;
            nowhere by default. `Provider.score` fills it in.
    """

    values: FloatArray
    details: Mapping[str, FloatArray] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    failed: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, dtype=np.bool_), repr=False)

    def __post_init__(self) -> None:
        values = np.asarray(self.values, dtype=np.float64)
        if values.ndim != 1:
            raise ScoringError(f"Scores need one value per sample, [N]; got an array of shape {values.shape}.")
        details = {name: np.asarray(column, dtype=np.float64) for name, column in self.details.items()}
        for name, column in details.items():
            if column.shape != values.shape:
                raise ScoringError(f"The detail {name!r} has shape {column.shape}; {values.shape} was expected.")
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "details", details)
        if not len(self.failed):
            object.__setattr__(self, "failed", np.zeros(len(values), dtype=np.bool_))

    def __len__(self) -> int:
        return len(self.values)

    @property
    def abstained(self) -> NDArray[np.bool_]:
        """bool [N]: where the provider gave no reward."""
        return np.isnan(self.values)

    def scattered(self, rows: Sequence[int], size: int) -> Scores:
        """These scores at positions `rows` of a batch of `size`, abstaining everywhere else."""

        def spread(column: FloatArray) -> FloatArray:
            out = np.full(size, np.nan)
            out[list(rows)] = column
            return out

        details = {name: spread(column) for name, column in self.details.items()}
        failed = np.zeros(size, dtype=np.bool_)
        failed[list(rows)] = self.failed
        return Scores(spread(self.values), details, self.metadata, failed)


class Component(ABC):
    """A part of a spec that is written as ``NAME`` or ``{name: NAME, ...}``.

    Its constructor's annotated keyword arguments are its schema there.
    """

    kind: ClassVar[str]
    """What it is registered as, such as ``transform``."""

    name: ClassVar[str]

    spec: Mapping[str, Any] | None = None
    """What it was made from, ``{"name": ..., ...}``; None where it was made in Python."""


class Transform(Component):
    """Reshapes a provider's scores: z-score, clip, scale."""

    kind: ClassVar[str] = "transform"

    @abstractmethod
    def __call__(self, values: FloatArray, samples: Sequence[Sample]) -> FloatArray:
        """Reshape `values` (float64 [N], NaN where abstained, which must stay NaN); returns float64 [N]."""

    def bind(self, provider: Provider) -> None:
        """Called once with the provider whose scores are reshaped, for what it knows of its own scores."""

    def state(self) -> dict[str, Any]:
        """What it has learned while scoring, as JSON has it; a checkpoint keeps it. Empty where it learns nothing."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned."""


class Aggregate(Component):
    """Makes one score of those of an ensemble's members."""

    kind: ClassVar[str] = "aggregate"

    needs_common_scale: ClassVar[bool] = False
    """Whether it compares members with each other, which means nothing where each has a scale of its own."""

    @abstractmethod
    def __call__(self, members: FloatArray) -> FloatArray:
        """Combine `members` (float64 [K, N], NaN where one gave no score, never for a whole column); returns float64 [N]."""

    def bind(self, members: int) -> None:
        """Called once with the number of members.

        Raises:
            SpecError: It does not fit this number.
        """


class Provider(ABC):
    """Turns samples into scores.

    A subclass sets `name` and implements `score_batch`; its constructor's annotated keyword arguments are its schema in a
    spec. What every provider shares (`transform`, `on_error`, counting, checking) lives here, in `score`.
    """

    name: ClassVar[str]

    metrics: ClassVar[tuple[str, ...]] = ()
    """Entries of every batch's `Scores.metadata`, each a number, that trainers log beside the reward."""
    label: str = ""
    """What this reward is called in metrics and messages; the provider's name unless something better is known."""
    on_error: OnError = "raise"
    """What a failure becomes: the error itself, or NaN."""
    fallback: Provider | None = None
    """Scores the samples that failed, before `on_error` is asked."""
    transform: Transform | None = None
    observer: Callable[[Provider, Sequence[Sample], Scores], None] | None = None
    concurrent: bool = False
    """Whether scoring is waiting rather than computing here, so that others may score meanwhile; its `score` must then be
    safe to call in another thread."""
    spec: Mapping[str, Any] | None = None
    """What it was made from, every nested spec written out; None where it was made in Python."""
    where: str = ""
    """Its place in the spec that it was loaded from: the file, and the path inside, such as ``members[1].reward``."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "label" not in cls.__dict__ and isinstance(cls.__dict__.get("name"), str):
            cls.label = cls.__dict__["name"]

    @abstractmethod
    def score_batch(self, samples: Sequence[Sample]) -> Scores:
        """Score a non-empty batch; NaN abstains.

        Raises:
            ScoringError: The batch, or the `rows` that the error names, could not be scored.
        """

    @property
    def counts(self) -> Counter[str]:
        """How often what happened so far: ``samples``, ``abstained``, ``errors``, ``fallbacks``."""
        counts: Counter[str] = self.__dict__.setdefault("_counts", Counter())
        return counts

    @property
    def called(self) -> str:
        """What messages call it: its label and, inside another spec, its place there."""
        return f"{self.label!r} ({self.where})" if self.where else repr(self.label)

    @property
    def children(self) -> dict[str, Provider]:
        """The providers that it is made of, by their path in its spec: those in its public attributes, and its fallback."""
        found: dict[str, Provider] = {}
        for name, value in vars(self).items():
            if name.startswith("_") or name == "fallback":
                continue
            if isinstance(value, Provider):
                found[name] = value
            elif isinstance(value, Mapping):
                found.update({f"{name}.{key}": item for key, item in value.items() if isinstance(item, Provider)})
            elif isinstance(value, (list, tuple)):
                found.update({f"{name}[{place}]": item for place, item in enumerate(value) if isinstance(item, Provider)})
        return found if self.fallback is None else {**found, "on_error.fallback": self.fallback}

    def walk(self, path: str = "") -> Iterator[tuple[str, Provider]]:
        """This provider and all that it is made of, each with its path in the spec, the outer before the inner."""
        yield path, self
        for part, child in self.children.items():
            yield from child.walk(f"{path}.{part}" if path else part)

    def state(self) -> dict[str, Any]:
        """What it has learned while scoring, as JSON has it, without its children's; empty where it learns nothing."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:  # noqa: B027 - most providers learn nothing
        """Go on from what `state` returned."""

    def score(self, samples: Sequence[Sample], *, on_error: OnError | None = None) -> Scores:
        """One score per sample, in their order; an empty batch gives empty scores.

        Args:
            samples: The batch.
            on_error: What a failure becomes in this call, where it is not to be the provider's own `on_error`.

        Raises:
            DataError: Something in the batch is not a `Sample`.
            ScoringError: The provider failed and `on_error` is ``raise``.
        """
        for position, sample in enumerate(samples):
            if not isinstance(sample, Sample):
                raise DataError(
                    f"score() takes rm_plugins.Sample objects; item {position} is {type(sample).__name__}: {sample!r}."
                )
        if not samples:
            return Scores(np.empty(0))
        scores = self._guarded(samples, on_error)
        self.counts["samples"] += len(samples)
        self.counts["abstained"] += int(scores.abstained.sum())
        if self.observer is not None:
            self.observer(self, samples, scores)
        return scores

    def render(self, sample: Sample) -> str:
        """The exact text that is scored.

        Raises:
            UnsupportedError: The provider does not score a text of its own making.
        """
        raise UnsupportedError(f"The provider {self.label!r} ({self.name}) has no text of its own to render.")

    def close(self) -> None:
        """Give back what the provider and those that it is made of hold: connections, processes."""
        for child in self.children.values():
            child.close()

    def _checked(self, samples: Sequence[Sample]) -> Scores:
        # The one boundary at which the foreign exceptions of a provider and its transform become ours.
        try:
            scores = self.score_batch(samples)
            self._check(scores, samples)
            if self.transform is None:
                return scores
            reshaped = Scores(self.transform(scores.values, samples))
        except RmPluginsError:
            raise
        except Exception as error:
            raise ScoringError(f"The provider {self.called} failed: {type(error).__name__}: {error}") from error
        self._check(reshaped, samples)
        revived = np.flatnonzero(scores.abstained & ~reshaped.abstained)
        if len(revived):
            raise ScoringError(
                f"The transform {self.transform.name!r} of the provider {self.called} made a score of {len(revived)} "
                f"abstentions (first: item {revived[0]}). NaN must stay NaN.",
                rows=revived.tolist(),
            )
        return Scores(reshaped.values, {**scores.details, "raw": scores.values}, scores.metadata)

    def _check(self, scores: Scores, samples: Sequence[Sample]) -> None:
        if len(scores) != len(samples):
            raise ScoringError(
                f"The provider {self.called} returned {len(scores)} scores for {len(samples)} samples; it must return "
                "exactly one per sample, NaN where it abstains."
            )
        infinite = np.flatnonzero(np.isinf(scores.values))
        if len(infinite):
            raise ScoringError(
                f"The provider {self.called} returned an infinite score for {len(infinite)} of {len(samples)} samples "
                f"(first: item {infinite[0]}). A reward must be finite, or NaN to abstain.",
                rows=infinite.tolist(),
            )

    def _guarded(self, samples: Sequence[Sample], on_error: OnError | None) -> Scores:
        everything = range(len(samples))
        pending, failed, parts = list(everything), list[int](), list[Scores]()
        while pending:
            try:
                scores = self._checked(samples if not failed else [samples[row] for row in pending])
            except ScoringError as error:
                if (on_error or self.on_error) == "raise" and self.fallback is None:
                    raise
                # Rows that the batch does not have say nothing about those that it has.
                wrong = {pending[place] for place in error.rows or () if 0 <= place < len(pending)} or set(pending)
                self.counts["errors"] += 1
                remedy = "they abstain" if self.fallback is None else f"{self.fallback.label!r} scores them"
                logger.warning("%d of %d samples failed, %s: %s", len(wrong), len(samples), remedy, error)
                failed = sorted({*failed, *wrong})
                pending = [row for row in pending if row not in wrong]
            else:
                if not failed:
                    return scores
                parts.append(scores.scattered(pending, len(samples)))
                break
        if self.fallback is not None:
            self.counts["fallbacks"] += len(failed)
            with rows_of_batch(failed):
                found = self.fallback.score([samples[row] for row in failed], on_error=on_error)
            # Its details are of other things than those of the same names here.
            details = {f"fallback/{name}": column for name, column in found.details.items()}
            parts.append(replace(found, details=details).scattered(failed, len(samples)))
        else:
            nothing = np.full(len(samples), np.nan)
            parts.append(Scores(nothing, failed=np.isin(everything, failed)))
        return merged(parts)


@contextmanager
def rows_of_batch(rows: Sequence[int]) -> Iterator[None]:
    """Have an error name its rows as those of the batch, of which `rows` are scored inside."""
    try:
        yield
    except ScoringError as error:
        named = [row for place, row in enumerate(rows) if error.rows is None or place in error.rows] or rows
        raise ScoringError(str(error), rows=[int(row) for row in named]) from error


def merged(parts: Sequence[Scores]) -> Scores:
    """Scores of disjoint rows of one batch laid over each other."""

    def first(columns: Sequence[FloatArray]) -> FloatArray:
        out = columns[0]
        for column in columns[1:]:
            out = np.where(np.isnan(out), column, out)
        return out

    names = dict.fromkeys(name for part in parts for name in part.details)
    details = {name: first([part.details[name] for part in parts if name in part.details]) for name in names}
    metadata: dict[str, Any] = {}
    for part in parts:
        metadata.update(part.metadata)
    failed = np.any([part.failed for part in parts], axis=0)
    return Scores(first([part.values for part in parts]), details, metadata, failed)
