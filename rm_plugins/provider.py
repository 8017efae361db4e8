"""What every author of a reward meets: `Provider`, and the `Transform` and `Aggregate` that a spec gives it."""

from __future__ import annotations

import logging
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

import numpy as np

from rm_plugins.constructor_schema import held_by
from rm_plugins.errors import DataError, RmPluginsError, ScoringError, UnsupportedError, as_one_error
from rm_plugins.files import with_digests
from rm_plugins.held_facts import held_facts
from rm_plugins.one_thread import OneThread
from rm_plugins.provider_repr import provider_repr
from rm_plugins.samples import Sample, check_samples
from rm_plugins.scores import FloatArray, Scores, joined

logger = logging.getLogger(__name__)

OnError: TypeAlias = Literal["raise", "abstain"]


class LocalPath:
    """Marks a constructor's text argument that may be a path, which a spec file gives relative to itself."""


ModelSource: TypeAlias = Annotated[str, LocalPath]
"""A model folder or a model id of the hub."""


class Component(ABC):
    """A part of a spec that is written as ``NAME`` or ``{name: NAME, ...}``.

    Its constructor's annotated keyword arguments are its schema there.
    """

    kind: ClassVar[str]
    """What it is registered as, such as ``transform``."""

    name: ClassVar[str]

    spec: Mapping[str, Any] | None = None
    """What it was made from, ``{"name": ..., ...}``; None where it was made in Python."""
    spec_as_read: Mapping[str, Any] | None = None
    """The same without its name, with the digests that files had when it was made."""


class Transform(Component):
    """Reshapes a provider's scores: z-score, clip, scale."""

    kind: ClassVar[str] = "transform"

    @abstractmethod
    def __call__(self, values: FloatArray, samples: Sequence[Sample]) -> FloatArray:
        """Reshape `values` (float64 [N], NaN where abstained, which must stay NaN); returns float64 [N]."""

    depends_on_batch: ClassVar[bool] = False
    """Whether what a score becomes depends on the other samples of its batch."""

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


def transforms_of(holder: Provider | Transform) -> dict[str, Transform]:
    """The transforms of a provider, or of a transform, by their path in its spec, in the order in which they are applied.

    >>> from rm_plugins.transforms import Chain, Scale
    >>> list(transforms_of(Chain(transforms=[Scale(), Scale()])))
    ['transforms[0]', 'transforms[1]']
    """
    return holder.transforms if isinstance(holder, Provider) else held_by(holder, Transform)


class Provider(ABC):
    """Turns samples into scores.

    A subclass sets `name` and implements `score_batch`; its constructor's annotated keyword arguments are its schema in a
    spec. What every provider shares (`transform`, `on_error`, counting, checking) lives here, in `score`.

    Any number of threads may call `score`: one at a time is let into `score_batch`, unless the provider is `concurrent`, and into its
    transform and its observer.
    """

    name: ClassVar[str]

    depends_on_batch: ClassVar[bool] = False
    """Whether a sample's score depends on the others of its batch, its children and transforms left aside."""
    keys_without_effect: ClassVar[frozenset[str]] = frozenset()
    """The keys of its spec that change no score, such as where it computes or how it is reached: no part of its `identity`."""
    metrics: ClassVar[tuple[str, ...]] = ()
    """Entries of every batch's `Scores.metadata`, each a number, that trainers log beside the reward."""
    renderer: Any = None
    """What makes its samples' text and token ids in this process, a `rm_plugins.rendering.render.Renderer`; None where nothing does."""
    label: str = ""
    """What this reward is called in metrics and messages; the provider's name unless something better is known."""
    on_error: OnError = "raise"
    """What a failure becomes: the error itself, or NaN."""
    fallback: Provider | None = None
    """Scores the samples that failed, before `on_error` is asked."""
    transform: Transform | None = None
    observer: Callable[[Provider, Sequence[Sample], Scores], None] | None = None
    concurrent: bool = False
    """Whether scoring is waiting rather than computing here, so that others may score meanwhile; its `score_batch` must then be
    safe to call in several threads at once."""
    unnamed_failures: int = 0
    """How often an error named none of the rows of a batch or all of them, so that it failed as a whole."""
    spec: Mapping[str, Any] | None = None
    """What it was made from, every nested spec written out; None where it was made in Python."""
    spec_as_read: Mapping[str, Any] | None = None
    """Its own keys of that, with the digests that files had when it was made."""
    where: str = ""
    """Its place in the spec that it was loaded from: the file, and the path inside, such as ``members[1].reward``."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "label" not in cls.__dict__ and isinstance(cls.__dict__.get("name"), str):
            cls.label = cls.__dict__["name"]

    @abstractmethod
    def score_batch(self, samples: Sequence[Sample]) -> Scores:
        """Score a non-empty batch; NaN abstains, and what failed is among the `Scores.errors`.

        Raises:
            ScoringError: The batch, or the `rows` that the error names, could not be scored. The other rows are then asked for again,
                so that a provider which has scored them returns the errors instead.
        """

    @property
    def counts(self) -> Counter[str]:
        """How often what happened so far: ``samples``, ``abstained``, ``errors``, ``fallbacks``."""
        counts: Counter[str] = self.__dict__.setdefault("_counts", Counter())
        return counts

    def _counted(self, what: str, number: int = 1) -> None:
        """Add to `counts`, from any thread."""
        with self.one_thread:
            self.counts[what] += number

    @property
    def one_thread(self) -> OneThread:
        """Lets one thread in at a time: around what of this provider changes while it scores."""
        alone: OneThread = self.__dict__.setdefault("_alone", OneThread())
        return alone

    @property
    def called(self) -> str:
        """What messages call it: its label and, inside another spec, its place there."""
        return f"{self.label!r} ({self.where})" if self.where else repr(self.label)

    @property
    def children(self) -> dict[str, Provider]:
        """The providers that it is made of, by their path in its spec, its fallback among them.

        By default they are those of its constructor's arguments that are annotated as providers and are attributes of the same
        names. One that keeps them elsewhere overrides this.
        """
        children: dict[str, Provider] = held_by(self, Provider)
        return children if self.fallback is None else {**children, "on_error.fallback": self.fallback}

    @property
    def models(self) -> Mapping[str, Any]:
        """The trained models that it holds itself, by the keys of its spec that name them, such as ``model``; none by default.

        Each is a `rm_plugins.models.trained_reward.TrainedReward`.
        """
        return {}

    @property
    def transforms(self) -> dict[str, Transform]:
        """The transforms that it was made with, by their path in its spec: its own, and those of what it combines itself."""
        own = {} if self.transform is None else {"transform": self.transform}
        return {**held_by(self, Transform), **own}

    @property
    def identity(self) -> list[Any]:
        """What makes its scores, as JSON has it, its children left aside: its settings, its model, and its manifest.

        A provider that holds a model overrides this: the weights and the rendering stand in place of where they lie.
        """
        return [self._settings_with_effect(), None, None]

    def _settings_with_effect(self, *others: str) -> Mapping[str, Any]:
        """Its spec without its children, `keys_without_effect`, and some other keys; of files, the digests that they had when it was made.

        Without a spec, what it holds.
        """
        left_out = {re.split(r"[.\[]", path)[0] for path in self.children} | self.keys_without_effect | {"label", *others}
        if self.spec is None:
            settings = {key: value for key, value in held_facts(self).items() if key not in left_out}
        else:
            read = self.spec_as_read or {}
            kept = self.spec.keys() - left_out
            settings = {key: read[key] if key in read else with_digests(self.spec[key]) for key in kept}
        if self.transform is not None:
            written = self.transform.spec
            settings["transform"] = (
                held_facts(self.transform) if written is None else {**written, **(self.transform.spec_as_read or {})}
            )
        return settings

    def __repr__(self) -> str:
        return provider_repr(self)

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
            DataError: Something in the batch is not a `Sample`, or cannot be scored for what it is.
            ScoringError: The provider failed and `on_error` is ``raise``.
        """
        raises = (on_error or self.on_error) == "raise"
        scores = self._scored(samples, on_error, stops=raises and self.fallback is None)
        errors = self.unhandled(scores) if on_error is None else scores.errors if on_error == "raise" else {}
        if errors:
            raise as_one_error(errors)
        self._note(samples, scores)
        return scores

    def attempt(self, samples: Sequence[Sample], *, on_error: OnError | None = None) -> Scores:
        """The scores, with every failure of a sample among their `errors`: what rewards that are made of others call.

        Which of the errors are failures of the whole as well, `unhandled` says.

        Args:
            samples: The batch.
            on_error: ``abstain`` where the caller makes up for every failure, whatever the provider's own `on_error`.

        Raises:
            DataError: Something in the batch is not a `Sample`.
        """
        scores = self._scored(samples, on_error, stops=False)
        self._note(samples, scores)
        return scores

    def unhandled(self, scores: Scores) -> Mapping[int, RmPluginsError]:
        """The errors of an `attempt` that `on_error` does not make into abstentions, by row."""
        if self.fallback is not None:
            return self.fallback.unhandled(scores)
        return {} if self.on_error == "abstain" else scores.errors

    def _scored(self, samples: Sequence[Sample], on_error: OnError | None, *, stops: bool) -> Scores:
        """The scores, in which the fallback stands in for what failed; `stops` raises the first failure, for it ends the call."""
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
        """Count a scored batch, and tell the observer of it."""
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
            UnsupportedError: The provider does not score a text of its own making.
        """
        if self.renderer is not None:
            return str(self.renderer.text(sample))
        raise UnsupportedError(f"The provider {self.label!r} ({self.name}) has no text of its own to render.")

    def close(self) -> None:
        """Give back what the provider and those that it is made of hold: connections, processes."""
        for child in self.children.values():
            child.close()

    def _attempted(self, samples: Sequence[Sample], *, stops: bool) -> Scores:
        """The scores, of which those that failed are errors; `stops` raises the first failure, for nothing else is wanted then."""
        pending = list(range(len(samples)))
        errors: dict[int, RmPluginsError] = {}
        scored: list[Scores] = []
        while pending:
            try:
                scores = self._checked(samples if not errors else [samples[row] for row in pending], stops=stops)
            except (ScoringError, DataError) as error:
                self._signed(error)
                if stops:
                    raise
                # Rows that the batch does not have say nothing about those that it has.
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
        # The one boundary at which the foreign exceptions of a provider and its transform become ours.
        try:
            with nullcontext() if self.concurrent else self.one_thread:
                scores = self.score_batch(samples)
            scores = self._with_wrong_values_failed(scores, samples)
            for error in scores.errors.values():
                self._signed(error)
            if stops and scores.errors:
                raise as_one_error(scores.errors)
            return scores if self.transform is None else self._reshaped(scores, samples, self.transform)
        except RmPluginsError:
            raise
        except Exception as error:
            raise ScoringError(f"The provider {self.called} failed: {type(error).__name__}: {error}") from error

    def _reshaped(self, scores: Scores, samples: Sequence[Sample], transform: Transform) -> Scores:
        with self.one_thread:  # it may learn from what it is given
            values = transform(scores.values, samples)
        reshaped = self._with_wrong_values_failed(Scores(values), samples)
        errors = {**scores.errors, **reshaped.errors}
        revived = np.flatnonzero(scores.abstained & ~reshaped.abstained).tolist()
        if revived:
            error = ScoringError(
                f"The transform {transform.name!r} of the provider {self.called} made a score of {len(revived)} "
                f"abstentions (first: item {revived[0]}). NaN must stay NaN.",
                rows=revived,
            )
            errors = error.by_row | errors
        return replace(scores, values=reshaped.values, details={**scores.details, "raw": scores.values}, errors=errors)

    def _with_wrong_values_failed(self, scores: Scores, samples: Sequence[Sample]) -> Scores:
        """The scores with an error where one is infinite."""
        if len(scores) != len(samples):
            raise ScoringError(
                f"The provider {self.called} returned {len(scores)} scores for {len(samples)} samples; it must return "
                "exactly one per sample, NaN where it abstains."
            )
        infinite = np.flatnonzero(np.isinf(scores.values)).tolist()
        if not infinite:
            return scores
        error = ScoringError(
            f"The provider {self.called} returned an infinite score for {len(infinite)} of {len(samples)} samples "
            f"(first: item {infinite[0]}). A reward must be finite, or NaN to abstain.",
            rows=infinite,
        )
        return replace(scores, errors=error.by_row | dict(scores.errors))

    def _with_fallback(self, scores: Scores, samples: Sequence[Sample], fallback: Provider, on_error: OnError | None) -> Scores:
        """The scores with those of the fallback where there are errors."""
        rows = sorted(scores.errors)
        self._counted("fallbacks", len(rows))
        instead = fallback.attempt([samples[row] for row in rows], on_error=on_error)
        # What is said of it beside its score is of other things than what has the same names here: it is a part.
        stands_in = Scores(
            instead.values, {}, instead.metadata, errors=instead.errors, parts={"fallback": instead}, tokens=instead.tokens
        )
        return joined([replace(scores, errors={}), stands_in.scattered(rows, len(samples))])

    def _signed(self, error: RmPluginsError) -> None:
        """Have an error say which provider it came from, unless one inside has."""
        if error.provider is None:
            error.provider, error.path = self.label, self.where or None

    def _made_up_for(self, errors: Mapping[int, RmPluginsError], size: int, remedy: str) -> None:
        """Count and log failures that are not raised."""
        by_error = Counter(map(id, errors.values()))
        self._counted("errors", len(by_error))
        for error in {id(error): error for error in errors.values()}.values():
            logger.warning("%d of %d samples failed, %s: %s", by_error[id(error)], size, remedy, error)
