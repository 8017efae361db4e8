"""What a trainer passes to a reward in addition to samples: its state, its logging hooks, the environments of an agent."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from rm_plugins.samples import Sample

OF_THE_RUN = ("environments", "trainer_state")
"""What TRL passes that changes during training: it is not a column of a sample, and scores that depend on it cannot be cached."""


@dataclass(frozen=True, slots=True)
class HandedOver:
    """What one call of a trainer passes, for the functions that name it as parameters.

    Args:
        samples: The batch of the call, [N].
        whole: Keyword arguments that are the same for every part of the batch.
        of_rows: Keyword arguments that depend on which rows a function scores; each is made from the rows' numbers.
    """

    samples: Sequence[Sample]
    whole: Mapping[str, Any]
    of_rows: Mapping[str, Callable[[Sequence[int]], Any]]
    _rows: Mapping[int, int] = field(init=False)

    def __post_init__(self) -> None:
        # By id, as two rows may be equal; the batch keeps its samples alive, so that no other object gets the same id.
        object.__setattr__(self, "_rows", {id(sample): row for row, sample in enumerate(self.samples)})

    def has(self, sample: Sample) -> bool:
        """Whether a sample is a row of the batch, rather than one that a provider made itself."""
        return id(sample) in self._rows

    def to(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """The keyword arguments for a function that scores some of the batch, in any order.

        Samples that a provider made itself get only those of the whole batch; ask for them separately from rows of the batch.
        """
        if not all(map(self.has, samples)):
            return dict(self.whole)
        rows = [self._rows[id(sample)] for sample in samples]
        return {**self.whole, **{name: make(rows) for name, make in self.of_rows.items()}}


_handed_over: ContextVar[HandedOver | None] = ContextVar("rm_plugins_handed_over", default=None)


@contextmanager
def handed_over(handed: HandedOver) -> Iterator[None]:
    """Within it, functions get what they name of this, however deep they are inside other providers.

    >>> samples = [Sample("Q", "A"), Sample("Q", "B")]
    >>> with handed_over(HandedOver(samples, {"step": 3}, {"tools": lambda rows: [f"tool {row}" for row in rows]})):
    ...     handed_now().to(samples[1:])
    {'step': 3, 'tools': ['tool 1']}
    """
    token = _handed_over.set(handed)
    try:
        yield
    finally:
        _handed_over.reset(token)


def handed_now() -> HandedOver:
    """What the calling trainer passes in addition to samples; nothing outside a trainer."""
    return _handed_over.get() or HandedOver((), {}, {})
