"""The reward that a server has loaded: what identifies it, what it takes, and how it is loaded again."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rm_plugins.batching.isolation import score_requests
from rm_plugins.errors import DataError
from rm_plugins.identity import fingerprint, manifests_of, shown_spec
from rm_plugins.models.embeddings import embedded_tokens
from rm_plugins.provider import Provider
from rm_plugins.providers.combinators.parts import depends_on_batch, learns_while_scoring
from rm_plugins.rendering.token_types import ids_and_types
from rm_plugins.samples import RenderedSample, Sample
from rm_plugins.scores import Scores
from rm_plugins.server.dialects.dialect import Output, Token
from rm_plugins.server.model_output import output_of
from rm_plugins.server.tokens import text_of_ids, tokens_of
from rm_plugins.spec import load
from rm_plugins.wire import sample_to_json

if TYPE_CHECKING:
    from rm_plugins.models.trained_reward import TrainedReward
    from rm_plugins.rendering.rendering import Rendering

Made = TypeVar("Made")

_DEFAULT_BATCH_TOKENS = 16_384
_MICRO_BATCHES = 16
"""Several, so that the engine finds rows of like length and prompts to share; few, so that a batch takes seconds at most on a CPU."""


@dataclass(frozen=True, slots=True)
class RewardFacts:
    """What a server knows of a loaded reward without asking it.

    Args:
        label: What it is called.
        names: What it may be called in requests: its label, what it was loaded from, and the model's path or id, which is its name at
            other servers.
        spec: What it is made of; None where it was made in Python.
        shown_spec: The same without anything that is secret.
        fingerprint: Of its weights, rendering and spec.
        manifests: By path in the spec, the digests of its models' manifests.
        takes_rendered: Whether texts and token ids are scored as they are.
        is_merged: Whether samples of several requests may be scored together.
        is_concurrent: Whether it waits for others rather than computes.
        learns: The parts of it that learn from what they score.
        batch_tokens: How many tokens to score together where nothing else is said.
        vocabulary: How many token ids every model of it knows; 0 where there is none, without end where it is not known.
        max_length: Most token ids that every model of it takes.
        reads: By path in the spec, which token of a row the head of a decoder reads, ``last`` or ``before-padding``; None for an encoder.
        pair: Whether prompt and completion are encoded as a pair by all of its models; None where that is not known of one.
        templates: Whether a chat template renders conversations for all of its models.
        output: What another server, serving the same model, makes of its output.
    """

    label: str
    names: tuple[str, ...]
    spec: Mapping[str, Any] | None
    shown_spec: Mapping[str, Any] | None
    fingerprint: str
    manifests: Mapping[str, str]
    takes_rendered: bool
    is_merged: bool
    is_concurrent: bool
    learns: tuple[str, ...]
    batch_tokens: int
    vocabulary: float
    max_length: int | None
    reads: Mapping[str, str | None]
    pair: bool | None
    templates: bool
    output: Output


class HostedReward(ABC):
    """A loaded reward, in this process or in another one; the server owns it from now on.

    Args:
        facts: What is known of it.
        source: What to load it from again; None where it cannot be.
    """

    def __init__(self, facts: RewardFacts, source: str | Path | Mapping[str, Any] | None) -> None:
        self.facts = facts
        self.source = source

    @property
    def fingerprint(self) -> str:
        """Of its weights, rendering and spec."""
        return self.facts.fingerprint

    @property
    def is_alive(self) -> bool:
        """Whether it can score now."""
        return True

    @abstractmethod
    def score(self, requests: Sequence[Sequence[Sample]], names: Sequence[str]) -> list[Scores]:
        """Score the samples of requests; see `rm_plugins.batching.isolation.score_requests`.

        Raises:
            RewardGone: Its process ended.
        """

    @abstractmethod
    def render(self, samples: Sequence[Sample]) -> list[list[dict[str, Any]]]:
        """What each model makes of each sample; models that make the same are named once.

        Raises:
            DataError: A chat template refuses a sample.
            RewardGone: Its process ended.
        """

    @abstractmethod
    def lengths(self, samples: Sequence[Sample]) -> list[int]:
        """How many tokens each sample has before truncation, for the model that makes the most of it; 0 where nothing has tokens.

        Raises:
            DataError: A chat template refuses a sample.
            RewardGone: Its process ended.
        """

    @abstractmethod
    def tokenize(self, texts: Sequence[str], add_special_tokens: bool) -> list[list[Token]]:
        """The tokens that all models make of each text.

        Raises:
            DataError: There is no model, or models make different ones.
            RewardGone: Its process ended.
        """

    @abstractmethod
    def detokenize(self, rows: Sequence[Sequence[int]], skip_special_tokens: bool) -> list[str]:
        """The texts of token ids.

        Raises:
            DataError: As `tokenize`; or a token id is unknown.
            RewardGone: Its process ended.
        """

    @abstractmethod
    def again(self) -> HostedReward:
        """Load the same source once more.

        Raises:
            RmPluginsError: It cannot be loaded.
        """

    @abstractmethod
    def close(self) -> None:
        """Give back what the reward holds."""

    def check(self, sample: Sample) -> None:
        """Refuse a sample that the reward cannot be given.

        Raises:
            DataError: Half of a surrogate pair; a text or token ids for a reward that renders by itself; token ids that the model does
                not know or that are too many; prompt and completion where it is not known how a model takes them; or columns that
                reach into the server.
        """
        try:
            json.dumps(sample_to_json(sample), ensure_ascii=False, default=str).encode()
        except UnicodeEncodeError as error:
            raise DataError("It holds half of a surrogate pair, which is no character.") from error
        if isinstance(sample, RenderedSample):
            self._check_rendered(sample)
            return
        if self.facts.pair is None and sample.prompt and sample.completion:
            raise DataError(
                f"Whether a model of {self.facts.label!r} takes a prompt and a completion as a pair, as cross-encoders do, or as one text "
                "is not known. Set `pair: true` or `pair: false` in the spec that is served."
            )
        if sample.columns:
            _check_columns(sample.columns)

    def _check_rendered(self, sample: RenderedSample) -> None:
        facts = self.facts
        if not facts.takes_rendered:
            raise DataError(
                f"It is a text or token ids to be scored as they are, which only a model can, and {facts.label!r} is made of "
                "other parts too. Send prompt and completion."
            )
        ids = sample.token_ids
        if ids is None:
            return
        if max(ids) >= facts.vocabulary:
            raise DataError(f"It has a token id above {facts.vocabulary - 1}, the last that the model knows.")
        if facts.max_length is not None and len(ids) > facts.max_length:
            raise DataError(f"It has {len(ids)} token ids; the model takes at most {facts.max_length}. Truncate them.")


class RewardGone(Exception):
    """The process that the reward lives in ended before it had answered; the message says why."""


class ServedReward(HostedReward):
    """A reward in this process.

    Args:
        provider: The reward.
        source: What to load it from again; its own spec by default.
    """

    def __init__(self, provider: Provider, source: str | Path | Mapping[str, Any] | None = None) -> None:
        self.provider = provider
        parts = dict(provider.walk())
        self._rendering = {path: part for path, part in parts.items() if part.renderer is not None}
        super().__init__(_facts_of(provider, source), provider.spec if source is None else source)

    @classmethod
    def load(cls, spec: str | Path | Mapping[str, Any]) -> ServedReward:
        """Load what a spec describes, as `rm_plugins.load` does."""
        return cls(load(spec), spec)

    def again(self) -> ServedReward:
        """Load the same source once more."""
        assert self.source is not None
        return self.load(self.source)

    def score(self, requests: Sequence[Sequence[Sample]], names: Sequence[str]) -> list[Scores]:
        """Score the samples of requests, in the thread that calls."""
        # What waits for somebody else names the rows that were refused: asking again for each would take long, for nothing.
        by_row = self.facts.is_merged and not self.facts.is_concurrent
        return score_requests(self.provider, requests, names, merges=self.facts.is_merged, by_row=by_row)

    def render(self, samples: Sequence[Sample]) -> list[list[dict[str, Any]]]:
        """What each model makes of each sample, in the thread that calls."""
        renderings = []
        for row, sample in enumerate(samples):
            try:
                renderings.append(self._renderings(sample))
            except DataError as error:
                raise DataError(f"item {row}: {error}", rows=[row]) from error
        return renderings

    def lengths(self, samples: Sequence[Sample]) -> list[int]:
        """How many tokens each sample has at most, in the thread that calls."""
        most = [0] * len(samples)
        for part in self._rendering.values():
            most = [max(length, len(ids)) for length, ids in zip(most, part.renderer.untruncated_ids(samples), strict=True)]
        return most

    def tokenize(self, texts: Sequence[str], add_special_tokens: bool) -> list[list[Token]]:
        """The tokens of each text, in the thread that calls."""
        return self._agreed(lambda tokenizer: [tokens_of(tokenizer, text, add_special_tokens) for text in texts])

    def detokenize(self, rows: Sequence[Sequence[int]], skip_special_tokens: bool) -> list[str]:
        """The texts of token ids, in the thread that calls."""
        return self._agreed(lambda tokenizer: [text_of_ids(tokenizer, ids, skip_special_tokens) for ids in rows])

    def _agreed(self, function: Callable[[Any], Made]) -> Made:
        """What a function makes of each model's tokenizer, which must be the same for all."""
        made = [function(part.renderer.tokenizer) for part in self._rendering.values()]
        if not made:
            raise DataError(f"{self.facts.label!r} has no model, and so no tokens.")
        if any(other != made[0] for other in made):
            raise DataError(f"The models of {self.facts.label!r} have different tokens. Ask POST /v1/render for those of each.")
        return made[0]

    def _renderings(self, sample: Sample) -> list[dict[str, Any]]:
        renderings: dict[tuple[str, tuple[int, ...]], dict[str, Any]] = {}
        for path, part in self._rendering.items():
            text = part.render(sample)
            (whole,) = part.renderer.untruncated_ids([sample])
            limit = part.renderer.rendering.max_length
            ids = whole if limit is None else part.renderer.truncated(sample, whole, limit)
            ids, _ = ids_and_types(ids)
            entry = {
                "model": part.label,
                "path": path,
                "text": text,
                "tokens": part.renderer.tokenizer.convert_ids_to_tokens(ids),
                "token_ids": ids,
                "truncated": len(ids) < len(whole),
            }
            renderings.setdefault((text, tuple(ids)), entry)
        return list(renderings.values())

    def close(self) -> None:
        """Give back what the reward holds."""
        self.provider.close()


def _facts_of(provider: Provider, source: str | Path | Mapping[str, Any] | None) -> RewardFacts:
    source = provider.spec if source is None else source
    label = provider.label or provider.name
    called = [source.get("model") if isinstance(source, Mapping) else source, (provider.spec or {}).get("model")]
    parts = dict(provider.walk())
    renderers = [(part, part.renderer) for part in parts.values() if part.renderer is not None]
    limits = [renderer.rendering.max_length for _, renderer in renderers]
    models: list[TrainedReward] = [model for part in parts.values() for model in part.models.values()]
    embeddings = [embedded_tokens(model.model) for model in models]
    elsewhere = [len(renderer.tokenizer) for part, renderer in renderers if not part.models]
    budgets = [model.engine.max_tokens for model in models]
    return RewardFacts(
        label=label,
        names=tuple(dict.fromkeys([label, *(str(name) for name in called if isinstance(name, (str, Path)))])),
        spec=provider.spec,
        shown_spec=shown_spec(provider),
        fingerprint=fingerprint(provider),
        manifests={path: manifest.digest for path, manifest in manifests_of(provider).items()},
        takes_rendered=all(part.renderer is not None for part in parts.values() if not part.children),
        is_merged=not any(depends_on_batch(part) for part in parts.values()),
        is_concurrent=provider.concurrent,
        learns=tuple(part.called for part in parts.values() if learns_while_scoring(part)),
        batch_tokens=_MICRO_BATCHES * min(budgets) if budgets else _DEFAULT_BATCH_TOKENS,
        vocabulary=min([*embeddings, *elsewhere], default=0),
        max_length=min((limit for limit in limits if limit is not None), default=None),
        reads={path: model.read for path, part in parts.items() for model in part.models.values()},
        pair=_takes_pairs([renderer.rendering.pair for _, renderer in renderers]),
        templates=bool(renderers) and all(_has_template(renderer.rendering) for _, renderer in renderers),
        output=output_of(provider),
    )


def _has_template(rendering: Rendering) -> bool:
    return rendering.chat_template == "tokenizer" and not rendering.pair


def _takes_pairs(said: Sequence[bool | None]) -> bool | None:
    return None if None in said else bool(said) and all(said)


def characters(sample: Sample) -> int:
    """How long a sample is, in characters; a token id counts as four, and columns as their JSON.

    Raises:
        DataError: The columns are nested too deeply.

    >>> characters(Sample("2+2?", "4")), characters(RenderedSample.of([5, 6]))
    (5, 8)
    """
    if isinstance(sample, RenderedSample) and sample.token_ids is not None:
        return 4 * len(sample.token_ids)
    total = 0
    for part in (sample.prompt, sample.completion):
        total += len(part) if isinstance(part, str) else sum(len(str(value)) for message in part for value in message.values())
    if sample.columns:
        try:
            total += len(json.dumps(sample.columns, default=str))
        except (RecursionError, ValueError) as error:
            raise DataError("Its columns are nested too deeply.") from error
    return total


def _check_columns(columns: Mapping[str, Any]) -> None:
    settings = columns.get("chat_template_kwargs")
    if settings is None:
        return
    if not isinstance(settings, Mapping):
        raise DataError(f"Its columns.chat_template_kwargs must be an object, not {type(settings).__name__}.")
    if "chat_template" in settings:  # a template is a program
        raise DataError("Its columns.chat_template_kwargs may not bring a chat_template; the server has the reward's own.")
