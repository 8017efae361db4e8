"""The base class of rewards: `Provider`."""

from __future__ import annotations

import logging
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np

from rm_plugins.component import Transform, check_class_name, identities_of_components
from rm_plugins.constructor_schema import held_by
from rm_plugins.digests import with_digests
from rm_plugins.errors import DataError, RmPluginsError, ScoringError, UnsupportedError, as_one_error
from rm_plugins.groups import check_group_columns
from rm_plugins.held_facts import held_facts
from rm_plugins.one_thread import OneThread
from rm_plugins.provider_repr import provider_repr
from rm_plugins.reshaped_scores import finite_scores, reshaped_scores
from rm_plugins.samples import Sample, check_samples
from rm_plugins.scores import Scores, joined
from rm_plugins.scoring_threads import check_awaited, in_thread

logger = logging.getLogger(__name__)

OnError: TypeAlias = Literal["raise", "abstain"]


def transforms_of(holder: Provider | Transform) -> dict[str, Transform]:
    """The transforms of a provider, or of a transform, by their path in its spec, in the order in which they are applied.

    >>> from rm_plugins.transforms import Chain, Scale
    >>> list(transforms_of(Chain(transforms=[Scale(), Scale()])))
    ['transforms[0]', 'transforms[1]']
    """
    return holder.transforms if isinstance(holder, Provider) else held_by(holder, Transform)


class Provider(ABC):
    """Turns samples into scores.

    A subclass sets `name` and implements `score_batch`; a class without a name is refused where it is defined. Its constructor's
    annotated keyword arguments are its schema in a spec. `score` does the work that all providers share: `transform`, `on_error`,
    counting and checking.

    Any number of threads may call `score`. The transform and the observer run in one thread at a time, and also `score_batch`, unless
    the provider is `concurrent`, or a combinator with parts that are.
    """

    name: ClassVar[str]

    depends_on_batch: ClassVar[bool] = False
    """Whether a sample's score depends on the others of its group (`rm_plugins.groups`), not counting children and transforms."""
    group: str | None = None
    """Where it does: the column that names a sample's group, or None where the samples of a prompt are a group."""
    keys_without_effect: ClassVar[frozenset[str]] = frozenset()
    """The keys of its spec that do not affect scores, such as the device or a timeout; they are not part of its `identity`."""
    metrics: ClassVar[tuple[str, ...]] = ()
    """Entries of every batch's `Scores.metadata`, each a number, that trainers log beside the reward."""
    renderer: Any = None
    """The `rm_plugins.rendering.render.Renderer` that makes text and token ids of samples in this process, if there is one."""
    label: str = ""
    """The reward's name in metrics and messages; by default the provider's name."""
    on_error: OnError = "raise"
    """What a failure becomes: the error itself, or NaN."""
    fallback: Provider | None = None
    """Scores the samples that failed, before `on_error` applies."""
    transform: Transform | None = None
    observer: Callable[[Provider, Sequence[Sample], Scores], None] | None = None
    concurrent: bool = False
    """Whether scoring mostly waits instead of computing here, so that other providers may score meanwhile; `score_batch` must then be
    safe to call in several threads at once."""
    unnamed_failures: int = 0
    """How often a batch of several samples failed with an error that named no row or all rows."""
    spec: Mapping[str, Any] | None = None
    """The spec that it was built from, with nested specs written out; None where it was made in Python."""
    spec_as_read: Mapping[str, Any] | None = None
    """Its own keys of the spec, with the digests that files had when it was built."""
    where: str = ""
    """Its place in the spec that it was loaded from: the file, and the path inside, such as ``members[1].reward``."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        check_class_name(cls, "provider")
        if "label" not in cls.__dict__ and isinstance(cls.__dict__.get("name"), str):
            cls.label = cls.__dict__["name"]

    @abstractmethod
    def score_batch(self, samples: Sequence[Sample]) -> Scores:
        """Score a non-empty batch; NaN abstains, and failed rows are in `Scores.errors`.

        Raises:
            ScoringError: The batch, or the `rows` that the error names, could not be scored. The other rows are then scored again;
                return `Scores.errors` instead where they are already scored.
        """

    @property
    def counts(self) -> Counter[str]:
        """Counts so far: ``samples``, ``abstained``, ``errors``, ``fallbacks``, and those of the provider itself."""
        counts: Counter[str] = self.__dict__.setdefault("_counts", Counter())
        return counts

    def _counted(self, what: str, number: int = 1) -> None:
        """Add to `counts`, from any thread."""
        with self.one_thread:
            self.counts[what] += number

    @property
    def one_thread(self) -> OneThread:
        """Lets one thread in at a time; it guards what changes in this provider while it scores."""
        alone: OneThread = self.__dict__.setdefault("_alone", OneThread())
        return alone

    @property
    def scores_alone(self) -> bool:
        """Whether `score_batch` runs in one thread at a time."""
        return not self.concurrent

    @property
    def called(self) -> str:
        """Its name in messages: the label and, inside another spec, its place there."""
        return f"{self.label!r} ({self.where})" if self.where else repr(self.label)

    @property
    def children(self) -> dict[str, Provider]:
        """The providers that it is made of, including its fallback, by their path in its spec.

        By default these are the constructor's arguments that are annotated as providers and kept in attributes of the same names.
        A provider that keeps them elsewhere overrides this.
        """
        children: dict[str, Provider] = held_by(self, Provider)
        return children if self.fallback is None else {**children, "on_error.fallback": self.fallback}

    @property
    def part_names(self) -> tuple[str, ...] | None:
        """The names of the parts of its scores (`Scores.parts`), if they are the same in every batch; None if only a batch shows them."""
        return None

    @property
    def part_providers(self) -> Mapping[str, Provider]:
        """The children whose scores are parts of its own, by the names of these parts."""
        return {}

    @property
    def models(self) -> Mapping[str, Any]:
        """The trained models that it holds itself, by the key of its spec that names them, such as ``model``; none by default.

        Each is a `rm_plugins.models.trained_reward.TrainedReward`.
        """
        return {}

    @property
    def transforms(self) -> dict[str, Transform]:
        """The transforms in its spec, by their path: its own, and those of its members where they are parts of one model."""
        own = {} if self.transform is None else {"transform": self.transform}
        return {**held_by(self, Transform), **own}

    @property
    def identity(self) -> list[Any]:
        """What its scores depend on, as JSON values, without its children: its settings, its model, and its manifest.

        A provider that holds a model overrides this, with digests of weights and rendering instead of paths.
        """
        return [self._settings_with_effect(), None, None]

    def _settings_with_effect(self, *others: str) -> Mapping[str, Any]:
        """Its spec without its children, `keys_without_effect` and `others`; files count by their digests when it was built.

        Without a spec, its attributes count.
        """
        left_out = {re.split(r"[.\[]", path)[0] for path in self.children} | self.keys_without_effect | {"label", *others}
        if self.spec is None:
            settings = {key: value for key, value in held_facts(self).items() if key not in left_out}
        else:
            read = self.spec_as_read or {}
            kept = self.spec.keys() - left_out
            settings = {key: read[key] if key in read else with_digests(self.spec[key]) for key in kept}
            settings |= identities_of_components(self, settings)
        if self.transform is not None:
            written = self.transform.spec
            settings["transform"] = (
                held_facts(self.transform) if written is None else {**written, **(self.transform.spec_as_read or {})}
            )
        return settings

    def __repr__(self) -> str:
        return provider_repr(self)

    def walk(self, path: str = "") -> Iterator[tuple[str, Provider]]:
        """This provider and all providers inside it, each with its path in the spec, outer ones first."""
        yield path, self
        for part, child in self.children.items():
            yield from child.walk(f"{path}.{part}" if path else part)

    def state(self) -> dict[str, Any]:
        """What it has learned while scoring, as JSON values, without its children; empty if it learns nothing."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:  # noqa: B027 - most providers learn nothing
        """Restore what `state` returned."""

    def score(self, samples: Sequence[Sample], *, on_error: OnError | None = None) -> Scores:
        """One score per sample, in their order; an empty batch gives empty scores.

        Args:
            samples: The batch.
            on_error: What a failure becomes in this call; the provider's own `on_error` by default.

        Raises:
            DataError: `samples` is not a list of samples, or a sample is of a kind that cannot be scored.
            ScoringError: The provider failed and `on_error` is ``raise``.
        """
        raises = (on_error or self.on_error) == "raise"
        scores = self._scored(samples, on_error, stops=raises and self.fallback is None)
        errors = self.unhandled(scores) if on_error is None else scores.errors if on_error == "raise" else {}
        if errors:
            raise as_one_error(errors)
        self._note(samples, scores)
        return scores

    async def ascore(self, samples: Sequence[Sample], *, on_error: OnError | None = None) -> Scores:
        """The same as `score`, for callers with an event loop, which it does not block.

        Calls of providers that wait (`concurrent`), or that have parts that do, run at the same time. Providers that compute here run in
        one thread, one after another in the order of the calls. If the caller is cancelled, by a timeout or otherwise, scoring stops:
        requests to servers and async functions are cancelled, and no further part scores. A computation that runs ends first.

        Args:
            samples: The batch.
            on_error: As for `score`.

        Raises:
            DataError: As `score`.
            ScoringError: As `score`.
        """
        waits = any(part.concurrent for _, part in self.walk())
        return await in_thread(partial(self.score, samples, on_error=on_error), waits=waits)

    def attempt(self, samples: Sequence[Sample], *, on_error: OnError | None = None) -> Scores:
        """The scores, with every failed sample in their `errors`: combinators call this for their parts.

        `unhandled` returns those errors that are failures of the combinator as well.

        Args:
            samples: The batch.
            on_error: ``abstain`` if the caller handles every failure; it replaces the provider's own `on_error`.

        Raises:
            DataError: `samples` is not a list of samples.
        """
        scores = self._scored(samples, on_error, stops=False)
        self._note(samples, scores)
        return scores

    def unhandled(self, scores: Scores) -> Mapping[int, RmPluginsError]:
        """The errors of an `attempt` that `on_error` does not turn into abstentions, by row."""
        if self.fallback is not None:
            return self.fallback.unhandled(scores)
        return {} if self.on_error == "abstain" else scores.errors

    def _scored(self, samples: Sequence[Sample], on_error: OnError | None, *, stops: bool) -> Scores:
        """The scores, with those of the fallback where samples failed; `stops` raises the first failure."""
        check_samples(samples)
        if not samples:
            return Scores(np.empty(0))
        scores = self._attempted(samples, stops=stops)
        if scores.errors and self.fallback is not None:
            self._made_up_for(scores.errors, len(samples), f"{self.fallback.label!r} scores them")
            return self._with_fallback(scores, samples, self.fallback, "abstain" if on_error == "abstain" else None)
        if scores.errors and (on_error or self.on_error) == "abstain":
            self._made_up_for(scores.errors, len(samples), "they abstain")
        return scores

    def _note(self, samples: Sequence[Sample], scores: Scores) -> None:
        """Count a scored batch, and call the observer."""
        if not samples:
            return
        self._counted("samples", len(samples))
        self._counted("abstained", int(scores.abstained.sum()))
        if self.observer is not None:
            with self.one_thread:
                self.observer(self, samples, scores)

    def render(self, sample: Sample) -> str:
        """The exact text that is scored, before truncation.

        Raises:
            UnsupportedError: The provider does not render text.
        """
        if self.renderer is not None:
            return str(self.renderer.text(sample))
        raise UnsupportedError(f"The provider {self.label!r} ({self.name}) does not render text.")

    def close(self) -> None:
        """Release what the provider and its children hold: connections, processes."""
        for child in self.children.values():
            child.close()

    def _attempted(self, samples: Sequence[Sample], *, stops: bool) -> Scores:
        """The scores, with failures among the errors; `stops` raises the first failure."""
        pending = list(range(len(samples)))
        errors: dict[int, RmPluginsError] = {}
        scored: list[Scores] = []
        while pending:
            check_awaited()
            try:
                scores = self._checked(samples if not errors else [samples[row] for row in pending], stops=stops)
            except (ScoringError, DataError) as error:
                self._signed(error)
                if stops:
                    raise
                # Rows that the batch does not have are ignored.
                failed = {pending[place] for place in error.rows or () if 0 <= place < len(pending)} or set(pending)
                with self.one_thread:
                    self.unnamed_failures += len(failed) == len(pending) > 1
                errors.update(dict.fromkeys(failed, error))
                pending = [row for row in pending if row not in failed]
            else:
                if not errors:
                    return scores
                scored.append(scores.scattered(pending, len(samples)))
                break
        nothing = Scores(np.full(len(samples), np.nan), errors=errors)
        return joined([*scored, nothing])

    def _checked(self, samples: Sequence[Sample], *, stops: bool) -> Scores:
        # The one place where foreign exceptions of a provider and its transform become ours.
        try:
            check_group_columns(samples, (by for transform in self.transforms.values() for by in transform.groupings))
            with self.one_thread if self.scores_alone else nullcontext():
                scores = self.score_batch(samples)
            scores = finite_scores(scores, len(samples), f"The provider {self.called}")
            if self.transform is not None and not (stops and scores.errors):
                with self.one_thread:  # it may learn from the scores
                    scores = reshaped_scores(scores, samples, self.transform, self.called)
            for error in scores.errors.values():
                self._signed(error)
            if stops and scores.errors:
                raise as_one_error(scores.errors)
            return scores
        except RmPluginsError:
            raise
        except Exception as error:
            raise ScoringError(f"The provider {self.called} failed: {type(error).__name__}: {error}") from error

    def _with_fallback(self, scores: Scores, samples: Sequence[Sample], fallback: Provider, on_error: OnError | None) -> Scores:
        """The scores, with the fallback's for the rows that have errors."""
        rows = sorted(scores.errors)
        self._counted("fallbacks", len(rows))
        instead = fallback.attempt([samples[row] for row in rows], on_error=on_error)
        # Its details are of another reward than those of the same names here, so it becomes a part.
        stands_in = Scores(
            instead.values, {}, instead.metadata, errors=instead.errors, parts={"fallback": instead}, tokens=instead.tokens
        )
        return joined([replace(scores, errors={}), stands_in.scattered(rows, len(samples))])

    def _signed(self, error: RmPluginsError) -> None:
        """Record in an error which provider it came from, unless an inner one has done so."""
        if error.provider is None:
            error.provider, error.path = self.label, self.where or None

    def _made_up_for(self, errors: Mapping[int, RmPluginsError], size: int, remedy: str) -> None:
        """Count and log failures that are not raised."""
        by_error = Counter(map(id, errors.values()))
        self._counted("errors", len(by_error))
        for error in {id(error): error for error in errors.values()}.values():
            logger.warning("%d of %d samples failed, %s: %s", by_error[id(error)], size, remedy, error)
