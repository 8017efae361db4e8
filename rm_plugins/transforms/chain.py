"""Transforms applied one after another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from rm_plugins.component import Transform
from rm_plugins.errors import DataError, SpecError
from rm_plugins.provider import Provider
from rm_plugins.samples import Sample
from rm_plugins.scores import FloatArray
from rm_plugins.transforms.fitted import FittedTransform


class Chain(Transform):
    """Transforms applied one after another; a list is the short form.

    Args:
        transforms: The transforms, in the order in which they are applied.
    """

    name: ClassVar[str] = "chain"

    def __init__(self, *, transforms: Sequence[Transform]) -> None:
        self.transforms = list(transforms)

    def bind(self, provider: Provider) -> None:
        """Bind every one of them; only the first one gets the provider's statistics, which are of the scores before it."""
        for place, transform in enumerate(self.transforms):
            try:
                if place and isinstance(transform, FittedTransform):
                    transform.settle()
                else:
                    transform.bind(provider)
            except SpecError as error:
                raise error.inside(f"transforms[{place}]") from error.__cause__

    def __call__(self, values: FloatArray, samples: Sequence[Sample]) -> FloatArray:
        """Apply them in their order."""
        for transform in self.transforms:
            values = transform(values, samples)
        return values

    def state(self) -> dict[str, Any]:
        """The state of those that have one, by their position."""
        return {str(place): state for place, transform in enumerate(self.transforms) if (state := transform.state())}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore the state of each.

        Raises:
            DataError: It is the state of another chain.
        """
        if state.keys() != self.state().keys():
            here = ", ".join(self.state()) or "none"
            raise DataError(f"the state is of the transforms {', '.join(state)} of a chain, but in this one {here} learn")
        for place, learned in state.items():
            self.transforms[int(place)].load_state(learned)
