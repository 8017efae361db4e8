"""The scale of a judge's answers, from the keys of a spec."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rm_plugins.errors import SpecError
from rm_plugins.replies.label_scale import LabelScale
from rm_plugins.replies.number_scale import NumberScale

_LABELS = {"Yes": 1.0, "No": 0.0}
_MIN_LABEL_MASS = 0.5


def answer_scale(
    *,
    labels: Mapping[str, float] | None = None,
    min_label_mass: float | None = None,
    range: Sequence[float] | None = None,
    pattern: str | None = None,
    **of_labels: object,
) -> LabelScale | NumberScale:
    """Labels, by default ``{"Yes": 1.0, "No": 0.0}``, or numbers if there is a `range`.

    Args:
        labels: The value of each label.
        min_label_mass: The smallest total probability of the labels; 0.5 if unset.
        range: The lowest and the highest number.
        pattern: Finds the number; see `NumberScale`.
        of_labels: Further keys that only labels have; None where they are not set.

    Raises:
        SpecError: Keys exclude each other, one would have no effect, or a value is invalid.
    """
    if labels is not None and range is not None:
        raise SpecError("a judge answers with a label or with a number: 'labels' and 'range' exclude each other.", key="labels")
    if range is None:
        if pattern is not None:
            raise SpecError("needs 'range', the lowest and the highest number that the judge may answer.", key="pattern")
        return LabelScale(_LABELS if labels is None else labels, _MIN_LABEL_MASS if min_label_mass is None else min_label_mass)
    for key, value in {"min_label_mass": min_label_mass, **of_labels}.items():
        if value is not None:
            raise SpecError(
                "has no effect with 'range', because a number is read from the text of the answer and not from label probabilities. "
                "Leave it out, or use 'labels'.",
                key=key,
            )
    return NumberScale(range, pattern)
