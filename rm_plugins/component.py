"""The base classes of the parts of a spec besides providers: `Component`, and the `Transform` and `Aggregate` that a provider uses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, TypeAlias

from rm_plugins.constructor_schema import held_by
from rm_plugins.errors import PluginError
from rm_plugins.held_facts import held_facts
from rm_plugins.samples import Sample
from rm_plugins.scores import FloatArray


class LocalPath:
    """Marks a constructor's text argument that may be a path, relative to the spec file."""


ModelSource: TypeAlias = Annotated[str, LocalPath]
"""A model folder or a model id of the hub."""


def check_class_name(cls: type[Any], kind: str) -> None:
    """Refuse a class without a name, unless it is abstract.

    Raises:
        PluginError: It has no name.
    """
    is_abstract = any(getattr(getattr(cls, name, None), "__isabstractmethod__", False) for name in dir(cls))
    if not is_abstract and not isinstance(getattr(cls, "name", None), str):
        raise PluginError(
            f"The {kind} class {cls.__module__}.{cls.__qualname__} has no name. Specs and messages need one: set `name` in the class, "
            f"such as `name = 'my-{kind}'`."
        )


class Component(ABC):
    """A part of a spec that is written as ``NAME`` or ``{name: NAME, ...}``.

    The annotated keyword arguments of its constructor are its schema in a spec.
    """

    kind: ClassVar[str]
    """What it is registered as, such as ``transform``."""

    name: ClassVar[str]

    keys_without_effect: ClassVar[frozenset[str]] = frozenset()
    """The keys of its spec that do not affect scores, such as a timeout; they are not part of its `identity`."""

    spec: Mapping[str, Any] | None = None
    """The spec that it was built from, ``{"name": ..., ...}``; None where it was made in Python."""
    spec_as_read: Mapping[str, Any] | None = None
    """The same without the name, with the digests that files had when it was built."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        check_class_name(cls, getattr(cls, "kind", "component"))

    @property
    def identity(self) -> Any:
        """What its effect depends on, as JSON values: its settings without `keys_without_effect`, also of the components in its spec."""
        if self.spec is None:
            return held_facts(self)
        read = {**self.spec, **(self.spec_as_read or {})}
        settings = {key: value for key, value in read.items() if key not in self.keys_without_effect}
        return settings | identities_of_components(self, settings)


def identities_of_components(holder: object, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The identities of the components that are written out in some settings of their holder, by key."""
    held = held_by(holder, Component)
    return {key: held[key].identity for key, written in settings.items() if key in held and isinstance(written, Mapping)}


class Transform(Component):
    """Reshapes a provider's scores: z-score, clip, scale."""

    kind: ClassVar[str] = "transform"

    @abstractmethod
    def __call__(self, values: FloatArray, samples: Sequence[Sample]) -> FloatArray:
        """Reshape `values` (float64 [N], NaN where abstained, which must stay NaN); returns float64 [N].

        Raises:
            ScoringError: The scores, or those of the `rows` that the error names, cannot be reshaped. The others are then reshaped again.
            DataError: Likewise, because of what a sample holds.
        """

    depends_on_batch: ClassVar[bool] = False
    """Whether a reshaped score depends on the other samples of its group (`rm_plugins.groups`)."""
    group: str | None = None
    """Where it does: the column that names a sample's group, or None where the samples of a prompt are a group."""

    @property
    def groupings(self) -> tuple[str | None, ...]:
        """The `group` of this transform and of those in its spec, of each that depends on the batch; empty if none does."""
        own = (self.group,) if self.depends_on_batch else ()
        inner = (by for transform in held_by(self, Transform).values() for by in transform.groupings)
        return tuple(dict.fromkeys((*own, *inner)))

    def bind(self, provider: Any) -> None:
        """Called once with the provider whose scores are reshaped, which may know statistics of its scores.

        Args:
            provider: A `rm_plugins.provider.Provider`, which imports this module.
        """

    def state(self) -> dict[str, Any]:
        """What it has learned while scoring, as JSON values; checkpoints keep it. Empty if it learns nothing."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned."""


class Aggregate(Component):
    """Combines the scores of an ensemble's members into one."""

    kind: ClassVar[str] = "aggregate"

    needs_common_scale: ClassVar[bool] = False
    """Whether it needs a common scale: members whose scores have the same zero and unit. If some have no transform, the ensemble warns."""

    @abstractmethod
    def __call__(self, members: FloatArray) -> FloatArray:
        """Combine `members` (float64 [K, N], NaN where one gave no score, but not in a whole column); returns float64 [N]."""

    def bind(self, members: int) -> None:
        """Called once with the number of members.

        Raises:
            SpecError: It does not fit this number.
        """
