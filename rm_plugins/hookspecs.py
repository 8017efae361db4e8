"""The hooks through which everything is registered, including the built-in parts of rm-plugins.

A plug-in is a module or object whose functions are marked with `hookimpl`. Declare it under the entry-point group ``rm_plugins``::

    from rm_plugins import hookimpl

    @hookimpl
    def rm_register_providers():
        return [MyProvider]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rm_plugins.hooks import hookspec

if TYPE_CHECKING:
    import click

    from rm_plugins.comparisons import Comparer
    from rm_plugins.component import Aggregate, Transform
    from rm_plugins.jobs.job_engine import JobEngine
    from rm_plugins.judges import Judge
    from rm_plugins.losses import Loss, Regularizer
    from rm_plugins.protocols import Protocol
    from rm_plugins.provider import Provider
    from rm_plugins.samples import Sample
    from rm_plugins.scores import Scores
    from rm_plugins.server.dialects import Dialect
    from rm_plugins.suites import Suite


class HookSpecs:
    """Every hook. A registered class has a ``name: ClassVar[str]`` in kebab-case."""

    @hookspec
    def rm_register_providers(self) -> Sequence[type[Provider]]:  # type: ignore[empty-body]
        """Reward providers: subclasses of `rm_plugins.Provider`, used as ``provider: NAME``."""

    @hookspec
    def rm_register_losses(self) -> Sequence[type[Loss]]:  # type: ignore[empty-body]
        """Reward-model losses: subclasses of `rm_plugins.losses.Loss`, used as ``RewardConfig(loss=NAME)``."""

    @hookspec
    def rm_register_regularizers(self) -> Sequence[type[Regularizer]]:  # type: ignore[empty-body]
        """Terms added to a loss: `rm_plugins.losses.Regularizer`, used as ``RewardConfig(regularizers={NAME: WEIGHT})``."""

    @hookspec
    def rm_register_aggregates(self) -> Sequence[type[Aggregate]]:  # type: ignore[empty-body]
        """Ways to combine the members of an ensemble: subclasses of `rm_plugins.Aggregate`, used as ``aggregate: NAME``."""

    @hookspec
    def rm_register_transforms(self) -> Sequence[type[Transform]]:  # type: ignore[empty-body]
        """Transforms of scores: subclasses of `rm_plugins.Transform`, used as ``transform: NAME``."""

    @hookspec
    def rm_register_protocols(self) -> Sequence[type[Protocol]]:  # type: ignore[empty-body]
        """Protocols of remote scorers: subclasses of `rm_plugins.protocols.Protocol`, used as ``protocol: NAME``."""

    @hookspec
    def rm_register_comparers(self) -> Sequence[type[Comparer]]:  # type: ignore[empty-body]
        """Ways to compare two answers: subclasses of `rm_plugins.comparisons.Comparer`, used as ``comparer: NAME``."""

    @hookspec
    def rm_register_judges(self) -> Sequence[type[Judge]]:  # type: ignore[empty-body]
        """Language models that are asked questions: subclasses of `rm_plugins.judges.Judge`, used as ``judge: NAME``."""

    @hookspec
    def rm_register_suites(self) -> Sequence[type[Suite]]:  # type: ignore[empty-body]
        """Reward benchmarks: subclasses of `rm_plugins.suites.Suite`, used as ``rm-plugins evaluate --suite NAME``."""

    @hookspec
    def rm_register_dialects(self) -> Sequence[type[Dialect]]:  # type: ignore[empty-body]
        """Endpoints of ``rm-plugins serve`` that existing clients can call: subclasses of `rm_plugins.server.dialects.Dialect`."""

    @hookspec
    def rm_register_engines(self) -> Sequence[type[JobEngine]]:  # type: ignore[empty-body]
        """Where scoring jobs run: subclasses of `rm_plugins.jobs.job_engine.JobEngine`, used as ``rm-plugins score --engine NAME``."""

    @hookspec
    def rm_register_commands(self) -> Sequence[click.Command]:  # type: ignore[empty-body]
        """Commands of the ``rm-plugins`` program. Import heavy modules inside the command's function, not at the top of its file."""

    @hookspec
    def rm_scored(self, provider: Provider, samples: Sequence[Sample], scores: Scores) -> None:
        """Called after a provider that `rm_plugins.load` made has scored a batch. An exception that it raises stops the scoring, as a
        `rm_plugins.errors.PluginError` that names the plug-in.
        """
