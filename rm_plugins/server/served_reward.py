"""The reward that a server has loaded: what identifies it, what it takes, and how it is loaded again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rm_plugins.errors import DataError
from rm_plugins.identity import fingerprint, manifests_of
from rm_plugins.models.embeddings import embedded_tokens
from rm_plugins.provider import Provider
from rm_plugins.providers.combinators.parts import depends_on_batch, learns_while_scoring
from rm_plugins.samples import RenderedSample, Sample
from rm_plugins.spec import load
from rm_plugins.wire import sample_to_json

if TYPE_CHECKING:
    from rm_plugins.models.trained_reward import TrainedReward

_DEFAULT_BATCH_TOKENS = 16_384
_MICRO_BATCHES = 16
"""Several, so that the engine finds rows of like length and prompts to share; few, so that a batch takes seconds at most on a CPU."""


class ServedReward:
    """A loaded reward; the server owns it from now on.

    Args:
        provider: The reward.
        source: What to load it from again; its own spec by default.
    """

    def __init__(self, provider: Provider, source: str | Path | Mapping[str, Any] | None = None) -> None:
        self.provider = provider
        self.source = provider.spec if source is None else source
        self.label = provider.label or provider.name
        called = self.source.get("model") if isinstance(self.source, Mapping) else self.source
        self.names = tuple(dict.fromkeys([self.label, *([str(called)] if isinstance(called, (str, Path)) else [])]))
        """What it may be called in requests: its label, and what it was loaded from, which is its name at other servers."""
        parts = dict(provider.walk())
        self.takes_rendered = all(part.renderer is not None for part in parts.values() if not part.children)
        self.is_merged = not any(depends_on_batch(part) for part in parts.values())
        self.learns = [part.called for part in parts.values() if learns_while_scoring(part)]
        self.manifests = {path: manifest.digest for path, manifest in manifests_of(provider).items()}
        self.fingerprint = fingerprint(provider)
        self._rendering = {path: part for path, part in parts.items() if part.renderer is not None}
        limits = [part.renderer.rendering.max_length for part in self._rendering.values()]
        self._max_length = min((limit for limit in limits if limit is not None), default=None)
        self._models: list[TrainedReward] = [model for part in parts.values() for model in part.models.values()]
        embeddings = [embedded_tokens(model.model) for model in self._models]
        elsewhere = [len(part.renderer.tokenizer) for part in self._rendering.values() if not part.models]
        self._vocabulary = min([*embeddings, *elsewhere], default=0)

    @classmethod
    def load(cls, spec: str | Path | Mapping[str, Any]) -> ServedReward:
        """Load what a spec describes, as `rm_plugins.load` does."""
        return cls(load(spec), spec)

    @property
    def batch_tokens(self) -> int:
        """How many tokens to score together where nothing else is said."""
        budgets = [model.engine.max_tokens for model in self._models]
        return _MICRO_BATCHES * min(budgets) if budgets else _DEFAULT_BATCH_TOKENS

    def check(self, sample: Sample) -> None:
        """Refuse a sample that the reward cannot be given.

        Raises:
            DataError: Half of a surrogate pair; a text or token ids for a reward that renders by itself; token ids that the model does
                not know or that are too many; or columns that reach into the server.
        """
        try:
            json.dumps(sample_to_json(sample), ensure_ascii=False, default=str).encode()
        except UnicodeEncodeError as error:
            raise DataError("It holds half of a surrogate pair, which is no character.") from error
        if isinstance(sample, RenderedSample):
            self._check_rendered(sample)
        elif sample.columns:
            _check_columns(sample.columns)

    def _check_rendered(self, sample: RenderedSample) -> None:
        if not self.takes_rendered:
            raise DataError(
                f"It is a text or token ids to be scored as they are, which only a model can, and {self.label!r} is made of "
                "other parts too. Send prompt and completion."
            )
        ids = sample.token_ids
        if ids is None:
            return
        if max(ids) >= self._vocabulary:
            raise DataError(f"It has a token id above {self._vocabulary - 1}, the last that the model knows.")
        if self._max_length is not None and len(ids) > self._max_length:
            raise DataError(f"It has {len(ids)} token ids; the model takes at most {self._max_length}. Truncate them.")

    def render(self, samples: Sequence[Sample]) -> list[list[dict[str, Any]]]:
        """What each model makes of each sample; models that make the same are named once.

        Raises:
            DataError: A chat template refuses a sample.
        """
        renderings = []
        for row, sample in enumerate(samples):
            try:
                renderings.append(self._renderings(sample))
            except DataError as error:
                raise DataError(f"item {row}: {error}", rows=[row]) from error
        return renderings

    def _renderings(self, sample: Sample) -> list[dict[str, Any]]:
        renderings: dict[tuple[str, tuple[int, ...]], dict[str, Any]] = {}
        for path, part in self._rendering.items():
            text = part.render(sample)
            (whole,) = part.renderer.untruncated_ids([sample])
            limit = part.renderer.rendering.max_length
            ids = whole if limit is None else part.renderer.truncated(whole, limit)
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
