"""The reward that a server has loaded: what identifies it, what it takes, and how it is loaded again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rm_plugins.errors import DataError, SpecError
from rm_plugins.identity import fingerprint, manifest_digests, renders, shown_spec
from rm_plugins.provider import Provider
from rm_plugins.providers.combinators.parts import depends_on_batch, learns_while_scoring
from rm_plugins.samples import RenderedSample, Sample
from rm_plugins.spec import load

__all__ = ["Hosted", "characters"]

_DEFAULT_BATCH_TOKENS = 16_384
_MICRO_BATCHES = 16
"""Several, so that the engine finds rows of like length and prompts to share; few, so that a batch takes seconds at most on a CPU."""


class Hosted:
    """A loaded reward; the server owns it from now on.

    Args:
        provider: The reward.
        source: What to load it from again; its own spec by default.
    """

    def __init__(self, provider: Provider, source: str | Path | Mapping[str, Any] | None = None) -> None:
        self.provider = provider
        self.source = provider.spec if source is None else source
        self.label = provider.label or provider.name
        self.parts = list(provider.walk())
        leaves = [part for _, part in self.parts if not part.children]
        self.models: list[tuple[str, Any]] = [(path, part) for path, part in self.parts if renders(part)]
        self.takes_rendered = all(renders(leaf) for leaf in leaves)
        self.is_merged = not any(depends_on_batch(part) for _, part in self.parts)
        self.learns = [part.called for _, part in self.parts if learns_while_scoring(part)]
        self.manifests = manifest_digests(provider)
        self.fingerprint = fingerprint(provider)
        limits = [part.renderer.rendering.max_length for _, part in self.models]
        self._max_length = min((limit for limit in limits if limit is not None), default=None)
        self._vocabulary = min((_vocabulary(part) for _, part in self.models), default=0)

    @classmethod
    def load(cls, spec: str | Path | Mapping[str, Any]) -> Hosted:
        """Load what a spec describes.

        Raises:
            RmPluginsError: As `rm_plugins.load` raises.
        """
        return cls(load(spec), spec)

    def again(self) -> Hosted:
        """The same spec, loaded anew.

        Raises:
            SpecError: The reward was made in Python and cannot be.
        """
        if self.source is None:
            raise SpecError("this reward was made in Python, not from a spec, so that there is nothing to load again.")
        return Hosted.load(self.source)

    @property
    def public_spec(self) -> dict[str, Any] | None:
        """The spec as clients may see it, without the headers that open servers behind this one."""
        return shown_spec(self.provider)

    @property
    def batch_tokens(self) -> int:
        """How many tokens to score together where nothing else is said."""
        budgets = [part.engine.max_tokens for _, part in self.models if hasattr(part, "engine")]
        return _MICRO_BATCHES * min(budgets) if budgets else _DEFAULT_BATCH_TOKENS

    def check(self, samples: Sequence[Sample]) -> None:
        """Refuse samples that the reward cannot be given.

        Raises:
            DataError: Texts or token ids for a reward that renders by itself, token ids that the model does not know or that are too
                many, or columns that reach into the server.
        """
        for row, sample in enumerate(samples):
            if isinstance(sample, RenderedSample):
                self._check_rendered(row, sample)
            elif sample.columns:
                _check_columns(row, sample.columns)

    def _check_rendered(self, row: int, sample: RenderedSample) -> None:
        if not self.takes_rendered:
            raise DataError(
                f"item {row} is a text or token ids to be scored as they are, which only a model can, and {self.label!r} is made of "
                "other parts too. Send prompt and completion."
            )
        ids = sample.token_ids
        if ids is None:
            return
        if max(ids) >= self._vocabulary:
            raise DataError(f"item {row} has a token id above {self._vocabulary - 1}, the last that the model knows.")
        if self._max_length is not None and len(ids) > self._max_length:
            raise DataError(f"item {row} has {len(ids)} token ids; the model takes at most {self._max_length}. Truncate them.")

    def render(self, samples: Sequence[Sample]) -> list[list[dict[str, Any]]]:
        """What each model makes of each sample; models that make the same are named once.

        Raises:
            DataError: A chat template refuses a sample.
        """
        return [self._renderings(sample) for sample in samples]

    def _renderings(self, sample: Sample) -> list[dict[str, Any]]:
        found: dict[tuple[str, tuple[int, ...]], dict[str, Any]] = {}
        for path, part in self.models:
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
            found.setdefault((text, tuple(ids)), entry)
        return list(found.values())

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
            raise DataError("a sample's columns are nested too deeply.") from error
    return total


def _vocabulary(part: Any) -> int:
    return int(part.model.get_input_embeddings().num_embeddings) if hasattr(part, "model") else len(part.renderer.tokenizer)


def _check_columns(row: int, columns: object) -> None:
    if not isinstance(columns, Mapping):
        raise DataError(f"item {row}: columns must be an object, not {type(columns).__name__}.")
    settings = columns.get("chat_template_kwargs")
    if settings is None:
        return
    if not isinstance(settings, Mapping):
        raise DataError(f"item {row}: columns.chat_template_kwargs must be an object, not {type(settings).__name__}.")
    if "chat_template" in settings:  # a template is a program
        raise DataError(
            f"item {row}: columns.chat_template_kwargs may not bring a chat_template; the server has the reward's own."
        )
