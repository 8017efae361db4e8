"""Measures the statistics of a spec's transforms on the reward's own scores, and writes them into the spec."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from rm_plugins.component import Transform
from rm_plugins.engine.score_cache import MEMORY
from rm_plugins.errors import DataError, RmPluginsError, SpecError
from rm_plugins.provider import Provider, transforms_of
from rm_plugins.providers.combinators.cached import Cached
from rm_plugins.providers.combinators.ensemble import Ensemble
from rm_plugins.providers.combinators.fallback import Fallback
from rm_plugins.registry import Registry, default_registry
from rm_plugins.samples import Sample
from rm_plugins.scores import FloatArray
from rm_plugins.spec import SpecBuilder, join_path
from rm_plugins.transforms import Chain, FittedTransform


@dataclass(frozen=True, slots=True)
class Calibrated:
    """The statistics of one transform.

    Args:
        path: Its path in the spec.
        transform: Its name.
        statistics: What its spec has now.
        scores: The number of scores that they were measured on.
        abstained: The number of samples without a score.
    """

    path: str
    transform: str
    statistics: Mapping[str, float]
    scores: int
    abstained: int


class Calibration:
    """A reward whose transforms take their statistics from the first batch that they reshape instead of from their spec.

    Args:
        spec: Text, a path or a mapping, as `rm_plugins.load` takes it.
        transform: Used where no transform in the spec takes statistics. Each member of an ensemble gets it after its own transform, for
            an `ensemble` of providers and for one model with several members. Without an ensemble, the reward itself gets it.
        registry: Where names are looked up; the installed plug-ins by default.

    Raises:
        SpecError: The spec is wrong, or a transform in it learns while scoring.
    """

    def __init__(
        self,
        spec: str | Path | Mapping[str, Any],
        *,
        transform: str | Mapping[str, Any] = "zscore",
        registry: Registry | None = None,
    ) -> None:
        self.registry = registry or default_registry()
        self.transform = transform
        self._build(spec)

    def fit(self, samples: Sequence[Sample], on_scored: Callable[[Provider], None] | None = None) -> list[Calibrated]:
        """Score samples and measure the statistics; inner transforms are calibrated before outer ones.

        A part that would see only some samples because others are scored by another part (a fallback) or are in a cache is calibrated
        with all of them.

        Args:
            samples: The samples to calibrate with; each transform needs 30 scores that differ.
            on_scored: Called whenever a part of the reward has scored.

        Raises:
            DataError: There is no sample, or a transform has too few scores, or only equal ones.
            ScoringError: The reward failed.
            SpecError: The transform that members would get takes no statistics.
        """
        if not samples:
            raise DataError("There is no sample to calibrate with.")
        if not self._fitting:
            self._give_transforms(samples[0])
        parts = dict(self.provider.walk())
        for part in parts.values():
            part.observer = None if on_scored is None else lambda scored, samples, scores: on_scored(scored)
        for path, part in reversed(parts.items()):  # inner before outer, which would show it only some of the samples
            if _sees_some(path, parts) and any(_fittings_in(inner) for _, inner in part.walk()):
                part.score(samples)
        self.provider.score(samples)
        for part in reversed(parts.values()):
            # A part behind a closed gate was given no sample.
            if any(fitting.statistics is None for fitting in _fittings_in(part)):
                part.score(samples)
        return [fitting.calibrated() for fitting in self._fitting]

    def spec(self, folder: Path) -> dict[str, Any]:
        """The whole spec with the measured statistics, for a file in `folder`.

        Nested files are written out; local paths are relative to `folder` where they lead into it, else absolute.
        """
        written: dict[str, Any] = _portable(self.provider.spec, folder.resolve())
        return written

    def _build(self, spec: str | Path | Mapping[str, Any]) -> None:
        self._fitting: list[_Fitting] = []
        self._builder = _CalibratingBuilder(self.registry, Path.cwd(), fitting=self._fitting)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The aggregate .* needs a common scale")  # they will have one
            self.provider = self._builder.provider(spec, "")

    def _give_transforms(self, sample: Sample) -> None:
        several = self._name_member_transforms(sample)
        if several:  # a model is built with its members' transforms
            spec = _written(self.provider)
            del self.provider  # two copies of a large model may not fit into memory
            self._build(spec)
        ensembles = [(path, part) for path, part in self.provider.walk() if isinstance(part, Ensemble)]
        for path, ensemble in ensembles:
            for place, member in enumerate(ensemble.members):
                self._give(member, f"{path}.members[{place}]" if path else f"members[{place}]")
        if not several and not ensembles:
            self._give(self.provider, "")

    def _name_member_transforms(self, sample: Sample) -> bool:
        """Write a transform for each member into the specs of models that have several; returns whether there are any."""
        named = False
        for _, part in self.provider.walk():
            if (count := _members_of_one_model(part, sample)) > 1:
                _written(part)["member_transforms"] = [self.transform] * count
                named = True
        return named

    def _give(self, provider: Provider, path: str) -> None:
        before = provider.transform
        place = "transform" if before is None else "transform.transforms[1]"
        given = self._builder.component("transform", self.transform, f"{path}.{place}" if path else place)
        if not isinstance(given, _Fitting):
            raise SpecError(f"{given.name!r} takes no statistics, so there is nothing to calibrate.", key="transform")
        given.bind(provider)
        provider.transform = given if before is None else Chain(transforms=[before, given])
        written = given.spec if before is None else {"name": Chain.name, "transforms": [before.spec, given.spec]}
        provider.transform.spec = _written(provider)["transform"] = written


class _CalibratingBuilder(SpecBuilder):
    """Builds transforms that fit themselves, and remembers which texts were local paths."""

    def __init__(self, *arguments: Any, fitting: list[_Fitting], at: str = "") -> None:
        super().__init__(*arguments)
        self.fitting = fitting
        self.at = at

    def inside(self, file: Path, path: str, reward: str = "") -> SpecBuilder:
        builder = super().inside(file, path, reward)
        at = join_path(self.at, path) if path else self.at
        return _CalibratingBuilder(
            builder.registry, builder.folder, builder.source, builder.within, fitting=self.fitting, at=at
        )

    def from_mapping(self, spec: Mapping[str, Any], path: str) -> Provider:
        if spec.get("provider") != Cached.name:
            return super().from_mapping(spec, path)
        provider = super().from_mapping({**spec, "path": MEMORY}, path)  # without the file: what is scored now must not be kept
        _written(provider)["path"] = spec.get("path", MEMORY)
        return provider

    def component(self, kind: str, spec: object, path: str) -> Any:
        built = super().component(kind, spec, path)
        if isinstance(built, Transform) and built.state():
            raise self.error(
                path,
                f"{built.name!r} learns while scoring and cannot be calibrated beforehand. Remove `running`, or the transform.",
            )
        if not isinstance(built, FittedTransform) or built.spec is None:
            return built
        fitting = _Fitting(built, join_path(self.at, path) if self.at else path)
        self.fitting.append(fitting)
        return fitting

    def local(self, value: Any, path: str) -> Any:
        resolved = super().local(value, path)
        return _LocalText(resolved) if isinstance(resolved, str) and Path(resolved).is_absolute() else resolved


class _LocalText(str):
    """The absolute path of a file or folder."""


class _Fitting(Transform):
    """A transform that measures its statistics on the first scores that it gets, and then reshapes them."""

    name: ClassVar[str] = "fitting"

    def __init__(self, transform: FittedTransform, path: str) -> None:
        self._transform = transform
        self._called = "a reward"
        self.path = path
        self.spec = transform.spec
        self.statistics: Mapping[str, float] | None = None
        self.scores = 0
        self.abstained = 0

    def bind(self, provider: Provider) -> None:
        self._called = provider.called

    def __call__(self, values: FloatArray, samples: Sequence[Sample]) -> FloatArray:
        if self.statistics is None:
            try:
                self._transform.check_scores(values)
                self.statistics = self._transform.fit(values)
            except RmPluginsError as error:
                raise DataError(
                    f"{self.path}: {self._transform.name!r} of {self._called} cannot be calibrated: {error}"
                ) from error
            self.abstained = int(np.isnan(values).sum())
            self.scores = len(values) - self.abstained
            # The spec of the outer provider has this same mapping.
            written = _written(self)
            written.pop("reference", None)
            written.update(self.statistics)
        return self._transform(values, samples)

    def calibrated(self) -> Calibrated:
        if self.statistics is None:
            raise DataError(
                f"{self.path}: {self._transform.name!r} of {self._called} cannot be calibrated: it was given no scores."
            )
        return Calibrated(self.path, self._transform.name, dict(self.statistics), self.scores, self.abstained)


def _written(part: Provider | Transform) -> dict[str, Any]:
    """The spec of a part that the builder has built; the same mapping is in the spec of the outer provider."""
    assert isinstance(part.spec, dict)
    return part.spec


def _fittings_in(part: Provider | Transform) -> list[_Fitting]:
    """The transforms to calibrate of a part itself, without its children."""
    fittings: list[_Fitting] = []
    for transform in transforms_of(part).values():
        fittings += [transform] if isinstance(transform, _Fitting) else _fittings_in(transform)
    return fittings


def _sees_some(path: str, parts: Mapping[str, Provider]) -> bool:
    """Whether a part only gets the samples that another part did not score, or that are not in a cache."""
    if path.endswith("on_error.fallback"):
        return True
    outer, _, name = path.rpartition(".")
    around = parts.get(outer) if path else None
    return isinstance(around, Cached) or (isinstance(around, Fallback) and name != "members[0]")


def _members_of_one_model(provider: Provider, sample: Sample) -> int:
    """The number of members of a provider that could each have a transform."""
    if "member_transforms" not in inspect.signature(type(provider)).parameters:
        return 0
    return sum(part.kind == "member" for part in provider.score([sample]).parts.values())


def _portable(value: Any, folder: Path) -> Any:
    if isinstance(value, _LocalText):
        path = Path(value).parent.resolve() / Path(value).name
        return f"./{path.relative_to(folder)}" if path.is_relative_to(folder) else str(path)
    if isinstance(value, Mapping):
        return {key: _portable(item, folder) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_portable(item, folder) for item in value]
    return value
