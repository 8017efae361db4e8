"""The reward that a server has loaded: its identity, the samples that it accepts, and how it is reloaded."""

from __future__ import annotations

import json
import logging
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
from rm_plugins.providers.combinators.sum import Sum
from rm_plugins.rendering.token_types import ids_and_types
from rm_plugins.samples import RenderedSample, Sample
from rm_plugins.scores import Scores
from rm_plugins.server.dialects.dialect import Output, Token
from rm_plugins.server.model_output import output_of
from rm_plugins.server.replicas import Replica
from rm_plugins.server.tokens import text_of_ids, tokens_of
from rm_plugins.spec import FILE_ENDINGS, load
from rm_plugins.wire import sample_to_json

if TYPE_CHECKING:
    from rm_plugins.models.trained_reward import TrainedReward
    from rm_plugins.rendering.rendering import Rendering

logger = logging.getLogger(__name__)

Made = TypeVar("Made")

_DEFAULT_BATCH_TOKENS = 16_384
_MICRO_BATCHES = 16
"""Large enough that the engine finds rows of similar length and shared prompts; small enough that a batch takes seconds on a CPU."""


@dataclass(frozen=True, slots=True)
class RewardFacts:
    """Facts about a loaded reward that the server needs.

    Args:
        label: The name of the reward.
        names: The names that requests may use: the label, the source it was loaded from, and the model's path or id, which is its name on
            other servers.
        spec: Its spec; None if it was constructed in Python.
        shown_spec: The spec without secrets.
        fingerprint: The fingerprint of its weights, rendering and spec.
        manifests: The digests of its models' manifests, by path in the spec.
        takes_rendered: Whether it scores rendered texts and token ids.
        is_merged: Whether samples of several requests may be scored together.
        is_concurrent: Whether it waits for I/O instead of computing.
        learns: The parts that learn from the samples they score.
        batch_tokens: The default number of tokens that are scored together.
        vocabulary: The number of token ids that every model knows; 0 without a model, infinite if unknown.
        max_length: The most token ids that every model takes.
        reads: The token of a row that a decoder's head reads, ``last`` or ``before-padding``, by path in the spec; None for an encoder.
        pair: Whether all models encode prompt and completion as a pair; None if this is unknown for a model.
        templates: Whether all models render conversations with a chat template.
        output: How another server of the same model presents its output.
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
    """A loaded reward, in this process or in another one, owned by the server.

    Args:
        facts: The facts about it.
        source: The source for reloading it; None if it cannot be reloaded.
    """

    def __init__(self, facts: RewardFacts, source: str | Path | Mapping[str, Any] | None) -> None:
        self.facts = facts
        self.source = source

    @property
    def fingerprint(self) -> str:
        """The fingerprint of its weights, rendering and spec."""
        return self.facts.fingerprint

    @property
    def is_alive(self) -> bool:
        """Whether it can score now."""
        return True

    @property
    def replicas(self) -> tuple[Replica, ...]:
        """The processes that have loaded it, each of which scores a batch at a time; this process counts as one."""
        return (Replica(),)

    @abstractmethod
    def score(self, requests: Sequence[Sequence[Sample]], names: Sequence[str]) -> list[Scores]:
        """Score the samples of requests; see `rm_plugins.batching.isolation.score_requests`.

        Raises:
            RewardGone: Its process ended.
        """

    @abstractmethod
    def render(self, samples: Sequence[Sample]) -> list[list[dict[str, Any]]]:
        """The renderings of each sample; models with equal renderings are listed once.

        Raises:
            DataError: A chat template refuses a sample.
            RewardGone: Its process ended.
        """

    @abstractmethod
    def lengths(self, samples: Sequence[Sample]) -> list[int]:
        """The number of tokens of each sample before truncation: the largest over all models; 0 without a model.

        Raises:
            DataError: A chat template refuses a sample.
            RewardGone: Its process ended.
        """

    @abstractmethod
    def tokenize(self, texts: Sequence[str], add_special_tokens: bool) -> list[list[Token]]:
        """The tokens of each text, which must be the same for all models.

        Raises:
            DataError: There is no model, or models have different tokens.
            RewardGone: Its process ended.
        """

    @abstractmethod
    def detokenize(self, rows: Sequence[Sequence[int]], skip_special_tokens: bool) -> list[str]:
        """The texts of token ids.

        Raises:
            DataError: As for `tokenize`, or a token id is unknown.
            RewardGone: Its process ended.
        """

    @abstractmethod
    def again(self) -> HostedReward:
        """Load the same source again.

        Raises:
            RmPluginsError: It cannot be loaded.
        """

    @abstractmethod
    def close(self) -> None:
        """Release the resources of the reward."""

    def check(self, sample: Sample) -> None:
        """Refuse a sample that the reward cannot score.

        Raises:
            DataError: The sample has a lone surrogate, unknown token ids or too many of them, or columns that could affect the server. Or
                it is rendered although the reward does not take rendered samples, or it is unknown whether a model takes pairs.
        """
        try:
            json.dumps(sample_to_json(sample), ensure_ascii=False, default=str).encode()
        except UnicodeEncodeError as error:
            raise DataError("It contains a lone surrogate, which is not a character.") from error
        if isinstance(sample, RenderedSample):
            self._check_rendered(sample)
            return
        if self.facts.pair is None and sample.prompt and sample.completion:
            raise DataError(
                f"It is not known whether a model of {self.facts.label!r} takes prompt and completion as a pair, like cross-encoders, or "
                "as one text. Set `pair: true` or `pair: false` in the spec that is served."
            )
        if sample.columns:
            _check_columns(sample.columns)

    def _check_rendered(self, sample: RenderedSample) -> None:
        facts = self.facts
        if not facts.takes_rendered:
            raise DataError(
                f"It is a rendered text or token ids, which only models can score, but {facts.label!r} does not consist of models only. "
                "Send prompt and completion."
            )
        ids = sample.token_ids
        if ids is None:
            return
        if max(ids) >= facts.vocabulary:
            raise DataError(f"It has a token id above {facts.vocabulary - 1}, the last one that the model knows.")
        if facts.max_length is not None and len(ids) > facts.max_length:
            raise DataError(f"It has {len(ids)} token ids; the model takes at most {facts.max_length}. Truncate them.")


class RewardGone(Exception):
    """The reward's process ended before it answered; the message says why."""


class RewardLate(RewardGone):
    """It was ended, because it did not answer in time."""


class ServedReward(HostedReward):
    """A reward in this process.

    Args:
        provider: The reward.
        source: The source for reloading it; by default its own spec.
    """

    def __init__(self, provider: Provider, source: str | Path | Mapping[str, Any] | None = None) -> None:
        self.provider = provider
        parts = dict(provider.walk())
        self._rendering = {path: part for path, part in parts.items() if part.renderer is not None}
        super().__init__(_facts_of(provider, source), provider.spec if source is None else source)
        for part in parts.values():
            if isinstance(part, Sum) and part.is_scheduled:
                logger.warning(
                    "%s has weights that change during training, but is loaded outside the trainer, so they have their final values. For "
                    "weights that follow the training, serve the members, and put their sum into the spec of the trainer.",
                    part.called,
                )

    @classmethod
    def load(cls, spec: str | Path | Mapping[str, Any]) -> ServedReward:
        """Load the reward of a spec, like `rm_plugins.load`."""
        return cls(load(spec), spec)

    def again(self) -> ServedReward:
        """Load the same source again."""
        assert self.source is not None
        return self.load(self.source)

    def score(self, requests: Sequence[Sequence[Sample]], names: Sequence[str]) -> list[Scores]:
        """Score the samples of requests, in the calling thread."""
        # A reward that waits for I/O names the failed rows itself, so scoring each row again would only take time.
        by_row = self.facts.is_merged and not self.facts.is_concurrent
        return score_requests(self.provider, requests, names, merges=self.facts.is_merged, by_row=by_row)

    def render(self, samples: Sequence[Sample]) -> list[list[dict[str, Any]]]:
        """Render samples, in the calling thread."""
        renderings = []
        for row, sample in enumerate(samples):
            try:
                renderings.append(self._renderings(sample))
            except DataError as error:
                raise DataError(f"item {row}: {error}", rows=[row]) from error
        return renderings

    def lengths(self, samples: Sequence[Sample]) -> list[int]:
        """Count the tokens of samples, in the calling thread."""
        most = [0] * len(samples)
        for part in self._rendering.values():
            most = [max(length, len(ids)) for length, ids in zip(most, part.renderer.untruncated_ids(samples), strict=True)]
        return most

    def tokenize(self, texts: Sequence[str], add_special_tokens: bool) -> list[list[Token]]:
        """Tokenize texts, in the calling thread."""
        return self._agreed(lambda tokenizer: [tokens_of(tokenizer, text, add_special_tokens) for text in texts])

    def detokenize(self, rows: Sequence[Sequence[int]], skip_special_tokens: bool) -> list[str]:
        """Decode token ids, in the calling thread."""
        return self._agreed(lambda tokenizer: [text_of_ids(tokenizer, ids, skip_special_tokens) for ids in rows])

    def _agreed(self, function: Callable[[Any], Made]) -> Made:
        """The result of a function of a tokenizer, which must be the same for the tokenizers of all models."""
        results = [function(part.renderer.tokenizer) for part in self._rendering.values()]
        if not results:
            raise DataError(f"{self.facts.label!r} has no model, so it has no tokens.")
        if any(other != results[0] for other in results):
            raise DataError(f"The models of {self.facts.label!r} have different tokens. POST /v1/render returns those of each.")
        return results[0]

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
        """Release the resources of the reward."""
        self.provider.close()


def _label_of(provider: Provider, source: str | Path | Mapping[str, Any] | None) -> str:
    """The provider's label; if that is only the kind of provider, such as ``gate``, the name of the spec's file."""
    label = provider.label or provider.name
    is_chosen = provider.spec is None or label != provider.name or "label" in provider.spec
    is_file = isinstance(source, (str, Path)) and Path(source).suffix in FILE_ENDINGS
    return label if is_chosen or not is_file else Path(str(source)).stem


def _facts_of(provider: Provider, source: str | Path | Mapping[str, Any] | None) -> RewardFacts:
    source = provider.spec if source is None else source
    label = _label_of(provider, source)
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
        names=tuple(
            dict.fromkeys(
                [label, provider.label or provider.name, *(str(name) for name in called if isinstance(name, (str, Path)))]
            )
        ),
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


def _takes_pairs(settings: Sequence[bool | None]) -> bool | None:
    return None if None in settings else bool(settings) and all(settings)


def characters(sample: Sample) -> int:
    """The size of a sample in characters; a token id counts as four, and columns count as their JSON.

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
        raise DataError("Its columns.chat_template_kwargs must not contain a chat_template; the server uses the reward's own.")
