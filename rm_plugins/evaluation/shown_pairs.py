"""The pairs that a report shows, with their texts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from rm_plugins.data.judgements import judgement
from rm_plugins.evaluation.judged_rows import JudgedRows
from rm_plugins.evaluation.results import JudgedPair
from rm_plugins.evaluation.reward_figures import ScoredPairs
from rm_plugins.samples import Sample, text_of
from rm_plugins.scores import FloatArray

__all__ = ["ShownPairs", "cut_text", "worst_pairs"]

_TEXT = 4_000
"""Characters of a text that is shown; of longer ones, the middle is left out."""


def worst_pairs(rows: JudgedRows, scored: ScoredPairs, count: int) -> list[int]:
    """The numbers of the pairs that are wrong by most, one of a row at most, worst first."""
    wrong = np.flatnonzero(scored.delta <= 0)
    numbers = scored.number[wrong[np.argsort(scored.delta[wrong], kind="stable")]]
    _, first = np.unique(rows.pair_row[numbers], return_index=True)
    worst: list[int] = numbers[np.sort(first)][:count].tolist()
    return worst


class ShownPairs:
    """Pairs that are shown, whose texts are looked up together at the end."""

    def __init__(self, rows: JudgedRows) -> None:
        self._rows = rows
        self._lengths = rows.lengths
        self._first = np.searchsorted(rows.row, np.arange(len(rows.cluster)))
        self._wanted: set[int] = set()

    def pair(self, number: int, values: FloatArray) -> JudgedPair:
        """A pair without its texts: in their place are the samples' places in the row."""
        rows = self._rows
        winner, loser = (int(sample) for sample in rows.pairs[number])
        row = int(rows.row[winner])
        chosen, rejected = (str(sample - int(self._first[row])) for sample in (winner, loser))
        self._wanted.add(row)
        lengths = (int(self._lengths[sample]) for sample in (winner, loser))
        return JudgedPair(
            row + 1, rows.section_of(row), "", chosen, rejected, float(values[winner]), float(values[loser]), *lengths
        )

    def texts(self, again: Iterable[Mapping[str, Any]]) -> Callable[[JudgedPair], JudgedPair]:
        """What puts the texts in their places."""
        samples_of: dict[int, tuple[Sample, ...]] = {}
        for number, row in enumerate(again):
            if number in self._wanted:
                samples_of[number] = judgement(row).samples
                if len(samples_of) == len(self._wanted):
                    break

        def complete(pair: JudgedPair) -> JudgedPair:
            samples = samples_of[pair.row - 1]
            winner, loser = samples[int(pair.chosen)], samples[int(pair.rejected)]
            prompt, chosen, rejected = (
                cut_text(text_of(part)) for part in (winner.prompt, winner.completion, loser.completion)
            )
            return replace(pair, prompt=prompt, chosen=chosen, rejected=rejected)

        return complete


def cut_text(text: str) -> str:
    """A text as it is shown: without its middle where it is long."""
    if len(text) <= _TEXT:
        return text
    return f"{text[: _TEXT // 2]}\n[...]\n{text[-_TEXT // 2 :]}"
