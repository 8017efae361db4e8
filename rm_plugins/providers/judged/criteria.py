"""The criteria of a rubric, read from a spec or from a column."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rm_plugins.errors import DataError, did_you_mean
from rm_plugins.replies import alike_verdicts

YES_NO: Mapping[str, float] = {"yes": 1.0, "no": 0.0}
"""The levels of a criterion that has none of its own."""

_KEYS = ("name", "text", "weight", "required", "negative", "levels")
_OTHER_NAMES = {"title": "name", "criterion": "text", "description": "text", "points": "weight"}
"""Names of the keys in published sets of rubrics."""
_IGNORED = ("id", "tags")


_LARGEST = 1e12
"""The largest weight and value of a level; sums of larger ones lose the smaller ones."""


@dataclass(frozen=True, slots=True)
class Criterion:
    """What a completion is checked for.

    Args:
        text: What to look for, for the judge.
        name: Its name in parts and metrics; empty if it has none.
        weight: How much it counts, above 0.
        required: Whether a completion that does not meet it gets the lowest score.
        negative: Whether it describes a fault, so that meeting it lowers the score.
        levels: The possible verdicts, each with its value.
    """

    text: str
    name: str = ""
    weight: float = 1.0
    required: bool = False
    negative: bool = False
    levels: Mapping[str, float] = field(default_factory=lambda: dict(YES_NO))

    @property
    def span(self) -> tuple[float, float]:
        """The lowest and the highest value of its levels."""
        return min(self.levels.values()), max(self.levels.values())

    def met(self, value: float) -> float:
        """How well a value of this criterion speaks for the completion, from 0 to 1."""
        low, high = self.span
        share = (value - low) / (high - low)
        return 1.0 - share if self.negative else share


def read_criteria(value: Any, where: str) -> tuple[Criterion, ...]:
    """Criteria from a list of texts and mappings, or from JSON with such a list.

    Args:
        value: The list. A mapping has the keys ``text``, and optionally ``name``, ``weight``, ``required``, ``negative`` and ``levels``.
            A negative weight is that of a negative criterion. Null counts as an absent key.
        where: What it is called in errors, such as ``criteria``.

    Raises:
        DataError: It is not such a list, it is empty, or criteria are empty, doubled or contradict each other.

    >>> read_criteria(["Is polite.", {"text": "Insults the user.", "weight": -2}], "criteria")[1].negative
    True
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where} must be a list of criteria, or JSON with one, not the text {value!r:.80}.") from error
    if hasattr(value, "tolist"):  # an array
        value = value.tolist()
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        raise DataError(f"{where} must be a list of criteria, not {type(value).__name__}: {value!r:.80}.")
    if not value:
        raise DataError(f"{where} is empty: a rubric needs at least one criterion.")
    criteria = tuple(_criterion(item, f"{where}[{place}]") for place, item in enumerate(value))
    _check_together(criteria, where)
    return criteria


def _criterion(item: Any, where: str) -> Criterion:
    if isinstance(item, str):
        item = {"text": item}
    if not isinstance(item, Mapping):
        raise DataError(f"{where} must be a text or a mapping with 'text', not {type(item).__name__}: {item!r:.80}.")
    given: dict[str, Any] = {}
    for key, value in item.items():
        name = _OTHER_NAMES.get(key, key)
        if value is None or key in _IGNORED:
            continue
        if name not in _KEYS:
            raise DataError(f"{where} has the unknown key {key!r}. {did_you_mean(str(key), _KEYS)}")
        if name in given:
            raise DataError(f"{where} has {name!r} twice, also as {key!r}.")
        given[name] = value
    text = given.get("text")
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{where} has no text: it must say what the completion is checked for.")
    name = given.get("name", "")
    if not isinstance(name, str):
        raise DataError(f"{where}.name must be text, not {name!r:.80}.")
    weight = _number(given.get("weight", 1.0), f"{where}.weight")
    flags = {key: given.get(key, False) for key in ("required", "negative")}
    for key, flag in flags.items():
        if not isinstance(flag, bool):
            raise DataError(f"{where}.{key} must be true or false, not {flag!r:.80}.")
    if weight == 0:
        raise DataError(f"{where}.weight is 0, so the criterion would not count. Leave it out, or give it a weight.")
    if weight < 0 and given.get("negative") is False:
        raise DataError(f"{where} contradicts itself: its weight is {weight:g}, and `negative` is false.")
    return Criterion(
        text.strip(),
        name.strip(),
        abs(weight),
        flags["required"],
        flags["negative"] or weight < 0,
        _levels(given.get("levels"), f"{where}.levels"),
    )


def _levels(value: Any, where: str) -> Mapping[str, float]:
    """Levels with values; a list goes from the worst (0) to the best (1) in equal steps."""
    if value is None:
        return dict(YES_NO)
    if isinstance(value, Mapping):  # a column's mapping has a key for each level of any row
        levels = {str(name): _number(number, f"{where}.{name}") for name, number in value.items() if number is not None}
    elif isinstance(value, Sequence) and not isinstance(value, str) and all(isinstance(name, str) for name in value):
        levels = {name: place / max(1, len(value) - 1) for place, name in enumerate(value)}
        if len(levels) < len(value):
            raise DataError(f"{where} has a level twice: {list(value)}.")
    else:
        raise DataError(
            f"{where} must be a mapping of levels to numbers, or a list from the worst to the best, not {value!r:.80}."
        )
    folded = [name.strip().casefold() for name in levels]
    if len(levels) < 2 or not all(folded) or len(set(folded)) < len(folded):
        raise DataError(f"{where} needs at least two different names, not {[*levels]}.")
    if alike := alike_verdicts(levels):
        raise DataError(
            f"{where} needs names that differ in more than case and punctuation, or a judge's verdict could not be read; it has "
            f"{alike[0]!r} and {alike[1]!r}."
        )
    if len(set(levels.values())) < 2:
        raise DataError(f"{where} has the same value for every level, so the criterion could not be met.")
    return {name.strip(): number for name, number in levels.items()}


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:  # NaN
        raise DataError(f"{where} must be a finite number, not {value!r:.80}.")
    if abs(value) > _LARGEST:
        raise DataError(f"{where} must be a finite number of at most {_LARGEST:g}, not {value!r:.80}.")
    return float(value)


def _check_together(criteria: Sequence[Criterion], where: str) -> None:
    texts: dict[str, int] = {}
    names: dict[str, int] = {}
    for place, criterion in enumerate(criteria):
        text = " ".join(criterion.text.casefold().split()).rstrip(".")
        if (other := texts.setdefault(text, place)) != place:
            if criteria[other].negative != criterion.negative:
                raise DataError(
                    f"{where}[{other}] and {where}[{place}] contradict each other: {criterion.text!r:.80} counts for the completion and "
                    "against it."
                )
            raise DataError(
                f"{where}[{place}] is the same criterion as {where}[{other}]: {criterion.text!r:.80}. Leave one out."
            )
        if criterion.name and (other := names.setdefault(criterion.name, place)) != place:
            raise DataError(f"{where}[{place}] has the same name as {where}[{other}]: {criterion.name!r}. Rename one.")
