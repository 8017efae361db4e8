"""PPE: the part of Preference Proxy Evaluations on correctness, with 32 answers to each question."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from rm_plugins.scores import FloatArray
from rm_plugins.statistics.best_of_n import best_of_n
from rm_plugins.statistics.metrics import auc
from rm_plugins.suites.raw_rows import ANYTHING, FLAGS, LIST, PROMPT, TEXT, RawRow, raw_rows
from rm_plugins.suites.suite import Suite, SuiteItem, SuiteResult, SuiteSection, SuiteTable, mean

_SETS = ("MMLU-Pro", "MATH", "GPQA", "MBPP-Plus", "IFEval")
_DATASETS = {f"lmarena-ai/PPE-{name}-Best-of-K": name for name in _SETS}
_OWN_COLUMNS = {
    "MMLU-Pro": ("category",),
    "MATH": ("problem",),
    "GPQA": ("Record ID",),
    "MBPP-Plus": ("task_id", "test_list"),
    "IFEval": ("instruction_id_list",),
}
"""Columns that only one of the sets has, for files without the name of their set."""
_COLUMNS = ("accuracy", "AUC", "best of k: maximum", "best of k: end", "best of k: error")


class Ppe(Suite):
    """PPE correctness: right answers above wrong ones on five checkable benchmarks (Frick et al. 2024, arXiv 2410.14872).

    The human preferences of PPE are another dataset, which is not included.
    """

    name = "ppe"
    source: ClassVar[tuple[str, ...]] = tuple(_DATASETS)
    split = "train"
    rule = (
        "Each question has sampled pairs of a right and a wrong answer, and the right one must score strictly higher. The score is the "
        "mean of the accuracies on the five sets; the table has the area under the ROC curve and the best-of-k curve as well."
    )

    def rows(self, raw: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        """Each question with all its answers; rows of the five sets may come in any order.

        The set of a row is in its column ``dataset``, which `published` adds, or follows from a column that only one set has.
        """
        expected = {
            "prompt": PROMPT,
            "scores": FLAGS,
            "sampled_conflict_pairs": LIST,
            "question_id": ANYTHING,
            "response_1": TEXT,
        }
        for row in raw_rows(self, raw, expected):
            labels = [bool(score) for score in row["scores"]]
            names = [f"response_{number}" for number in range(1, len(labels) + 1)]
            for name in names:
                if not isinstance(row.columns.get(name), str):
                    raise row.refused(f"'scores' has {len(labels)} values, and there is no text {name!r} to go with them.")
            yield {
                "id": " ".join(str(row.columns[name]) for name in ("question_id", "model_name") if name in row.columns),
                "section": _set(row),
                "prompt": row.messages(),
                "completions": [row[name] for name in names],
                "labels": labels,
                "compared": [_right_and_wrong(row, pair, labels) for pair in row["sampled_conflict_pairs"]],
            }

    def result(self, items: Sequence[SuiteItem]) -> SuiteResult:
        """The accuracies on the five sets and their mean, and a table of the other metrics."""
        sections, table = [], []
        for name in _SETS:
            of_set = [item for item in items if item.section == name]
            figures = _metrics(of_set)
            sections.append(SuiteSection(name, figures[0], 1 / len(_SETS), len(of_set)))
            table.append(figures)
        means = tuple(np.mean(table, axis=0).tolist())
        return self.scored(
            items,
            sections,
            figures=dict(zip(_COLUMNS[1:], means[1:], strict=True)),
            tables=(SuiteTable("Correctness", (*_SETS, "mean"), _COLUMNS, (*table, means)),),
        )


def _set(row: RawRow) -> str:
    if row.columns.get("dataset") is not None:
        return _DATASETS[row.one_of("dataset", _DATASETS)]
    names = [name for name, own in _OWN_COLUMNS.items() if any(row.columns.get(column) is not None for column in own)]
    if len(names) != 1:
        raise row.refused(
            f"its columns fit {' and '.join(names) or 'no set'}, so its set is unknown. Add a column 'dataset' with one of "
            f"{', '.join(_DATASETS)}."
        )
    return names[0]


def _right_and_wrong(row: RawRow, pair: Any, labels: Sequence[bool]) -> tuple[int, int]:
    try:
        first, second = (int(position) for position in pair)
        if min(first, second) >= 0 and labels[first] != labels[second]:
            return (first, second) if labels[first] else (second, first)
    except (TypeError, ValueError, IndexError):
        pass
    raise row.refused(f"'sampled_conflict_pairs' has {pair!r:.80}; positions of a right and a wrong answer are expected.")


def _metrics(items: Sequence[SuiteItem]) -> tuple[float, ...]:
    """The columns of the table for one set.

    Accuracy is over the sampled pairs of all questions. The area under the ROC curve is of the answers to all questions together,
    each question's scores stretched to [0, 1]. The best-of-k curve is the mean over questions of the chance that the best of k
    random answers is right. The table has its maximum, its end, and its mean squared distance from the curve of a perfect reward. The
    paper draws the answers at random many times; this is the exact expectation of that.
    """
    if not items:
        return (math.nan,) * len(_COLUMNS)
    pairs = [item.judged_scores[right] > item.judged_scores[wrong] for item in items for right, wrong in item.compared]
    labels = [item.labels for item in items]
    scores = [item.judged_scores for item in items]
    area = auc(np.concatenate([_stretched(answers) for answers in scores]), np.concatenate(labels))
    curve, best = _curve(scores, labels), _curve(labels, labels)
    return mean(pairs), area, float(curve.max()), float(curve[-1]), float(np.square(best - curve).mean())


def _stretched(scores: FloatArray) -> FloatArray:
    """Scores from 0 to 1; 1/2 where all are equal."""
    size = float(np.ptp(scores))
    return (scores - scores.min()) / size if size else np.full(len(scores), 0.5)


def _curve(scores: Sequence[FloatArray], labels: Sequence[FloatArray]) -> FloatArray:
    """float64 [K]: for k from 1, how likely the best of k random answers is right, on average over questions."""
    counts = range(1, min(map(len, labels)) + 1)
    curve: FloatArray = np.mean([best_of_n(*answers, counts) for answers in zip(scores, labels, strict=True)], axis=0)
    return curve
