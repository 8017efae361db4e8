"""`RowProvider`: a provider that scores each sample by itself."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np

from rm_plugins.errors import DataError, RmPluginsError, ScoringError
from rm_plugins.provider import Provider
from rm_plugins.samples import Sample
from rm_plugins.scores import Scores


class RowProvider(Provider):
    """A provider that scores each sample by itself: a subclass implements `score_sample`.

    An error that it raises fails only this sample; the others keep their scores.
    """

    @abstractmethod
    def score_sample(self, sample: Sample) -> float | None:
        """The score of one sample, finite; None or NaN abstains.

        Raises:
            ScoringError: The sample cannot be scored.
            DataError: The sample is of a kind that cannot be scored.
        """

    @property
    def part_names(self) -> tuple[str, ...]:
        """None: its scores have no parts."""
        return ()

    def score_batch(self, samples: Sequence[Sample]) -> Scores:
        """Score one sample after another."""
        values = np.full(len(samples), np.nan)
        errors: dict[int, RmPluginsError] = {}
        for row, sample in enumerate(samples):
            try:
                value = self.score_sample(sample)
            except (ScoringError, DataError) as error:
                errors[row] = error
            except Exception as error:  # whatever it is, only this sample has failed
                message = f"The provider {self.called} failed: {type(error).__name__}: {error}"
                errors[row] = ScoringError(message, rows=[row]).caused_by(error)
            else:
                values[row] = np.nan if value is None else value
        return Scores(values, errors=errors)
