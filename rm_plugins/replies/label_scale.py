"""Label grades of a judge: the expected value under the label probabilities at the first token of the answer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rm_plugins.errors import SpecError
from rm_plugins.replies.grade import Grade
from rm_plugins.replies.labels import LabelMasses, Labels
from rm_plugins.replies.verdict import verdict_in


class LabelScale(Labels):
    """The expected value over labels.

    Let p(l) be the total probability of all variants of the label l, and m the sum of p(l) over all labels. The grade is the sum of
    value(l) * p(l) / m.

    Args:
        values: The value of each label.
        min_mass: The smallest m for which there is a grade.

    Raises:
        SpecError: There are fewer than two labels, a value is not finite, a label is the beginning of another, or `min_mass` is not a
            probability above 0.

    >>> LabelScale({"Yes": 1.0, "No": 0.0}, 0.5).of_masses({"Yes": 0.75, "No": 0.25}).value
    0.75
    """

    def __init__(self, values: Mapping[str, float], min_mass: float) -> None:
        super().__init__(values)
        for label, value in values.items():
            if not math.isfinite(value):
                raise SpecError(f"the value of {label!r} must be a finite number, not {value}.", key="labels")
        if not 0 < min_mass <= 1:
            raise SpecError(f"must be a probability above 0, not {min_mass}.", key="min_label_mass")
        self.values = dict(values)
        self.min_mass = min_mass

    @property
    def instruction(self) -> str:
        """The sentence that tells the judge the form of the answer."""
        return f"Answer with one word and nothing else: {' or '.join(self.values)}."

    def grade(self, choice: Mapping[str, Any]) -> Grade:
        """The grade of a choice of the chat completions API, or the error why there is none.

        Raises:
            AnswerError: The logprobs are not in the format of the API.
            UnsupportedError: The choice has no logprobs.
        """
        return self.of(self.masses(choice))

    def of_masses(self, masses: Mapping[str, float], text: str = "") -> Grade:
        """The grade of label probabilities, such as `rm_plugins.judges.Reply.label_probabilities`; `text` is quoted in errors."""
        return self.of(self.checked(masses, text))

    def of(self, found: LabelMasses) -> Grade:
        """The grade of label probabilities."""
        if found.error:
            return Grade(error=found.error)
        mass = found.mass
        if mass < self.min_mass:
            return Grade(
                details={"label_mass": mass},
                error=f"the labels {', '.join(self.values)} have a total probability of {mass:.3g} in the judge's answer, less than "
                f"min_label_mass ({self.min_mass:g}); the answer begins with {found.beginning!r}",
            )
        shares = {label: found.masses[label] / mass for label in self.values}
        value = math.fsum(self.values[label] * share for label, share in shares.items())
        return Grade(value, {"label_mass": mass, **{f"label/{label}": share for label, share in shares.items()}})

    def of_text(self, text: str) -> Grade:
        """The value of the label that an answer's text is, for judges without label probabilities.

        >>> LabelScale({"Yes": 1.0, "No": 0.0}, 0.5).of_text("**Yes**").value
        1.0
        """
        verdict = verdict_in(text, self.values)
        return Grade(error=verdict.error) if verdict.error else Grade(self.values[verdict.label])
